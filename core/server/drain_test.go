package server

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
)

// TestNoCallFailsWhenDaemonRestarts starts one server after the other on a socket that stays
// open, as with systemd's socket activation, while clients connect. Every call succeeds.
func TestNoCallFailsWhenDaemonRestarts(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "cri.sock")
	kept, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	file, err := kept.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	log := slog.New(slog.DiscardHandler)
	docker, err := engine.New(engine.Config{Host: "unix:///none"}, log)
	if err != nil {
		t.Fatal(err)
	}

	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var mu sync.Mutex // guards following
	calls := 0
	for range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
				if err != nil {
					t.Error(err)
					return
				}
				limited, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				_, err = runtimeapi.NewRuntimeServiceClient(conn).Version(limited, &runtimeapi.VersionRequest{})
				cancel()
				conn.Close()
				if err == nil || !strings.Contains(err.Error(), "not connected yet") { // the answer of a server
					t.Errorf("a call was not answered: %v", err)
					return
				}
				mu.Lock()
				calls++
				mu.Unlock()
			}
		})
	}
	for range 100 {
		l, err := net.FileListener(file)
		if err != nil {
			t.Fatal(err)
		}
		life, end := context.WithTimeout(ctx, 10*time.Millisecond)
		if err := New(Services{Engine: docker}, Info{}, log).Serve(life, l); err != nil {
			t.Fatal(err)
		}
		end()
	}
	// The last calls wait for a server.
	stop()
	l, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	last, end := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- New(Services{Engine: docker}, Info{}, log).Serve(last, l) }()
	clients.Wait()
	end()
	if err := <-served; err != nil {
		t.Error(err)
	}
	t.Logf("%d calls", calls)
}
