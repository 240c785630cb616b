package cgroupstats

import (
	"math"
	"os"
	"testing"
	"time"
)

func TestOpenFileLimit(t *testing.T) {
	if limit, err := OpenFileLimit(os.Getpid()); err != nil || limit == nil || *limit < 10 {
		t.Errorf("%v, %v", limit, err)
	}
	if _, err := OpenFileLimit(math.MaxInt32); !IsExited(err) {
		t.Errorf("process that does not exist: %v", err)
	}
}

func TestFDCounterRecountsOnlyWhenDue(t *testing.T) {
	f := NewFDCounter()
	pids := []int{os.Getpid(), math.MaxInt32}
	soon := time.Now().Add(time.Minute)
	if n := f.Count(t.Context(), "c", pids, soon); n == nil || n.Files < 3 {
		t.Errorf("%+v", n)
	}
	f.last["c"] = &FDs{due: time.Now().Add(time.Hour), Files: 7, Sockets: 3}
	if n := f.Count(t.Context(), "c", pids, soon); n.Files != 7 || n.Sockets != 3 {
		t.Errorf("%+v, counted before it was due", n)
	}
	f.Prune(func(id string) bool { return id != "c" })
	if len(f.last) != 0 {
		t.Errorf("%+v after Prune", f.last)
	}
}

// A container with more open files than can be counted in a slice has the partial count,
// is left alone for long, and takes no time from the next container.
func TestContainerWithManyOpenFilesTakesOneSlice(t *testing.T) {
	const opened = 3 * fdBatch
	for range opened {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Skip(err)
		}
		defer f.Close()
	}
	counter := NewFDCounter()
	counter.slice = time.Nanosecond
	own := []int{os.Getpid()}
	soon := time.Now().Add(time.Minute)
	n := counter.Count(t.Context(), "many", own, soon)
	if n == nil || n.Files == 0 || n.Files >= opened {
		t.Errorf("%+v, want a part of %d", n, opened)
	}
	if wait := time.Until(n.due); wait < fdRetryInterval/2 {
		t.Errorf("counted again after %v", wait)
	}
	counter.slice = time.Minute
	if n := counter.Count(t.Context(), "other", own, soon); n.Files <= opened {
		t.Errorf("next container: %+v", n)
	}
	// Once the time for all containers is over, the result is the last count, nil rather
	// than 0 if there is none.
	past := time.Now().Add(-time.Second)
	if n := counter.Count(t.Context(), "third", own, past); n != nil {
		t.Errorf("without time: %+v", n)
	}
	counter.last["third"] = &FDs{Files: 7}
	if n := counter.Count(t.Context(), "third", own, past); n == nil || n.Files != 7 {
		t.Errorf("without time: %+v", n)
	}
}
