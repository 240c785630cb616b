package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// A Report is the result of one run, in the form of the file of --json.
type Report struct {
	Date     string            `json:"date"`
	Machine  string            `json:"machine"`
	Kind     string            `json:"kind"` // of machine
	Engine   string            `json:"engine"`
	Mode     string            `json:"mode"`     // bench, shims, userns, density or streams
	Settings string            `json:"settings"` // runs with others are not compared
	Sides    map[string]string `json:"sides"`    // their descriptions
	Order    []string          `json:"order"`    // of the sides
	Burst    string            `json:"burst"`
	Pods     int               `json:"pods"` // in rows without a number of pods
	Rows     []*Row            `json:"rows"` // in the order they were first measured
}

// A Row has the samples of one measurement on each side.
type Row struct {
	Name    string               `json:"name"`
	Unit    string               `json:"unit"`
	Samples map[string][]float64 `json:"samples"`
}

func newReport(p *plan) *Report {
	r := &Report{Date: time.Now().UTC().Format(time.RFC3339), Burst: fmt.Sprintf("%d pods, %d at a time", p.Burst, p.Parallel)}
	if len(p.Pods) > 0 {
		r.Pods = p.Pods[0]
	}
	r.Mode, r.Settings = p.settings()
	return r
}

// settings describes what of a plan changes the values.
func (p *plan) settings() (mode, settings string) {
	var parts []string
	switch {
	case len(p.Shims) > 0:
		mode, parts = "shims", []string{fmt.Sprintf("shims of %d pods of %v containers", p.Rounds, p.Shims)}
		if p.userNS() {
			mode, parts = "userns", []string{fmt.Sprintf("%d pods of %v containers", p.Rounds, p.Shims)}
		}
	case len(p.Density) > 0:
		mode, parts = "density", []string{fmt.Sprintf("density %v, %d restarts, relist %v x %d", p.Density, p.Restarts, p.Relist, p.RelistRounds)}
	case p.Streams > 0:
		mode, parts = "streams", []string{fmt.Sprintf("streams of %d MB, %d rounds", p.Streams, p.Rounds)}
	default:
		mode, parts = "bench", []string{fmt.Sprintf("%d rounds, %d bursts of %d pods, %d at a time, %v pods, relist %v x %d, idle %v of %d, probes %v of %d, logs %d x %d",
			p.Rounds, p.Bursts, p.Burst, p.Parallel, p.Pods, p.Relist, p.RelistRounds, p.Idle, p.IdleContainers, p.Probing, p.ProbesEach, p.LogRounds, p.LogLines)}
	}
	if p.HostNetwork {
		parts = append(parts, "host network")
	}
	if p.Flags != "" {
		parts = append(parts, p.Flags)
	}
	return mode, strings.Join(parts, "; ")
}

// add adds one sample.
func (r *Report) add(row, side string, value float64) {
	found := r.row(row)
	if found == nil {
		found = &Row{Name: row, Unit: unitOf(row), Samples: map[string][]float64{}}
		r.Rows = append(r.Rows, found)
	}
	found.Samples[side] = append(found.Samples[side], value)
}

// dropSamples drops the samples of the warm-up round.
func (r *Report) dropSamples() {
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

// median returns the median of the samples of a row on one side.
func (r *Report) median(row, side string) (float64, bool) {
	found := r.row(row)
	if found == nil {
		return 0, false
	}
	return found.median(side)
}

func (r *Row) median(side string) (float64, bool) {
	c, ok := compared(r.Samples[side])
	return c.Value, ok
}

// A result is a target and whether it is met.
type result struct {
	target string  // as set for the reference machine
	scaled float64 // for this machine, in the unit of the row
	known  bool    // whether scaled is known
	met    bool
}

// evaluate compares the median of berth with the target. ok is false for rows without a
// target, or measured with other numbers of pods than the target is for.
func (r *Report) evaluate(row *Row) (v result, ok bool) {
	m, ok := targetOf(row.Name)
	ours, measured := row.median("berth")
	containerd, isPeer := row.median("containerd")
	if !ok || !measured || r.differs(row.Name) || m.kind == beside && !isPeer {
		return v, false
	}
	v.target = number(m.most)
	switch m.kind {
	case fixed:
		v.scaled, v.known = m.most, true
	case ratio:
		bare, there := row.median("bare")
		v.target, v.scaled, v.known = v.target+" x bare", m.most*bare, there
	case beside:
		v.target, v.scaled, v.known = v.target+" x containerd", m.most*containerd, true
	case processBound, queryBound:
		factor := r.slowdown(m.kind)
		v.scaled, v.known = m.most*factor, factor > 0
	}
	v.met = v.known && ours <= v.scaled
	return v, true
}

func (r *Report) slowdown(k kind) float64 {
	return slowdown(k, func(row string) (float64, bool) { return r.median(row, "bare") })
}

// differs reports whether a row was measured with other numbers of pods than its target is for.
func (r *Report) differs(row string) bool {
	switch {
	case slices.Contains([]string{rowPods, rowContainers, rowStats, rowPodStats, rowStatuses, rowRelist}, row):
		return r.Pods != 50
	case row == rowBurst:
		return r.Burst != "20 pods, 10 at a time"
	default:
		return false
	}
}

// number formats a number with its significant digits.
func number(v float64) string {
	size := math.Abs(v)
	digits := 2
	switch {
	case size >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case size >= 10:
		digits = 1
	case size > 0 && size < 0.1:
		digits = min(1-int(math.Floor(math.Log10(size))), 6)
	}
	text := strings.TrimSuffix(strings.TrimRight(strconv.FormatFloat(v, 'f', digits, 64), "0"), ".")
	if text == "-0" {
		return "0"
	}
	return text
}

// columns returns the measured sides, in the order of the table.
func (r *Report) columns() []string {
	if len(r.Order) > 0 {
		return r.Order
	}
	sides := []string{"bare", "berth"} // a file of an earlier version
	if _, ok := r.Sides["peer"]; ok {
		sides = append(sides, "peer")
	}
	return sides
}

// title returns the title of a row in the table.
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

// others returns the sides with which berth is compared.
func (r *Report) others() (sides []string) {
	for _, side := range r.columns() {
		if side != "berth" {
			sides = append(sides, side)
		}
	}
	return sides
}

// write prints the table.
func (r *Report) write(out io.Writer) error {
	fmt.Fprintf(out, "%s\n%s; %s\n", r.Date, r.Machine, r.Engine)
	sides := r.columns()
	for _, side := range sides {
		fmt.Fprintf(out, "  %-6s %s\n", side, r.Sides[side])
	}
	if r.Settings != "" {
		fmt.Fprintf(out, "%s\n", r.Settings)
	}
	if r.mode() == "bench" {
		fmt.Fprintf(out, "Lists and relist are with %d pods of one container. ", r.Pods)
	}
	fmt.Fprintf(out, "Values are medians, ratios are medians of pairs\nwith their spread (contrib/docs/bench.md); ±? is for fewer than %d pairs.\n\n", minPairs)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\t\t%s", strings.Join(sides, "\t"))
	for _, side := range r.others() {
		fmt.Fprint(w, "\tberth/"+side)
	}
	fmt.Fprint(w, "\ttarget\tscaled\tmet\n")
	met, all := 0, 0
	for _, row := range r.Rows {
		if len(row.Samples) == 0 {
			continue
		}
		r.writeRow(w, row)
		v, hasTarget := r.evaluate(row)
		switch {
		case !hasTarget:
			fmt.Fprint(w, "\t\t\t\n")
		case !v.known:
			fmt.Fprintf(w, "\t%s\t?\t?\n", v.target)
		default:
			all++
			word := "NO"
			if v.met {
				met++
				word = "yes"
			}
			fmt.Fprintf(w, "\t%s\t%s\t%s\n", v.target, number(v.scaled), word)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if all == 0 {
		return nil
	}
	fmt.Fprintf(out, "\n%d of %d targets are met.", met, all)
	if r.slowdown(processBound) > 0 {
		fmt.Fprintf(out, " Bare calls that start processes take %s x as long as on the reference machine,\nan inspect %s x; the column \"scaled\" is the target multiplied by that.",
			number(r.slowdown(processBound)), number(r.slowdown(queryBound)))
	}
	_, err := fmt.Fprintln(out)
	return err
}

// writeRow prints the medians and ratios of a row.
func (r *Report) writeRow(w io.Writer, row *Row) {
	fmt.Fprintf(w, "%s\t%s\t%s", r.title(row), row.Unit, strings.Join(r.cells(row), "\t"))
}

// cells returns the medians of a row and then the ratios.
func (r *Report) cells(row *Row) (cells []string) {
	for _, side := range r.columns() {
		text := "-"
		if m, ok := row.median(side); ok {
			text = number(m)
		}
		cells = append(cells, text)
	}
	for _, side := range r.others() {
		text := ""
		if c, ok := row.compare(side); ok {
			text = c.text()
		}
		cells = append(cells, text)
	}
	return cells
}

// writeAll writes the table, and the files that p names.
func (r *Report) writeAll(p *plan, out io.Writer) error {
	if err := r.write(out); err != nil {
		return err
	}
	if p.JSON != "" && p.Load == "" {
		data, err := json.MarshalIndent(r, "", " ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(p.JSON, append(data, '\n'), 0o644); err != nil {
			return err
		}
	}
	if p.Page != "" {
		if err := r.writePage(p.Page); err != nil {
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

// load reads a report that an earlier run has written.
func load(file string) (*Report, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := &Report{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("%s: not a report of this program: %w", file, err)
	}
	return r, nil
}
