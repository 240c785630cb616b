package logs_test

import (
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"berth/core/logs"
)

func TestLagGrowsWhileLogCannotBeWritten(t *testing.T) {
	t.Parallel()
	n := newNode(t, logs.ModeCRI)
	reg := prometheus.NewPedanticRegistry()
	if err := n.logs.Export(reg); err != nil {
		t.Fatal(err)
	}
	lag := func() float64 {
		list, err := reg.Gather()
		if err != nil || len(list) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		return list[0].GetMetric()[0].GetGauge().GetValue()
	}
	n.create()
	if err := os.Remove(n.path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(n.path, 0o755); err != nil {
		t.Fatal(err)
	}
	n.printLines(3)
	n.logs.Observe(t.Context(), n.inspected(true))
	limit := time.Now().Add(10 * time.Second)
	for ; lag() < 0.3; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("the log cannot be written, but the lag is %v", lag())
		}
	}
	if err := os.Remove(n.path); err != nil {
		t.Fatal(err)
	}
	n.waitForContent(n.path, wantRecords(1, 3))
	for ; lag() != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit.Add(10 * time.Second)) {
			t.Fatalf("everything is written, but the lag is %v", lag())
		}
	}
}
