package main

import (
	"encoding/xml"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sample is a run on a machine that is twice as slow.
func sample() *Report {
	r := &Report{Date: "2026-01-02T03:04:05Z", Machine: "2 CPUs, Linux <6>", Engine: "Docker Engine 20.10", Pods: 50, Burst: "20 pods, 10 at a time",
		Sides: map[string]string{"bare": "calls", "berth": "docker 20.10", "peer": "another & more"}}
	for row, bare := range map[string]float64{rowCreate: 20, rowStart: 190, rowExec: 118, rowStatus: 2} {
		r.add(row, "bare", bare)
	}
	r.add(rowRun, "bare", 250)
	for _, v := range []float64{300, 100, 270} {
		r.add(rowRun, "berth", v)
	}
	r.add(rowRun, "peer", 540)
	r.add(rowStart, "berth", 200)
	r.add(rowPods, "berth", 1.5)
	r.add(rowMemory(50), "berth", 29)
	r.add(of(rowRelist, "itself"), "berth", 0.2)
	return r
}

func TestPromises(t *testing.T) {
	r := sample()
	for row, want := range map[string]verdict{
		rowRun:        {promised: "140", here: 280, known: true, met: true},
		rowStart:      {promised: "1.05 x bare", here: 199.5, known: true},
		rowPods:       {promised: "0.7", here: 1.4, known: true},
		rowMemory(50): {promised: "30", here: 30, known: true, met: true},
	} {
		got, ok := r.judge(r.row(row))
		got.here = float64(int(got.here*1000+0.5)) / 1000
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(verdict{})); !ok || diff != "" {
			t.Errorf("%s: %v, want the first of\n%s", row, ok, diff)
		}
	}
	r.Pods = 10
	if v, ok := r.judge(r.row(rowPods)); ok {
		t.Errorf("a list of 10 pods is judged by what is promised of 50: %v", v)
	}
}

func TestTable(t *testing.T) {
	var out strings.Builder
	if err := sample().write(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2 of 4 promises are met", "take 2 x as long", "of that itself"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, rowRun) {
			want := []string{"ms", "250", "270", "540", "1.08", "0.5", "140", "280", "yes"}
			if got := strings.Fields(strings.TrimPrefix(line, rowRun)); !cmp.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		}
	}
}

// What was written is read again, and the chart is XML whatever things are called.
func TestFiles(t *testing.T) {
	p := &plan{JSON: filepath.Join(t.TempDir(), "bench.json")}
	r := sample()
	if err := r.publish(p, io.Discard); err != nil {
		t.Fatal(err)
	}
	again, err := load(p.JSON)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, again); diff != "" {
		t.Error(diff)
	}
	var out strings.Builder
	if err := again.draw(&out); err != nil {
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

func TestBadFlags(t *testing.T) {
	for args, want := range map[string]string{
		"--pods 50,20":           "each number above the one before",
		"--pods many":            "want numbers",
		"--peer /run/peer.sock":  "want unix:///path",
		"--burst 0":              "want at least 1",
		"now":                    `what is "now"?`,
		"--again /nowhere/b.jsn": "no such file",
	} {
		err := run(t.Context(), strings.Fields(args), io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

func TestNobodyThere(t *testing.T) {
	if err := listens("unix:///nowhere/docker.sock"); err == nil || err.Error() != "there is no socket /nowhere/docker.sock" {
		t.Errorf("got %v", err)
	}
}

func TestProcesses(t *testing.T) {
	got, err := parseStat([]byte("42 (a) b (c) S 7 42 42 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 1 0 100"))
	if want := (stat{pid: 42, parent: 7, name: "a) b (c", cpu: 2}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if _, err := parseStat([]byte("42 (a")); err == nil {
		t.Error("half a line is taken")
	}
	id := strings.Repeat("0123456789abcdef", 4)
	text := "5:pids:/docker/" + id + "\n0::/system.slice/docker-" + id + ".scope\n1:name=systemd:/\n"
	if got := idsIn(text); !cmp.Equal(got, []string{id, id}) {
		t.Errorf("got %v", got)
	}
}
