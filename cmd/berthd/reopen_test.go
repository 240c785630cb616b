package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/streaming"
)

// noStreams joins nothing.
type noStreams struct{ streaming.Runtime }

// Anyone who takes a fixed port of the streams while berthd restarts takes the streams, and
// nothing else, until the port is free.
func TestStreamsAreUnavailableWhileTheirPortIsTaken(t *testing.T) {
	t.Parallel()
	holder, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	var out lines
	log := slog.New(slog.NewTextHandler(&out, nil))
	s, err := serveStreams(Config{StreamingAddr: holder.Addr().String()}, noStreams{}, log)
	if err != nil {
		t.Fatalf("the daemon does not come up: %v", err)
	}
	s.interval = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for name, ask := range map[string]func() error{
		"exec": func() error {
			_, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"sh"}, Stdout: true})
			return err
		},
		"attach": func() error {
			_, err := s.Attach(&runtimeapi.AttachRequest{ContainerId: "c", Stdout: true})
			return err
		},
		"port-forward": func() error {
			_, err := s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p"})
			return err
		},
	} {
		if err := ask(); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "streaming-bind-addr") || !strings.Contains(err.Error(), "in use") {
			t.Errorf("%s: %v, want Unavailable and why", name, err)
		}
	}
	holder.Close()
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		got, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"sh"}, Stdout: true})
		if err == nil {
			if !strings.Contains(got.GetUrl(), holder.Addr().String()) {
				t.Errorf("at %s, want %s", got.GetUrl(), holder.Addr())
			}
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("not served once the port is free: %v", err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := strings.Count(out.String(), "taken and"); n != 1 {
		t.Errorf("said %d times:\n%s", n, out.String())
	}
}

// What no time will mend ends the daemon at its start.
func TestWrongStreamsAreAnErrorAtOnce(t *testing.T) {
	_, err := serveStreams(Config{StreamingTLS: streaming.KeyPair{Cert: "/none", Key: "/none"}}, noStreams{}, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "/none") {
		t.Errorf("%v", err)
	}
	_, err = reopening("x", func() (nobody, error) { return nobody{}, errors.New("no") }, func(nobody) {}, slog.New(slog.DiscardHandler))
	if err == nil {
		t.Error("an error of another kind is taken for an address that is in use")
	}
}

func TestWarnsOfStreamsWithoutTLS(t *testing.T) {
	for addr, want := range map[string]bool{"": false, "127.0.0.1": false, "127.0.0.1:0": false, "0.0.0.0": true, "0.0.0.0:0": true, "[::1]:0": false} {
		var out bytes.Buffer
		s, err := serveStreams(Config{StreamingAddr: addr}, noStreams{}, slog.New(slog.NewTextHandler(&out, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
		if got := strings.Contains(out.String(), "without TLS"); got != want {
			t.Errorf("%q: %s", addr, &out)
		}
	}
}

// lines are those of a log that is written and read at a time.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
