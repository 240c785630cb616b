package network

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// longStatusTimeout is for tests in which the plugins answer: on a busy machine a program may
// take longer than statusTimeout to start.
const longStatusTimeout = 30 * time.Second

func TestStatusRunsPluginsAndCachesResult(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		version, behaviour string
		calls              int
		want               string
	}{
		"ready":             {"1.1.0", ``, 2, ""},
		"not ready":         {"1.1.0", `, "fail": ["STATUS"]`, 1, `is not ready: plugin "fake": STATUS failed as configured`},
		"CNI 1.0":           {"1.0.0", `, "fail": ["STATUS"]`, 0, ""},
		"STATUS is unknown": {"1.1.0", `, "unknown": ["STATUS"]`, 2, ""},
		"no answer":         {"1.1.0", `, "hang": ["STATUS"]`, 1, "is not ready: no answer within 3s"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newNode(t, "fake", "second")
			d.conf("10-a.conflist", `{"cniVersion": "`+tt.version+`", "name": "a", "plugins": [
				{"type": "fake", "callLog": "CALLS"`+tt.behaviour+`}, {"type": "second", "callLog": "CALLS"}]}`)
			n := d.new()
			n.statusTimeout = longStatusTimeout
			if strings.Contains(tt.behaviour, "hang") {
				n.statusTimeout = 3 * time.Second // enough for the plugin to be called
			}
			for range 3 { // the result is cached
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
func TestCanceledStatusIsNotCached(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.conf("10-a.conflist", `{"cniVersion": "1.1.0", "name": "a", "plugins": [{"type": "fake", "callLog": "CALLS"}]}`)
	n := d.new()
	n.statusTimeout = longStatusTimeout
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Status(ctx); err == nil {
		t.Error("got nil with a context that has ended")
	}
	if err := n.Status(t.Context()); err != nil {
		t.Errorf("got %v, want nil", err)
	}
}

func TestStatusIsNotCachedAcrossConfigurations(t *testing.T) {
	d := newNode(t, "fake")
	d.conf("10-a.conflist", `{"cniVersion": "1.1.0", "name": "a", "plugins": [{"type": "fake", "callLog": "CALLS", "fail": ["STATUS"]}]}`)
	n := d.new()
	n.statusTimeout = longStatusTimeout
	if err := n.Status(t.Context()); err == nil {
		t.Fatal("got nil, want not ready")
	}
	d.conf("10-a.conflist", `{"cniVersion": "1.1.0", "name": "a", "plugins": [{"type": "fake", "callLog": "CALLS"}]}`)
	n.conf.Reload()
	if err := n.Status(t.Context()); err != nil {
		t.Errorf("with the new configuration: %v", err)
	}
	if got := len(n.health); got != 1 {
		t.Errorf("the results of %d configurations are cached, want 1", got)
	}
}

// A plugin that starts slowly on a busy node does not make the node not ready at once.
func TestStatusKeepsLastResultOfSlowPlugin(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.conf("10-a.conflist", `{"cniVersion": "1.1.0", "name": "a", "plugins": [{"type": "fake", "callLog": "CALLS", "hang": ["STATUS"]}]}`)
	n := d.new()
	nw, err := n.conf.Select()
	if err != nil {
		t.Fatal(err)
	}
	for age, ready := range map[time.Duration]bool{slowPluginGrace / 2: true, 2 * slowPluginGrace: false} {
		h := n.healthOf(nw)
		h.expires, h.lastAnswer, h.err = time.Time{}, time.Now().Add(-age), nil
		if err := n.Status(t.Context()); (err == nil) != ready {
			t.Errorf("%v after its last answer: %v", age, err)
		}
	}
}
