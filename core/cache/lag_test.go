package cache

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// The lag counts from the first event that has not been looked at.
func TestLag(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	l := newLag(reg)
	if l.oldest() != 0 {
		t.Errorf("nothing was heard, and yet a change is %v old", l.oldest())
	}
	l.heard("a", time.Now().Add(-time.Minute))
	l.heard("a", time.Now())
	l.heard("b", time.Now().Add(time.Hour)) // by another clock
	if got := l.oldest(); got < time.Minute || got > 2*time.Minute {
		t.Errorf("the oldest change is %v old, want a minute", got)
	}
	l.seen("a")
	l.seen("b")
	l.seen("c") // of which nothing was heard
	if n := testutil.CollectAndCount(l.times); n != 1 || l.oldest() != 0 {
		t.Errorf("%d series, a change %v old", n, l.oldest())
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
	l.heard("d", time.Now().Add(-time.Minute))
	l.clear() // a break: all is looked at anew
	if l.oldest() != 0 {
		t.Errorf("after a break a change is %v old", l.oldest())
	}
}
