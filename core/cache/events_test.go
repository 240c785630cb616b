package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestBetween(t *testing.T) {
	for name, tt := range map[string]struct {
		before *life
		now    life
		want   string
	}{
		"created":                 {nil, life{1, 0, 0}, "CREATED@1"},
		"created and started":     {nil, life{1, 2, 0}, "CREATED@1 STARTED@2"},
		"a whole life":            {nil, life{1, 2, 3}, "CREATED@1 STARTED@2 STOPPED@3"},
		"started":                 {&life{1, 0, 0}, life{1, 2, 0}, "STARTED@2"},
		"started and stopped":     {&life{1, 0, 0}, life{1, 2, 3}, "STARTED@2 STOPPED@3"},
		"could not be started":    {&life{1, 0, 0}, life{1, 0, 3}, "STOPPED@3"},
		"stopped":                 {&life{1, 2, 0}, life{1, 2, 3}, "STOPPED@3"},
		"nothing":                 {&life{1, 2, 3}, life{1, 2, 3}, ""},
		"still running":           {&life{1, 2, 0}, life{1, 2, 0}, ""},
		"started again":           {&life{1, 2, 3}, life{1, 4, 0}, "STARTED@4"},
		"started again unseen":    {&life{1, 2, 0}, life{1, 4, 0}, "STOPPED@0 STARTED@4"},
		"started again and ended": {&life{1, 2, 3}, life{1, 4, 5}, "STARTED@4 STOPPED@5"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, m := range between(tt.before, tt.now) {
				kind := strings.TrimSuffix(strings.TrimPrefix(m.what.String(), "CONTAINER_"), "_EVENT")
				got = append(got, fmt.Sprintf("%s@%d", kind, m.at))
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("got %q, want %q", s, tt.want)
			}
		})
	}
}

// A subscriber that does not read must hold up nobody, and must not grow
// without bounds.
func TestASlowSubscriber(t *testing.T) {
	t.Parallel()
	v := New(Config{}, nil, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	reading, read := make(chan bool), 0
	done := make(chan error)
	go func() {
		done <- v.Subscribe(ctx, func(*runtimeapi.ContainerEventResponse) error {
			if read == 0 {
				reading <- true
				<-reading
			}
			read++
			if read == 1+mostUntold {
				cancel()
			}
			return nil
		})
	}()
	for subscribed := false; !subscribed; time.Sleep(time.Millisecond) {
		v.mu.Lock()
		subscribed = len(v.subscribers) == 1
		v.mu.Unlock()
	}
	push := func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.tell("c", "s", []moment{{started, 1}})
	}
	push()
	<-reading
	for range 3 * mostUntold {
		push()
	}
	reading <- true
	if err := <-done; !errors.Is(err, context.Canceled) || read != 1+mostUntold {
		t.Errorf("told of %d changes, %v", read, err)
	}
	if len(v.subscribers) != 0 {
		t.Error("still subscribed")
	}
}
