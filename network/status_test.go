package network

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// slowStart is for tests in which the plugins do answer: on a busy machine a program may take
// longer than statusTimeout to start.
const slowStart = 30 * time.Second

func TestPluginsAreAskedForTheirStatus(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		version, behaviour string
		calls              int
		want               string
	}{
		"well":                   {"1.1.0", ``, 2, ""},
		"not well":               {"1.1.0", `, "fail": ["STATUS"]`, 1, `is not ready: plugin "fake": STATUS is not my day`},
		"too old to be asked":    {"1.0.0", `, "fail": ["STATUS"]`, 0, ""},
		"does not know STATUS":   {"1.1.0", `, "unknown": ["STATUS"]`, 2, ""},
		"does not answer at all": {"1.1.0", `, "hang": ["STATUS"]`, 1, "is not ready: no answer within 3s"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newNode(t, "fake", "second")
			d.conf("10-a.conflist", `{"cniVersion": "`+tt.version+`", "name": "a", "plugins": [
				{"type": "fake", "notes": "NOTES"`+tt.behaviour+`}, {"type": "second", "notes": "NOTES"}]}`)
			n := d.new()
			n.statusTimeout = slowStart
			if strings.Contains(tt.behaviour, "hang") {
				n.statusTimeout = 3 * time.Second // in which it has been called, at least
			}
			for range 3 { // the answer is believed for a while
				err := n.Status(t.Context())
				switch {
				case tt.want == "":
					if err != nil {
						t.Errorf("got %v, want nil", err)
					}
				case err == nil || !strings.HasSuffix(err.Error(), tt.want):
					t.Errorf("got %v, want ... %s", err, tt.want)
				case !errdefs.IsUnavailable(err):
					t.Errorf("%v is not of kind Unavailable", err)
				}
			}
			if got := len(d.calls()); got != tt.calls {
				t.Errorf("got %d calls of plugins, want %d", got, tt.calls)
			}
		})
	}
}

// A caller that hangs up says nothing about the plugins.
func TestStatusOfACallerInAHurry(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.conf("10-a.conflist", `{"cniVersion": "1.1.0", "name": "a", "plugins": [{"type": "fake", "notes": "NOTES"}]}`)
	n := d.new()
	n.statusTimeout = slowStart
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Status(ctx); err == nil {
		t.Error("got nil with a context that has ended")
	}
	if err := n.Status(t.Context()); err != nil {
		t.Errorf("got %v, want nil", err)
	}
}

// A new configuration is asked at once.
func TestStatusAfterAChange(t *testing.T) {
	d := newNode(t, "fake")
	d.conf("10-a.conflist", `{"cniVersion": "1.1.0", "name": "a", "plugins": [{"type": "fake", "notes": "NOTES", "fail": ["STATUS"]}]}`)
	n := d.new()
	n.statusTimeout = slowStart
	run(t, n)
	if err := n.Status(t.Context()); err == nil {
		t.Fatal("got nil, want not ready")
	}
	d.conf("10-a.conflist", `{"cniVersion": "1.1.0", "name": "a", "plugins": [{"type": "fake", "notes": "NOTES"}]}`)
	start := time.Now()
	eventually(t, "it is ready", func() bool { return n.Status(t.Context()) == nil })
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A plugin that starts slowly on a busy node does not make it not ready at once.
func TestStatusOfASlowPlugin(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.conf("10-a.conflist", `{"cniVersion": "1.1.0", "name": "a", "plugins": [{"type": "fake", "notes": "NOTES", "hang": ["STATUS"]}]}`)
	n := d.new()
	nw, err := n.choose()
	if err != nil {
		t.Fatal(err)
	}
	for age, ready := range map[time.Duration]bool{slowFor / 2: true, 2 * slowFor: false} {
		nw.health.until, nw.health.heard, nw.health.err = time.Time{}, time.Now().Add(-age), nil
		if err := n.Status(t.Context()); (err == nil) != ready {
			t.Errorf("%v after its last answer: %v", age, err)
		}
	}
}
