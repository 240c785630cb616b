package daemon

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

// noStreams is a runtime without containers.
type noStreams struct{ streaming.Runtime }

// While another process has the fixed port of the streams, streams are Unavailable and everything
// else works; they are served once the port is free.
func TestStreamsAreUnavailableWhileTheirPortIsTaken(t *testing.T) {
	t.Parallel()
	holder, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	var out lines
	log := slog.New(slog.NewTextHandler(&out, nil))
	s, err := listenStreams(Streaming{Addr: holder.Addr().String()}, noStreams{}, log)
	if err != nil {
		t.Fatalf("the daemon does not start: %v", err)
	}
	s.interval = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for name, call := range map[string]func() error{
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
		if err := call(); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "streaming-bind-addr") || !strings.Contains(err.Error(), "in use") {
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
	if n := strings.Count(out.String(), "cannot listen"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, out.String())
	}
}

// An error that does not go away by itself ends the daemon at its start.
func TestInvalidStreamingConfigIsAnErrorAtStart(t *testing.T) {
	_, err := listenStreams(Streaming{TLS: streaming.TLSFiles{Cert: "/none", Key: "/none"}}, noStreams{}, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "/none") {
		t.Errorf("%v", err)
	}
	_, err = newReopener("x", func() (noServer, error) { return noServer{}, errors.New("no") }, func(noServer) {}, slog.New(slog.DiscardHandler))
	if err == nil {
		t.Error("an error of another kind is taken for an address that is in use")
	}
}

// lines is a log that can be written and read concurrently.
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
