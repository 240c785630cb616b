package main

import (
	"math"
	"slices"
)

// A comparison is a ratio of berth to another side, or a value of berth, with its spread.
type comparison struct {
	Value  float64 `json:"value"`
	Spread float64 `json:"spread"` // plus or minus; not known with fewer than minPairs pairs
	Pairs  int     `json:"pairs"`
}

const (
	// minPairs is the number of pairs below which nothing is known of the spread.
	minPairs = 3
	// quartilePairs is the number of pairs below which quartiles say nothing.
	quartilePairs = 5
)

// known reports whether there were enough pairs.
func (c comparison) known() bool { return c.Pairs >= minPairs }

// compare compares berth with another side in a row, pair by pair: the samples of a round are measured one after the
// other, so what slows the machine down for longer than that slows both.
func (r *Row) compare(side string) (comparison, bool) {
	ours, theirs := r.Samples["berth"], r.Samples[side]
	var ratios []float64
	for i := range min(len(ours), len(theirs)) {
		if theirs[i] > 0 {
			ratios = append(ratios, ours[i]/theirs[i])
		}
	}
	return compared(ratios)
}

// compared returns the median and the spread of values: half of the distance between their quartiles; of few values
// the distance between the smallest and the largest.
func compared(values []float64) (comparison, bool) {
	n := len(values)
	if n == 0 {
		return comparison{}, false
	}
	sorted := slices.Sorted(slices.Values(values))
	c := comparison{Value: quantile(sorted, 0.5), Pairs: n}
	switch {
	case n < minPairs:
	case n < quartilePairs:
		c.Spread = sorted[n-1] - sorted[0]
	default:
		c.Spread = (quantile(sorted, 0.75) - quantile(sorted, 0.25)) / 2
	}
	return c, true
}

// quantile returns a quantile of sorted values, interpolated.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	below := int(math.Floor(at))
	above := min(below+1, len(sorted)-1)
	return sorted[below] + (at-float64(below))*(sorted[above]-sorted[below])
}

// text returns a comparison for the table.
func (c comparison) text() string {
	if !c.known() {
		return number(c.Value) + " ±?"
	}
	return number(c.Value) + " ±" + number(c.Spread)
}
