package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sample is the report of a run on a machine that is half as fast as the reference machine.
func sample() *Report {
	r := &Report{Date: "2026-01-02T03:04:05Z", Machine: "2 CPUs, Linux <6>", Engine: "Docker Engine 20.10", Pods: 50, Burst: "20 pods, 10 at a time",
		Sides: map[string]string{"bare": "calls", "berth": "docker 20.10", "containerd": "another & more", "cri-dockerd": "a third"},
		Order: []string{"bare", "berth", "containerd", "cri-dockerd"}, Kind: "2 CPUs", Settings: "20 rounds"}
	for row, bare := range map[string]float64{rowCreate: 20, rowStart: 190, rowExec: 118, rowStatus: 2} {
		r.add(row, "bare", bare)
	}
	for i, v := range []float64{300, 100, 270} {
		r.add(rowRun, "bare", []float64{250, 100, 300}[i])
		r.add(rowRun, "berth", v)
	}
	r.add(rowRun, "containerd", 600)
	r.add(rowRun, "cri-dockerd", 540)
	r.add(rowCreate, "berth", 23)
	r.add(rowStart, "berth", 200)
	r.add(rowPods, "berth", 1.5)
	r.add(rowMemory(50), "berth", 29)
	r.add(of(rowRelist, "itself"), "berth", 0.2)
	return r
}

func TestTargetsAreScaledToTheMachine(t *testing.T) {
	r := sample()
	r.add(rowStop, "berth", 150)
	for row, want := range map[string]result{
		rowRun:        {target: "1 x containerd", scaled: 600, known: true, met: true},
		rowCreate:     {target: "1.1 x bare", scaled: 22, known: true},
		rowStop:       {target: "100", scaled: 200, known: true, met: true},
		rowPods:       {target: "0.7", scaled: 1.4, known: true},
		rowMemory(50): {target: "30", scaled: 30, known: true, met: true},
	} {
		got, ok := r.evaluate(r.row(row))
		got.scaled = float64(int(got.scaled*1000+0.5)) / 1000
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(result{})); !ok || diff != "" {
			t.Errorf("%s: ok %v, difference (-want +got):\n%s", row, ok, diff)
		}
	}
	r.Pods = 10
	if v, ok := r.evaluate(r.row(rowPods)); ok {
		t.Errorf("a list of 10 pods is compared with the target for 50: %v", v)
	}
	if v, ok := r.evaluate(r.row(rowStart)); ok {
		t.Errorf("a row that containerd does not have is compared with it: %v", v)
	}
}

func TestTableShowsMediansRatiosAndTargets(t *testing.T) {
	var out strings.Builder
	if err := sample().write(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2 of 4 targets are met", "take 2 x as long", "of that itself"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, rowRun) {
			want := []string{"ms", "250", "270", "600", "540", "1", "±0.3", "0.5", "±?", "0.56", "±?", "1", "x", "containerd", "600", "yes"}
			if got := strings.Fields(strings.TrimPrefix(line, rowRun)); !cmp.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		}
	}
}

// A written report can be loaded, and the chart is valid XML with special characters in names.
func TestReportIsLoadedAndDrawn(t *testing.T) {
	p := &plan{JSON: filepath.Join(t.TempDir(), "bench.json")}
	r := sample()
	if err := r.writeAll(p, io.Discard); err != nil {
		t.Fatal(err)
	}
	loaded, err := load(p.JSON)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, loaded); diff != "" {
		t.Error(diff)
	}
	var out strings.Builder
	if err := loaded.draw(&out); err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(strings.NewReader(out.String())); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, out.String())
		}
	}
}

func TestInvalidFlagsAreRefused(t *testing.T) {
	for args, want := range map[string]string{
		"--pods 50,20":                           "want increasing numbers",
		"--pods many":                            "want numbers",
		"--peer /run/peer.sock":                  "want unix:///path",
		"--peer Bare=unix:///a":                  "want a name of its own",
		"--peer berth=unix:///a":                 "want a name of its own",
		"--peer a=unix:///a --peer a=unix:///b":  "want a name of its own",
		"--peer-engine other=unix:///run/d.sock": "no runtime of that name is given",
		"--check":                                "--check needs --history FILE",
		"--density 10 --shims 1":                 "give one of them",
		"--shims 1 --rounds 0":                   "at least 1",
		"--burst 0":                              "want at least 1",
		"now":                                    `unexpected argument "now"`,
		"--again /nowhere/b.jsn":                 "no such file",
	} {
		err := run(t.Context(), strings.Fields(args), io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

func TestMissingSocketIsReported(t *testing.T) {
	if err := checkSocket("unix:///nowhere/docker.sock"); err == nil || err.Error() != "there is no socket /nowhere/docker.sock" {
		t.Errorf("got %v", err)
	}
}

func TestCgroupsAreParsed(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	text := "5:pids:/docker/" + id + "\n0::/system.slice/docker-" + id + ".scope\n1:name=systemd:/\n"
	if got := containerIDs(text); !cmp.Equal(got, []string{id, id}) {
		t.Errorf("got %v", got)
	}
}

func TestPageGetsTableAndChart(t *testing.T) {
	page := filepath.Join(t.TempDir(), "bench.md")
	const begin, end = "<!-- results of bench, written by contrib/bench --page -->", "<!-- end of the results of bench -->"
	if err := os.WriteFile(page, []byte("# Before\n"+begin+"old\n"+end+"\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := sample()
	for range 2 { // the second time replaces the first
		if err := r.writePage(page); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# Before\n" + begin, "containerd is another & more. ", "Settings: 20 rounds.", "| " + rowRun + " | ms | 250 | 270 | 600 | 540 | 1 ±0.3 |", "![bench](bench-bench.svg)\n\n" + end + "\nafter\n"} {
		if strings.Count(string(text), want) != 1 {
			t.Errorf("%q is not there once in\n%s", want, text)
		}
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(page), "bench-bench.svg")); err != nil {
		t.Error(err)
	}
	r.Mode = "density"
	if err := r.writePage(page); err == nil || !strings.Contains(err.Error(), "has no place for the results of density") {
		t.Errorf("got %v", err)
	}
}

// The documentation has a place for the results of each mode.
func TestDocumentationHasPlacesForResults(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "docs", "bench.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"bench", "shims", "density", "streams"} {
		for _, mark := range []string{beginMark, endMark} {
			if want := fmt.Sprintf(mark, mode); !strings.Contains(string(text), want) {
				t.Errorf("no line %q", want)
			}
		}
	}
}
