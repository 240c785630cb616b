package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// A Report is what one run has found, as it is written to a file.
type Report struct {
	Date    string            `json:"date"`
	Machine string            `json:"machine"`
	Engine  string            `json:"engine"`
	Sides   map[string]string `json:"sides"` // what each is
	Burst   string            `json:"burst"`
	Pods    int               `json:"pods"` // of rows that do not say how many
	Rows    []*Row            `json:"rows"` // in the order they were first measured
}

// A Row is one thing measured on each side.
type Row struct {
	Name    string               `json:"name"`
	Unit    string               `json:"unit"`
	Samples map[string][]float64 `json:"samples"`
}

func newReport(p *plan) *Report {
	r := &Report{Date: time.Now().UTC().Format(time.RFC3339), Burst: fmt.Sprintf("%d pods, %d at a time", p.Burst, p.Wide)}
	if len(p.Pods) > 0 {
		r.Pods = p.Pods[0]
	}
	return r
}

// add takes one sample.
func (r *Report) add(row, side string, value float64) {
	found := r.row(row)
	if found == nil {
		found = &Row{Name: row, Unit: unitOf(row), Samples: map[string][]float64{}}
		r.Rows = append(r.Rows, found)
	}
	found.Samples[side] = append(found.Samples[side], value)
}

// forget drops the samples of the steps of a pod's life so far.
func (r *Report) forget() {
	for _, row := range r.Rows {
		if row.Unit == "ms" {
			clear(row.Samples)
		}
	}
}

func (r *Report) row(name string) *Row {
	for _, row := range r.Rows {
		if row.Name == name {
			return row
		}
	}
	return nil
}

// median returns the median of what was measured of a row on one side.
func (r *Report) median(row, side string) (float64, bool) {
	found := r.row(row)
	if found == nil {
		return 0, false
	}
	return found.median(side)
}

func (r *Row) median(side string) (float64, bool) {
	samples := slices.Sorted(slices.Values(r.Samples[side]))
	n := len(samples)
	switch {
	case n == 0:
		return 0, false
	case n%2 == 1:
		return samples[n/2], true
	default:
		return (samples[n/2-1] + samples[n/2]) / 2, true
	}
}

// A verdict is what has become of a promise.
type verdict struct {
	promised string  // as it was made
	here     float64 // in the unit of the row, on this machine
	known    bool    // whether here is
	met      bool
}

// judge compares what berth takes with what was promised; of nothing that was not
// promised, or not for so many pods.
func (r *Report) judge(row *Row) (v verdict, ok bool) {
	m, ok := promise(row.Name)
	ours, measured := row.median("berth")
	if !ok || !measured || r.otherwise(row.Name) {
		return v, false
	}
	v.promised = number(m.most)
	switch m.kind {
	case fixed:
		v.here, v.known = m.most, true
	case times:
		bare, there := row.median("bare")
		v.promised, v.here, v.known = v.promised+" x bare", m.most*bare, there
	case starting, asking:
		factor := r.slower(m.kind)
		v.here, v.known = m.most*factor, factor > 0
	}
	v.met = v.known && ours <= v.here
	return v, true
}

func (r *Report) slower(k kind) float64 {
	return slower(k, func(row string) (float64, bool) { return r.median(row, "bare") })
}

// otherwise reports whether a row was measured in other numbers than promises are about.
func (r *Report) otherwise(row string) bool {
	switch {
	case slices.Contains([]string{rowPods, rowContainers, rowStats, rowPodStats, rowStatuses, rowRelist}, row):
		return r.Pods != 50
	case row == rowBurst:
		return r.Burst != "20 pods, 10 at a time"
	default:
		return false
	}
}

// number writes a number with as many digits as say something.
func number(v float64) string {
	digits := 2
	switch {
	case v >= 100 || v <= -100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10 || v <= -10:
		digits = 1
	}
	return strings.TrimSuffix(strings.TrimRight(strconv.FormatFloat(v, 'f', digits, 64), "0"), ".")
}

// columns are the sides there are, in the order of the table.
func (r *Report) columns() []string {
	sides := []string{"bare", "berth"}
	if _, ok := r.Sides["peer"]; ok {
		sides = append(sides, "peer")
	}
	return sides
}

// title is what a row is called in the table.
func (r *Report) title(row *Row) string {
	whole, p := part(row.Name)
	switch {
	case p != "":
		return "  of that " + p
	case whole == rowBurst:
		return row.Name + " (" + r.Burst + ")"
	default:
		return row.Name
	}
}

// write prints the table.
func (r *Report) write(out io.Writer) error {
	fmt.Fprintf(out, "%s\n%s; %s\n", r.Date, r.Machine, r.Engine)
	sides := r.columns()
	for _, side := range sides {
		fmt.Fprintf(out, "  %-6s %s\n", side, r.Sides[side])
	}
	fmt.Fprintf(out, "Medians; lists and relist with %d pods of one container.\n\n", r.Pods)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\t\t%s\tberth/bare", strings.Join(sides, "\t"))
	if len(sides) > 2 {
		fmt.Fprint(w, "\tberth/peer")
	}
	fmt.Fprint(w, "\tmust\there\tmet\n")
	met, all := 0, 0
	for _, row := range r.Rows {
		if len(row.Samples) == 0 {
			continue
		}
		fmt.Fprintf(w, "%s\t%s", r.title(row), row.Unit)
		for _, side := range sides {
			text := "-"
			if m, ok := row.median(side); ok {
				text = number(m)
			}
			fmt.Fprint(w, "\t"+text)
		}
		for _, side := range []string{"bare", "peer"} {
			if slices.Contains(sides, side) {
				fmt.Fprint(w, "\t"+row.ratio(side))
			}
		}
		v, promised := r.judge(row)
		switch {
		case !promised:
			fmt.Fprint(w, "\t\t\t\n")
		case !v.known:
			fmt.Fprintf(w, "\t%s\t?\t?\n", v.promised)
		default:
			all++
			word := "NO"
			if v.met {
				met++
				word = "yes"
			}
			fmt.Fprintf(w, "\t%s\t%s\t%s\n", v.promised, number(v.here), word)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%d of %d promises are met.", met, all)
	if r.slower(starting) > 0 {
		fmt.Fprintf(out, " Bare calls that start processes take %s x as long as where they were made,\nan inspect %s x; \"here\" allows for that.",
			number(r.slower(starting)), number(r.slower(asking)))
	}
	_, err := fmt.Fprintln(out)
	return err
}

// ratio is how berth compares with another side.
func (r *Row) ratio(side string) string {
	ours, ok := r.median("berth")
	theirs, there := r.median(side)
	if !ok || !there || theirs == 0 {
		return ""
	}
	return number(ours / theirs)
}

// publish reports in all forms that are asked for.
func (r *Report) publish(p *plan, out io.Writer) error {
	if err := r.write(out); err != nil {
		return err
	}
	if p.JSON != "" && p.Again == "" {
		data, err := json.MarshalIndent(r, "", " ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(p.JSON, append(data, '\n'), 0o644); err != nil {
			return err
		}
	}
	if p.SVG == "" {
		return nil
	}
	f, err := os.Create(p.SVG)
	if err != nil {
		return err
	}
	return errors.Join(r.draw(f), f.Close())
}

// load reads what an earlier run has written.
func load(file string) (*Report, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := &Report{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("%s is not of this program: %w", file, err)
	}
	return r, nil
}
