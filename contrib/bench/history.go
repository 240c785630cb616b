package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// errWorse is the error of a run in which rows got worse.
var errWorse = errors.New("rows got worse")

// A record is a run in the history, one line of JSON.
type record struct {
	Date     string               `json:"date"`
	Machine  string               `json:"machine"`
	Kind     string               `json:"kind"`
	Engine   string               `json:"engine"`
	Settings string               `json:"settings"`
	Sides    map[string]string    `json:"sides"` // with their versions
	Rows     map[string]recordRow `json:"rows"`
}

// A recordRow is a row of a run.
type recordRow struct {
	Unit    string                `json:"unit"`
	Medians map[string]float64    `json:"medians"`
	Ratios  map[string]comparison `json:"ratios,omitempty"` // of berth to each other side
	Berth   comparison            `json:"berth"`
}

// record returns the report as a line of the history.
func (r *Report) record() *record {
	line := &record{Date: r.Date, Machine: r.Machine, Kind: r.Kind, Engine: r.Engine, Settings: r.Settings, Sides: r.Sides, Rows: map[string]recordRow{}}
	for _, row := range r.Rows {
		if len(row.Samples) == 0 {
			continue
		}
		saved := recordRow{Unit: row.Unit, Medians: map[string]float64{}, Ratios: map[string]comparison{}}
		for side := range row.Samples {
			if m, ok := row.median(side); ok {
				saved.Medians[side] = m
			}
			if c, ok := row.compare(side); ok && side != "berth" {
				saved.Ratios[side] = c
			}
		}
		saved.Berth, _ = compared(row.Samples["berth"])
		line.Rows[row.Name] = saved
	}
	return line
}

// Smallest spreads of values that do not depend on the speed of the machine.
const (
	// memorySpread is a part of the memory: garbage collection and the number of threads change it from run to run.
	memorySpread = 0.05
	// fileSpread is for open files after probes: the connections to Docker that are kept for reuse.
	fileSpread = 3
)

// judged returns what of a row is compared with an earlier run, and what it is called: the ratio to the bare calls, which does not
// depend on the machine, or the value of berth itself where the machine does not matter. Parts of rows are not compared.
func (r recordRow) judged(name string) (c comparison, what string, ok bool) {
	if _, p := part(name); p != "" {
		return c, "", false
	}
	switch {
	case name == rowLeftFiles:
		c = r.Berth
		c.Spread, c.Pairs = fileSpread, minPairs
		return c, "berth", true
	case r.Unit == "" || name == rowBinary:
		c = r.Berth
		c.Pairs = minPairs // every sample is the same
		return c, "berth", true
	case r.Unit == "MiB":
		c = r.Berth
		c.Spread = max(c.Spread, memorySpread*c.Value)
		return c, "berth", c.known()
	}
	c, ok = r.Ratios["bare"]
	return c, "berth/bare", ok && c.known()
}

// binarySpread is by how much a program may grow unnoticed.
const binarySpread = 0.02

// worse returns a line for each row in which now is worse than before by more than both spreads, and the number of
// rows that were compared.
func worse(now, before *record) (lines []string, rows int) {
	for name, row := range now.Rows {
		ours, what, ok := row.judged(name)
		earlier, there := before.Rows[name]
		then, _, also := earlier.judged(name)
		if !ok || !there || !also {
			continue
		}
		rows++
		change := ours.Value - then.Value
		if higherIsBetter(row.Unit) {
			change = -change
		}
		allowed := ours.Spread + then.Spread
		if name == rowBinary {
			allowed = binarySpread * then.Value
		}
		if change > allowed {
			lines = append(lines, fmt.Sprintf("%s: %s is %s, was %s", name, what, ours.text(), then.text()))
		}
	}
	slices.Sort(lines)
	return lines, rows
}

// keep compares the report with the last run in the history, and adds it.
func (r *Report) keep(p *plan, out io.Writer) error {
	if p.History == "" {
		return nil
	}
	now := r.record()
	all, err := readHistory(p.History)
	if err != nil {
		return err
	}
	var before *record
	known := false
	for _, line := range all {
		switch {
		case line.Date == now.Date && line.Kind == now.Kind: // this run itself, with --again
			known = true
		case line.Kind == now.Kind && line.Engine == now.Engine && line.Settings == now.Settings:
			before = line
		}
	}
	if before == nil {
		fmt.Fprintf(out, "\nNo earlier run of this machine, Engine and settings is in %s: there is nothing to compare with.\n", p.History)
	} else {
		lines, rows := worse(now, before)
		fmt.Fprintf(out, "\n%d rows are compared with the run of %s: %d got worse by more than both spreads.\n", rows, before.Date, len(lines))
		for _, line := range lines {
			fmt.Fprintln(out, line)
		}
		if p.Check && len(lines) > 0 {
			return fmt.Errorf("%d of %d %w than on %s; the run is not added to %s: if this is intended, add it with make bench", len(lines), rows, errWorse, before.Date, p.History)
		}
	}
	if known {
		return nil
	}
	return appendHistory(p.History, now)
}

// readHistory reads a history; a missing one is empty.
func readHistory(file string) (all []*record, err error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<24)
	for n := 1; lines.Scan(); n++ {
		line := &record{}
		if err := json.Unmarshal(lines.Bytes(), line); err != nil {
			return nil, fmt.Errorf("%s, line %d: not a run of this program; remove the line: %w", file, n, err)
		}
		all = append(all, line)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return all, nil
}

func appendHistory(file string, line *record) error {
	data, err := json.Marshal(line)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	return errors.Join(err, f.Close())
}
