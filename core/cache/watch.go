package cache

import (
	"context"
	"log/slog"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Subscribe calls send for every state change of a sandbox or container from now on, in
// their order, until ctx ends or send fails, and returns that error. Changes during a loss
// of the connection to Docker are sent after the next sync. If send is too slow, the oldest
// events are dropped; the kubelet relists anyway. It serves GetContainerEvents of the CRI.
func (c *Cache) Subscribe(ctx context.Context, send func(*runtimeapi.ContainerEventResponse) error) error {
	return c.events.Subscribe(ctx, send, func(n int) {
		c.log.Warn("container events dropped: the subscriber reads too slowly", slog.Int("dropped", n))
	})
}

// A transition is one step in the life cycle of a container or sandbox.
type transition struct {
	kind runtimeapi.ContainerEventType
	at   int64 // Unix nanoseconds; 0 for the time at which it is emitted
}

// The kinds of transitions.
const (
	created = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
	started = runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
	stopped = runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
	deleted = runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
)

// timestamps are the times at which a container was created, started and stopped, in
// Unix nanoseconds; 0 if it was not.
type timestamps struct{ created, started, stopped int64 }

func (c *Container) timestamps() timestamps {
	t := timestamps{created: c.Status.GetCreatedAt(), started: c.Status.GetStartedAt()}
	if c.Row.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
		t.stopped = c.Status.GetFinishedAt()
	}
	return t
}

func (s *Sandbox) timestamps() timestamps {
	return timestamps{created: s.Row.GetCreatedAt(), started: s.StartedAt, stopped: s.FinishedAt}
}

// diff returns the transitions between two inspections; before is nil without an earlier
// one. A restart between the two is reported with its stop, whose time is not known.
func diff(before *timestamps, now timestamps) []transition {
	var steps []transition
	old := timestamps{}
	if before != nil {
		old = *before
	} else {
		steps = append(steps, transition{created, now.created})
	}
	restarted := now.started != old.started
	if restarted && old.started != 0 && old.stopped == 0 {
		steps = append(steps, transition{kind: stopped})
	}
	if restarted && now.started != 0 {
		steps = append(steps, transition{started, now.started})
	}
	if now.stopped != 0 && (restarted || old.stopped == 0) {
		steps = append(steps, transition{stopped, now.stopped})
	}
	return steps
}

// diffRemoved returns the transitions of a container that has been removed, after those
// up to emitted. A container for which no event was emitted gets none now.
func diffRemoved(emitted *timestamps) []transition {
	switch {
	case emitted == nil:
		return nil
	case emitted.started != 0 && emitted.stopped == 0:
		return []transition{{kind: stopped}, {kind: deleted}}
	default:
		return []transition{{kind: deleted}}
	}
}

// emitLocked sends transitions of the container or sandbox id to all subscribers, with
// the status of the sandbox that it belongs to and of all its containers.
func (c *Cache) emitLocked(id, sandbox string, transitions []transition) {
	if !c.events.HasSubscribers() || len(transitions) == 0 {
		return
	}
	var pod *runtimeapi.PodSandboxStatus
	if e, ok := c.sandboxes[sandbox]; ok {
		pod = e.value.Status
	}
	var statuses []*runtimeapi.ContainerStatus
	for _, e := range c.containers {
		if e.value.Row.GetPodSandboxId() == sandbox {
			statuses = append(statuses, e.value.Status)
		}
	}
	for _, t := range transitions {
		if t.at == 0 {
			t.at = time.Now().UnixNano()
		}
		c.events.Send(&runtimeapi.ContainerEventResponse{
			ContainerId: id, ContainerEventType: t.kind, CreatedAt: t.at, PodSandboxStatus: pod, ContainersStatuses: statuses,
		})
	}
}
