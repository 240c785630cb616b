package imagecache

import (
	"maps"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/image"

	"berth/core/image/pinning"
)

// Facts are what the Engine says of an image in one of its answers. They are immutable.
type Facts struct {
	Tags, Digests []string
	Size          int64             // in bytes
	Labels        map[string]string // of them only pinning.LabelKey
}

// An Image is an image of the Engine. It is immutable: a change replaces it. The facts of a list
// and of an inspect differ with the containerd image store, in the digests and the size.
type Image struct {
	ID     string
	User   string // Config.User of the Engine API, "" if the image cannot be inspected
	Listed Facts
	// Inspected is nil if the image cannot be inspected, or was listed without an event stream. It
	// never is in what Find returns.
	Inspected *Facts

	failed bool // it cannot be inspected
}

// Images are the images of one list. They are immutable.
type Images struct {
	Rows []*Image // as the Engine lists them; an ID may be there more than once (docker 23, containerd image store)
	IDs  []string // of Rows

	byID   map[string]*Image
	byName map[string]*Image // by tags and digests of their inspects, as they are and normalized
}

// newImages returns the Images with the rows.
func newImages(rows []*Image) *Images {
	i := &Images{Rows: rows, IDs: make([]string, 0, len(rows)), byID: make(map[string]*Image, len(rows)), byName: map[string]*Image{}}
	for _, row := range rows {
		i.IDs = append(i.IDs, row.ID)
		i.byID[row.ID] = row
		if row.Inspected == nil {
			continue
		}
		for _, name := range slices.Concat(row.Inspected.Tags, row.Inspected.Digests) {
			if normalized, ok := normalize(name); ok {
				i.byName[normalized], i.byName[name] = row, row
			}
		}
	}
	return i
}

// normalize returns the full form of a name: with its registry, and with a tag or a digest.
func normalize(name string) (string, bool) {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", false
	}
	return named.String(), true
}

const (
	algorithm = "sha256:" // of image IDs
	digits    = 64        // of an image ID
)

// find returns the image that has the ID or the name ref. It returns nil if there is none, and for
// all else that an Engine accepts, such as abbreviated IDs.
func (i *Images) find(ref string) *Image {
	found := i.byID[ref]
	if found == nil {
		found = i.byName[ref]
	}
	if hex := strings.TrimPrefix(ref, algorithm); found == nil && len(hex) == digits && strings.Trim(hex, "0123456789abcdef") == "" {
		found = i.byID[algorithm+hex]
	} else if found == nil {
		if name, ok := normalize(ref); ok {
			found = i.byName[name]
		}
	}
	if found == nil || found.Inspected == nil {
		return nil
	}
	return found
}

// Present returns the IDs of all images as a set.
func Present(rows []image.Summary) map[string]bool {
	present := make(map[string]bool, len(rows))
	for _, row := range rows {
		present[row.ID] = true
	}
	return present
}

// listedFacts returns the Facts of a list entry.
func listedFacts(row image.Summary) Facts {
	return Facts{Tags: row.RepoTags, Digests: row.RepoDigests, Size: row.Size, Labels: pinLabel(row.Labels)}
}

// InspectedFacts returns the Facts of an inspect result.
func InspectedFacts(found image.InspectResponse) *Facts {
	facts := &Facts{Tags: found.RepoTags, Digests: found.RepoDigests, Size: found.Size}
	if found.Config != nil {
		facts.Labels = pinLabel(found.Config.Labels)
	}
	return facts
}

// pinLabel returns the label that pins an image, if it is in labels, which may be very large.
func pinLabel(labels map[string]string) map[string]string {
	if value, ok := labels[pinning.LabelKey]; ok {
		return map[string]string{pinning.LabelKey: strings.Clone(value)}
	}
	return nil
}

// Equal reports whether f and other are the same.
func (f Facts) Equal(other Facts) bool {
	return f.Size == other.Size && slices.Equal(f.Tags, other.Tags) && slices.Equal(f.Digests, other.Digests) && maps.Equal(f.Labels, other.Labels)
}
