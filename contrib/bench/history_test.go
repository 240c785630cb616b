package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// ratioOf returns the report of a day in which berth takes so many times as long as the bare calls, with a spread of 0.1.
func ratioOf(day string, times float64) *Report {
	r := sample()
	r.Date = day
	for _, v := range []float64{-0.2, -0.1, 0, 0.1, 0.2} {
		r.add(rowStop, "bare", 100)
		r.add(rowStop, "berth", 100*(times+v))
	}
	return r
}

func TestRunIsComparedWithTheLastOneLikeIt(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dist", "history.jsonl")
	check := &plan{History: file, Check: true}
	other := ratioOf("2026-01-03", 0.2)
	other.Engine = "Docker Engine 29"
	for _, step := range []struct {
		report *Report
		plan   *plan
		want   string // in the output
		fails  bool
		lines  int // in the history, afterwards
	}{
		{ratioOf("2026-01-01", 1), check, "No earlier run of this machine, Engine and settings", false, 1},
		{ratioOf("2026-01-02", 1.15), check, "run of 2026-01-01: 0 got worse", false, 2},
		{other, check, "No earlier run", false, 3},
		{ratioOf("2026-01-04", 1.5), check, rowStop + ": berth/bare is 1.5 ±0.1, was 1.15 ±0.1", true, 3},
		{ratioOf("2026-01-04", 1.5), &plan{History: file}, "run of 2026-01-02: 1 got worse", false, 4},
		{ratioOf("2026-01-04", 1.5), check, "run of 2026-01-02: 1 got worse", true, 4},
		{ratioOf("2026-01-05", 1.5), check, "run of 2026-01-04: 0 got worse", false, 5},
	} {
		var out strings.Builder
		err := step.report.keep(step.plan, &out)
		if errors.Is(err, errWorse) != step.fails || !step.fails && err != nil {
			t.Errorf("%s: %v", step.report.Date, err)
		}
		if !strings.Contains(out.String(), step.want) {
			t.Errorf("%s: %q is not in %q", step.report.Date, step.want, out.String())
		}
		all, err := readHistory(file)
		if err != nil || len(all) != step.lines {
			t.Errorf("%s: %d lines, want %d: %v", step.report.Date, len(all), step.lines, err)
		}
	}
}

// Values of berth itself are compared only where the speed of the machine does not change them.
func TestWhatIsCompared(t *testing.T) {
	with := func(row string, unit string, values ...float64) *record {
		r := &Report{Rows: []*Row{{Name: row, Unit: unit, Samples: map[string][]float64{"berth": values}}}}
		return r.record()
	}
	for name, c := range map[string]struct {
		before, now *record
		rows, worse int
	}{
		"memory":                  {with(rowMemory(50), "MiB", 30, 30, 30), with(rowMemory(50), "MiB", 40, 40, 40), 1, 1},
		"a little memory":         {with(rowMemory(50), "MiB", 30, 30, 30), with(rowMemory(50), "MiB", 33, 33, 33), 1, 0},
		"size of the program":     {with(rowBinary, "MB", 25), with(rowBinary, "MB", 26), 1, 1},
		"processes that are left": {with(rowLeftProcesses, "", 0), with(rowLeftProcesses, "", 1), 1, 1},
		"open files":              {with(rowLeftFiles, "", 0), with(rowLeftFiles, "", 3), 1, 0},
		"milliseconds":            {with(rowRun, "ms", 1, 1, 1), with(rowRun, "ms", 9, 9, 9), 0, 0},
		"a part":                  {with(of(rowNode, "dockerd"), "MiB", 1, 1, 1), with(of(rowNode, "dockerd"), "MiB", 9, 9, 9), 0, 0},
		"a row that is new":       {with(rowRun, "ms", 1), with(rowBinary, "MB", 25), 0, 0},
	} {
		lines, rows := worse(c.now, c.before)
		if rows != c.rows || len(lines) != c.worse {
			t.Errorf("%s: %d rows and %q, want %d and %d", name, rows, lines, c.rows, c.worse)
		}
	}
}

func TestHigherThroughputIsBetter(t *testing.T) {
	at := func(value float64) *record {
		return &record{Rows: map[string]recordRow{"stdout": {Unit: "MB/s", Ratios: map[string]comparison{"bare": {Value: value, Pairs: 5}}}}}
	}
	if lines, _ := worse(at(2), at(1)); len(lines) > 0 {
		t.Errorf("faster: %q", lines)
	}
	if lines, _ := worse(at(1), at(2)); len(lines) != 1 {
		t.Errorf("slower: %q", lines)
	}
}

func TestHistoryWithAnotherLineIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "history.jsonl")
	if err := os.WriteFile(file, []byte("{}\nno\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := sample().keep(&plan{History: file}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "line 2: not a run of this program") {
		t.Errorf("got %v", err)
	}
}

// With --again a file is reported, compared and added without measuring.
func TestFileIsCheckedAgain(t *testing.T) {
	dir := t.TempDir()
	p := &plan{JSON: filepath.Join(dir, "bench.json")}
	if err := ratioOf("2026-02-01", 1).writeAll(p, io.Discard); err != nil {
		t.Fatal(err)
	}
	args := []string{"--again", p.JSON, "--history", filepath.Join(dir, "history.jsonl"), "--check"}
	var out strings.Builder
	for range 2 {
		if err := run(t.Context(), args, &out); err != nil {
			t.Fatal(err)
		}
	}
	all, err := readHistory(filepath.Join(dir, "history.jsonl"))
	if err != nil || len(all) != 1 || !cmp.Equal(all[0].Rows[rowStop].Medians, map[string]float64{"bare": 100, "berth": 100}) {
		t.Errorf("history %v, %v", all, err)
	}
}

func TestSettingsAreThoseThatChangeValues(t *testing.T) {
	same := ""
	settings := func(p *plan) string { mode, text := p.settings(); return mode + text }
	for i, args := range [][]string{{}, {"--json", "a.json", "--peer", "x=unix:///a"}, {"--rounds", "9"}, {"--berthd-flags", "--nri=false"}, {"--shims", "1,2"}, {"--density", "110"}} {
		p, err := parse(args)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			same = settings(p)
		}
		if got := settings(p); (got == same) != (i < 2) {
			t.Errorf("%q: %s", args, got)
		}
	}
}
