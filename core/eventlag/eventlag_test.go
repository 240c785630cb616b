package eventlag

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// The lag is measured from the first event after which the container has not been inspected.
func TestLagIsThatOfTheFirstPendingEvent(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	l := New(reg)
	if l.oldest() != 0 {
		t.Errorf("the oldest change is %v old, want none without events", l.oldest())
	}
	l.Event("a", time.Now().Add(-time.Minute))
	l.Event("a", time.Now())
	l.Event("b", time.Now().Add(time.Hour)) // by the clock of another machine
	if got := l.oldest(); got < time.Minute || got > 2*time.Minute {
		t.Errorf("the oldest change is %v old, want a minute", got)
	}
	l.Applied("a")
	l.Applied("b")
	l.Applied("c") // without an event
	if n := testutil.CollectAndCount(l.seconds); n != 1 || l.oldest() != 0 {
		t.Errorf("%d series, the oldest change is %v old", n, l.oldest())
	}
	list, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		if h := f.GetMetric()[0].GetHistogram(); h != nil && (h.GetSampleCount() != 2 || h.GetSampleSum() < 60) {
			t.Errorf("%v", h)
		}
	}
	l.Event("d", time.Now().Add(-time.Minute))
	l.Reset() // a break of the event stream, after which there is a sync
	if l.oldest() != 0 {
		t.Errorf("after a break the oldest change is %v old, want none", l.oldest())
	}
}
