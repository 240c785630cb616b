package pinning

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// A Held is an image that is pinned.
type Held struct {
	ID     string
	Name   string // one of its names, "" if it has none
	Size   int64  // in bytes, with layers that it shares with other images
	Reason Reason
}

// A Report lists the images that are pinned.
type Report []Held

// A Total is how many images are pinned for one reason.
type Total struct {
	Images int
	Bytes  int64 // layers that images share count once for each
}

// Totals returns the totals by reason; all reasons are there.
func (r Report) Totals() map[Reason]Total {
	totals := map[Reason]Total{}
	for _, reason := range Reasons() {
		totals[reason] = Total{}
	}
	for _, h := range r {
		t := totals[h.Reason]
		totals[h.Reason] = Total{t.Images + 1, t.Bytes + max(h.Size, 0)}
	}
	return totals
}

// Bytes returns the sum of all sizes.
func (r Report) Bytes() (sum int64) {
	for _, h := range r {
		sum += max(h.Size, 0)
	}
	return sum
}

// maxName bounds a name in the text of Largest.
const maxName = 128

// Largest names at most n images, the largest first, each with its reason.
func (r Report) Largest(n int) string {
	sorted := slices.SortedFunc(slices.Values(r), func(a, b Held) int {
		return cmp.Or(cmp.Compare(b.Size, a.Size), strings.Compare(a.ID, b.ID))
	})
	var parts []string
	for _, h := range sorted[:min(n, len(sorted))] {
		name := cmp.Or(h.Name, h.ID)
		if len(name) > maxName {
			name = name[:maxName] + "..."
		}
		parts = append(parts, fmt.Sprintf("%s (%s)", name, h.Reason))
	}
	if more := len(sorted) - n; more > 0 {
		parts = append(parts, fmt.Sprintf("%d more", more))
	}
	return strings.Join(parts, ", ")
}
