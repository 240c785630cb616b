// Package exitlog logs the exits of containers.
//
// A Log writes one line for each exit, however the container was ended, from the changes of the cache. The time of the
// last one is stored, so that after a start of the daemon the exits meanwhile are logged, and earlier
// ones are not logged again.
package exitlog

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/atomicfile"
	"berth/core/cache"
	"berth/core/changes"
	"berth/core/panics"
	"berth/core/sleep"
)

// retryInterval is how often a Log checks for the first sync of the cache.
const retryInterval = time.Second

// A Log logs the exits of containers. Run must be called once.
type Log struct {
	cache  *cache.Cache
	file   string // with the time of the last exit that was logged
	log    *slog.Logger
	known  map[string]slog.Attr // what to log of a container, by ID
	logged map[string]int64     // finish time of the last exit that was logged, by container ID
	latest time.Time            // what is in file
}

// New returns a Log that stores the time of the last exit in file.
func New(objects *cache.Cache, file string, log *slog.Logger) *Log {
	return &Log{cache: objects, file: file, log: log, known: map[string]slog.Attr{}, logged: map[string]int64{}}
}

// Run logs exits until ctx ends. It returns nil.
func (l *Log) Run(ctx context.Context) error {
	g, ctx := panics.NewGroupWithContext(ctx, l.log)
	synced := make(chan struct{})
	// Subscribed before the first sync, so that no exit is missed between the two; those that both report are logged once.
	g.Go(func() error {
		return l.cache.Subscribe(ctx, func(e *runtimeapi.ContainerEventResponse) error {
			<-synced // from then on the maps are used here only
			_ = panics.Try(l.log, func() error { l.handle(e); return nil })
			return nil
		})
	})
	g.Go(func() error {
		defer close(synced)
		return panics.Try(l.log, func() error { l.logMissed(ctx); return nil })
	})
	_ = g.Wait() // of ctx, or a panic that was logged: exits are not worth the end of the daemon
	return nil
}

// logMissed waits for the first sync and logs the exits since the last one that was logged.
func (l *Log) logMissed(ctx context.Context) {
	var list []*cache.Container
	for {
		var err error
		if list, err = l.cache.Containers(ctx, nil); err == nil {
			break
		}
		if sleep.WithContext(ctx, retryInterval) != nil {
			return
		}
	}
	text, _ := os.ReadFile(l.file)
	latest, err := time.Parse(time.RFC3339Nano, strings.TrimSpace(string(text)))
	l.latest = latest
	recorded := err == nil
	if !recorded { // the first start: what has exited before is not reported
		l.setLatest(time.Now())
	}
	for i := len(list) - 1; i >= 0; i-- { // the oldest first
		c := list[i]
		l.known[c.ID()] = changes.Container(c.ID(), c.Name, c.Row.GetPodSandboxId(), imageOf(c.Status))
		finished := time.Unix(0, c.Status.GetFinishedAt())
		if recorded && c.Status.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED && finished.After(latest) {
			l.logExit(c.ID(), c.Status, slog.Bool("while-berthd-was-down", true))
		}
	}
}

// handle logs the exit that e is about, if it is about one.
func (l *Log) handle(e *runtimeapi.ContainerEventResponse) {
	id, pod := e.GetContainerId(), e.GetPodSandboxStatus()
	if id == pod.GetId() {
		return
	}
	var status *runtimeapi.ContainerStatus
	for _, s := range e.GetContainersStatuses() {
		if s.GetId() == id {
			status = s
		}
	}
	if _, known := l.known[id]; !known && status != nil {
		m := pod.GetMetadata()
		l.known[id] = slog.Group("",
			slog.String("pod", m.GetName()), slog.String("namespace", m.GetNamespace()), slog.String("sandbox", pod.GetId()),
			slog.String("name", status.GetMetadata().GetName()), slog.String("container", id), slog.String("image", imageOf(status)))
	}
	switch e.GetContainerEventType() {
	case runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT:
		if attr, known := l.known[id]; known && status.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
			// It was removed, or started again, before it could be inspected.
			l.log.Info("container exited, its exit code is not known", attr)
		} else if known {
			l.logExit(id, status)
		}
	case runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT:
		delete(l.known, id)
		delete(l.logged, id)
	default:
	}
}

// logExit logs the exit of a container, unless it was logged before. A failed start is not logged as an exit: the call has failed,
// and that is logged.
func (l *Log) logExit(id string, s *runtimeapi.ContainerStatus, more ...any) {
	if s.GetStartedAt() == 0 || l.logged[id] == s.GetFinishedAt() {
		return
	}
	l.logged[id] = s.GetFinishedAt()
	finished := time.Unix(0, s.GetFinishedAt())
	// Docker 20.10 can report an exit before the start: it takes the time of the start after the process has begun.
	ran := finished.Sub(time.Unix(0, s.GetStartedAt()))
	l.log.Info("container exited", append([]any{
		l.known[id], slog.String("reason", s.GetReason()), slog.Int("exit-code", int(s.GetExitCode())),
		slog.Duration("ran", max(ran.Round(time.Millisecond), 0)),
	}, more...)...)
	if finished.After(l.latest) {
		l.setLatest(finished)
	}
}

// setLatest stores the time of the last exit that was logged.
func (l *Log) setLatest(t time.Time) {
	l.latest = t
	if err := atomicfile.Write(l.file, []byte(t.Format(time.RFC3339Nano)+"\n")); err != nil {
		l.log.Warn("the time of the last exit cannot be stored; exits are logged again after a restart of berthd", slog.Any("err", err))
	}
}

// imageOf returns the image of a container as the user has written it, if that is known.
func imageOf(s *runtimeapi.ContainerStatus) string {
	if ref := s.GetImage().GetUserSpecifiedImage(); ref != "" {
		return ref
	}
	return s.GetImage().GetImage()
}
