package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/docker/docker/api/types/system"

	"berth/core/engine"
	"berth/core/engine/enginetest"
	"berth/core/userns"
)

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// lines returns the lines about user namespaces.
func (l *lockedBuffer) lines() (lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if strings.Contains(line, "user namespaces") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// A line is logged when the answer changes, and not for each connection.
func TestUserNamespacesAreLoggedWhenTheAnswerChanges(t *testing.T) {
	e := enginetest.New(t)
	docker := e.Connect(t)
	var buf lockedBuffer
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	support := userns.Support{Dir: "/run/berth/oci", Probe: func(f engine.Features) error {
		if f.Kernel == "old" {
			return errors.New("user namespaces need another kernel")
		}
		return nil
	}}
	go func() { done <- logUserNamespaces(ctx, docker, support, slog.New(slog.NewTextHandler(&buf, nil))) }()
	reload := func(change func(*system.Info)) {
		t.Helper()
		before, err := docker.Conn()
		if err != nil {
			t.Fatal(err)
		}
		e.Reload(change)
		enginetest.Until(t, "there is no new connection", func() bool {
			now, err := docker.Conn()
			return err == nil && now != before
		})
	}
	install := func(i *system.Info) {
		i.KernelVersion = "new"
		i.Runtimes["berth"] = system.RuntimeWithStatus{Runtime: system.Runtime{Path: "/usr/libexec/berth/berth-oci"}}
	}
	for n, step := range []struct {
		change func(*system.Info)
		want   string
	}{
		{nil, "level=INFO msg=\"pods cannot have user namespaces\" reason=\"user namespaces need the OCI runtime berth, which Docker does not have: run berthd runtime install"},
		{install, "level=INFO msg=\"pods can have user namespaces\" runtime=berth"},
		{func(i *system.Info) { i.KernelVersion = "old" }, "msg=\"pods cannot have user namespaces\" reason=\"user namespaces need another kernel\""},
	} {
		if step.change != nil {
			reload(step.change)
		}
		enginetest.Until(t, "nothing is logged", func() bool { return len(buf.lines()) > n })
		reload(func(*system.Info) {}) // the same answer again
		if lines := buf.lines(); len(lines) != n+1 || !strings.Contains(lines[n], step.want) {
			t.Fatalf("step %d: %q, want one more line with %q", n, lines, step.want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
