package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestRatiosAreOfPairs(t *testing.T) {
	for name, c := range map[string]struct {
		bare, berth []float64
		want        comparison
	}{
		"the machine becomes slower": {[]float64{10, 20, 40, 80, 160}, []float64{11, 22, 44, 88, 176}, comparison{1.1, 0, 5}},
		"quartiles":                  {[]float64{1, 1, 1, 1, 1}, []float64{1, 2, 3, 4, 100}, comparison{3, 1, 5}},
		"few pairs":                  {[]float64{1, 1, 1}, []float64{1, 2, 4}, comparison{2, 3, 3}},
		"too few pairs":              {[]float64{1, 1}, []float64{1, 2, 4}, comparison{1.5, 0, 2}},
		"nothing was used":           {[]float64{0, 2, 2}, []float64{1, 2, 4}, comparison{1.5, 0, 2}},
	} {
		r := &Row{Samples: map[string][]float64{"bare": c.bare, "berth": c.berth}}
		if got, ok := r.compare("bare"); !ok || !cmp.Equal(got, c.want, cmpopts.EquateApprox(0, 1e-9)) {
			t.Errorf("%s: got %+v, want %+v", name, got, c.want)
		}
	}
	if _, ok := (&Row{}).compare("bare"); ok {
		t.Error("a row without samples has a ratio")
	}
}

func TestNumbersHaveTheirSignificantDigits(t *testing.T) {
	for v, want := range map[float64]string{1234.5: "1234", 99.96: "100", 12.34: "12.3", 1.234: "1.23", 0.5: "0.5", 0.0456: "0.046", 0.00045: "0.00045", 0: "0", -0.001: "-0.001"} {
		if got := number(v); got != want {
			t.Errorf("%v: got %s, want %s", v, got, want)
		}
	}
}

func TestShimsAreThoseOfTheContainerd(t *testing.T) {
	addresses := []string{"/run/a.sock", "/run/a.sock.ttrpc"}
	const shim, namespace = "/bin/containerd-shim-runc-v2", "-namespace"
	for _, c := range []struct {
		want bool
		line []string
	}{
		{true, []string{shim, namespace, "moby", "-id", "x", "-address", "/run/a.sock"}},
		{false, []string{shim, namespace, "moby", "-id", "x", "-address", "/run/b.sock"}},
		{false, []string{shim, namespace, "moby", "-id", "x", "-address", "/run/a.sock", "start"}},
		{false, []string{shim, namespace, "moby", "-address", "/run/a.sock", "-id", "x", "delete"}},
		{false, []string{shim, "-address"}},
		{false, nil},
	} {
		if got := isShimOf(c.line, addresses); got != c.want {
			t.Errorf("%q: got %v, want %v", c.line, got, c.want)
		}
	}
}

func TestMeterCountsProcessesThatBegin(t *testing.T) {
	first := process{"dockerd", 1}
	m := &meter{first: map[process]float64{first: 2}, last: map[process]float64{first: 5, {"shims", 2}: 1, {"shims", 3}: 0.5}}
	each, sum := m.used()
	if want := map[string]float64{"dockerd": 3, "shims": 1.5}; sum != 4.5 || !cmp.Equal(each, want) {
		t.Errorf("got %v, %v", each, sum)
	}
}
