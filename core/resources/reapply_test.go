package resources

import (
	"fmt"
	"testing"
)

func TestEachPodIsWrittenOnceAfterItsStarts(t *testing.T) {
	m := New(Config{})
	take := func(want string) {
		t.Helper()
		select {
		case <-m.triggered:
		default:
			t.Error("Run is not woken")
		}
		if got := fmt.Sprint(m.takeTriggered()); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	m.TriggerReapply("b")
	m.TriggerReapply("a")
	m.TriggerReapply("b")
	take("[a b]")
	m.TriggerReapply("a")
	m.TriggerReapply(allPods)
	m.TriggerReapply("b")
	take("[" + allPods + "]")
	if left := m.takeTriggered(); len(left) > 0 {
		t.Errorf("left: %s", left)
	}
}
