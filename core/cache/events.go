package cache

import (
	"context"
	"log/slog"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mostUntold is how many changes wait for a subscriber. A kubelet that has not
// read so many will look at everything itself, as it does every few minutes.
const mostUntold = 4096

// A subscriber is told of what changes from now on.
type subscriber struct {
	mu     sync.Mutex // guards following
	untold []*runtimeapi.ContainerEventResponse
	lost   int
	more   chan struct{} // told when there is something in untold
}

// push never waits.
func (s *subscriber) push(e *runtimeapi.ContainerEventResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.untold) >= mostUntold {
		s.untold = s.untold[1:]
		s.lost++
	}
	s.untold = append(s.untold, e)
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// take returns what has not been told yet, and how much of it was lost.
func (s *subscriber) take() (untold []*runtimeapi.ContainerEventResponse, lost int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	untold, lost = s.untold, s.lost
	s.untold, s.lost = nil, 0
	return untold, lost
}

// Subscribe calls send for every change of a sandbox or container from now on, in
// their order, until ctx ends or send fails. What has changed while the
// Engine was away is told when it is back. A slow send delays nobody; what it
// is too slow for it is not told.
func (v *Cache) Subscribe(ctx context.Context, send func(*runtimeapi.ContainerEventResponse) error) error {
	s := &subscriber{more: make(chan struct{}, 1)}
	v.mu.Lock()
	v.subscribers[s] = true
	v.mu.Unlock()
	defer func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.subscribers, s)
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.more:
		}
		untold, lost := s.take()
		if lost > 0 {
			v.log.Warn("a subscriber is too slow for the changes there are", slog.Int("lost", lost))
		}
		for _, e := range untold {
			if err := send(e); err != nil {
				return err
			}
		}
	}
}

// A moment is something that has happened to a container or sandbox.
type moment struct {
	what runtimeapi.ContainerEventType
	at   int64 // Unix nanoseconds; 0 for now
}

// The kinds of moments.
const (
	created = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
	started = runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
	stopped = runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
	deleted = runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
)

// A life is when a container was created, started and stopped, in Unix
// nanoseconds, 0 for not.
type life struct{ created, started, stopped int64 }

func (c *Container) life() life {
	l := life{created: c.Status.GetCreatedAt(), started: c.Status.GetStartedAt()}
	if c.Row.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
		l.stopped = c.Status.GetFinishedAt()
	}
	return l
}

func (c *Container) name() string { return c.Name }
func (s *Sandbox) name() string   { return s.Name }

func (s *Sandbox) life() life {
	return life{created: s.Row.GetCreatedAt(), started: s.StartedAt, stopped: s.FinishedAt}
}

// between returns the moments that lead from one look to the next. Several may
// have passed in between; none is left out that a container must have had.
func between(before *life, now life) []moment {
	var m []moment
	was := life{}
	if before != nil {
		was = *before
	} else {
		m = append(m, moment{created, now.created})
	}
	again := now.started != was.started
	if again && was.started != 0 && was.stopped == 0 {
		m = append(m, moment{what: stopped}) // and has been started since
	}
	if again && now.started != 0 {
		m = append(m, moment{started, now.started})
	}
	if now.stopped != 0 && (again || was.stopped == 0) {
		m = append(m, moment{stopped, now.stopped})
	}
	return m
}

// tell pushes moments of the container or sandbox id, of the pod of a sandbox,
// to all who want to know. v.mu is held.
func (v *Cache) tell(id, sandbox string, moments []moment) {
	if len(v.subscribers) == 0 || len(moments) == 0 {
		return
	}
	var pod *runtimeapi.PodSandboxStatus
	if e, ok := v.sandboxes[sandbox]; ok {
		pod = e.seen.Status
	}
	var inside []*runtimeapi.ContainerStatus
	for _, e := range v.containers {
		if e.seen.Row.GetPodSandboxId() == sandbox {
			inside = append(inside, e.seen.Status)
		}
	}
	for _, m := range moments {
		if m.at == 0 {
			m.at = time.Now().UnixNano()
		}
		e := &runtimeapi.ContainerEventResponse{
			ContainerId: id, ContainerEventType: m.what, CreatedAt: m.at, PodSandboxStatus: pod, ContainersStatuses: inside,
		}
		for s := range v.subscribers {
			s.push(e)
		}
	}
}

// end returns the moments of a container that is no more, of which events have been
// emitted up to l. One that nobody has heard of ends without any.
func end(l *life) []moment {
	if l == nil {
		return nil
	}
	if l.started != 0 && l.stopped == 0 {
		return []moment{{what: stopped}, {what: deleted}}
	}
	return []moment{{what: deleted}}
}
