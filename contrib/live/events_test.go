package live

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A listener records the events of GetContainerEvents.
type listener struct {
	mu     sync.Mutex // guards events
	events []*runtimeapi.ContainerEventResponse
}

// listen subscribes for as long as the test runs.
func (n *node) listen() *listener {
	n.t.Helper()
	l := &listener{}
	stream, err := n.runtime.GetContainerEvents(n.t.(*testing.T).Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	go func() {
		for {
			e, err := stream.Recv()
			if err != nil {
				return
			}
			l.mu.Lock()
			l.events = append(l.events, e)
			l.mu.Unlock()
		}
	}()
	time.Sleep(100 * time.Millisecond) // until it is subscribed
	return l
}

// of returns the kinds of the events of one container or sandbox.
func (l *listener) of(id string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var kinds []string
	for _, e := range l.events {
		if e.GetContainerId() == id {
			kinds = append(kinds, strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(e.GetContainerEventType().String(), "CONTAINER_"), "_EVENT")))
		}
	}
	return kinds
}

// TestEventsFollowEveryChange requires one event for every change, in order.
func TestEventsFollowEveryChange(t *testing.T) {
	n := newNode(t)
	l, second := n.listen(), n.listen()
	config := n.pod("events")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	short := n.create(pod, config, shell("short", "true"))
	long := n.create(pod, config, shell("long", "exec sleep 1000"))
	n.until(5*time.Second, "no end", func() bool { return slices.Contains(l.of(short), "stopped") })
	if _, err := n.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: long}); err != nil {
		t.Fatal(err)
	}
	n.remove(pod)
	want := fmt.Sprint([]string{"created", "started", "stopped", "deleted"})
	for name, id := range map[string]string{"sandbox": pod, "short container": short, "long container": long} {
		for _, l := range []*listener{l, second} {
			n.until(5*time.Second, "not deleted", func() bool { return slices.Contains(l.of(id), "deleted") })
			if got := fmt.Sprint(l.of(id)); got != want {
				t.Errorf("%s: %v, want %v", name, got, want)
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if e.GetPodSandboxStatus().GetMetadata().GetUid() != "uid-events" || e.GetCreatedAt() == 0 {
			t.Errorf("event without its pod or time: %v", e)
		}
		for _, c := range e.GetContainersStatuses() {
			if e.GetContainerEventType() == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT && c.GetId() == e.GetContainerId() &&
				c.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
				t.Errorf("stopped, but its status is %v", c.GetState())
			}
		}
	}
}

// TestEventsContinueAfterDockerRestarts has containers end while Docker cannot be reached: it
// is events as soon as it can be.
func TestEventsContinueAfterDockerRestarts(t *testing.T) {
	n := newNode(t)
	l := n.listen()
	config := n.pod("break")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	ends := n.create(pod, config, shell("ends", "exec sleep 1000"))
	goes := n.create(pod, config, shell("goes", "exec sleep 1000"))
	stays := n.create(pod, config, shell("stays", "exec sleep 1000"))
	n.proxy.close()
	ctx := context.Background()
	if err := n.docker.ContainerKill(ctx, ends, "KILL"); err != nil {
		t.Fatal(err)
	}
	if err := n.docker.ContainerRemove(ctx, goes, container.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	n.proxy.open()
	n.until(10*time.Second, "not events", func() bool { return slices.Contains(l.of(ends), "stopped") && slices.Contains(l.of(goes), "deleted") })
	for id, want := range map[string][]string{
		ends:  {"created", "started", "stopped"},
		goes:  {"created", "started", "stopped", "deleted"},
		stays: {"created", "started"},
	} {
		if got := l.of(id); !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	n.remove(pod)
}

// A daemon that is events to stop does not wait for subscribers.
func TestEventStreamsEndWithTheDaemon(t *testing.T) {
	n := newNode(t)
	n.listen()
	begin := time.Now()
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-n.done
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("took %v to stop", took)
	}
}
