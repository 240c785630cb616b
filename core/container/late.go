package container

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
)

const (
	// createLimit is how long the Engine may take to make one container: with a
	// slow disk, and a storage driver that copies whole images, that is minutes.
	createLimit = 15 * time.Minute
	// comeBack is how long a container is kept for a caller who has run out of
	// time. A kubelet asks again within some five minutes.
	comeBack = 10 * time.Minute
	// nearly is how much earlier than our clock says a caller may find that his
	// time is over: his began first.
	nearly = time.Second
)

// A caller is who waits for the end of a call, as long as he does.
type caller struct {
	ctx  context.Context //nolint:containedctx // what there is to know of him
	left atomic.Pointer[time.Time]
}

// watch looks at the caller of ctx until stop is called.
func watch(ctx context.Context) (c *caller, stop func() bool) {
	c = &caller{ctx: ctx}
	return c, context.AfterFunc(ctx, func() {
		now := time.Now()
		c.left.Store(&now)
	})
}

// ranOut reports whether the caller has gone for his time was over. He asks again
// then, and one who hung up for another reason may not.
func (c *caller) ranOut() bool {
	left := time.Now()
	if at := c.left.Load(); at != nil {
		left = *at
	}
	deadline, limited := c.ctx.Deadline()
	return c.ctx.Err() != nil && limited && left.After(deadline.Add(-nearly))
}

// hungUp returns the error of ctx if the caller has gone and does not come back.
func (c *caller) hungUp() error {
	if c.ranOut() {
		return nil
	}
	return c.ctx.Err()
}

// A late container is made, and anyone who asked for it has run out of time. Nobody
// is shown it before he asks again.
type late struct {
	id, sandbox string
	config      *runtimeapi.ContainerConfig
	since       time.Time
	hidden      *cache.Hidden
}

// setAside keeps a container for the caller that asks for the same again.
func (s *Service) setAside(name string, l late) {
	s.log.Info("container created after its caller's deadline; it is kept for the retry", slog.String("container", l.id), slog.String("name", name))
	l.since = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.late[name] = l
}

// claim returns the container that was set aside under the name if it is what is
// asked for now, and nil if there is none. The turn of the name is the caller's.
func (s *Service) claim(ctx context.Context, name, sandbox string, config *runtimeapi.ContainerConfig) *cache.Container {
	s.mu.Lock()
	l, ok := s.late[name]
	delete(s.late, name)
	s.mu.Unlock()
	if !ok {
		return nil
	}
	defer l.hidden.Reveal()

	if l.sandbox != sandbox || !proto.Equal(l.config, config) {
		return nil
	}
	c, err := s.view.Container(ctx, l.id)
	if err != nil || c.Row.GetState() != runtimeapi.ContainerState_CONTAINER_CREATED {
		return nil
	}
	return c
}

// giveUp removes, again and again until ctx ends, what was set aside and nobody
// has asked for.
func (s *Service) giveUp(ctx context.Context) error {
	tick := time.NewTicker(comeBack / 10)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			s.removeLate(ctx, now.Add(-comeBack))
		}
	}
}

// removeLate removes what was set aside before then.
func (s *Service) removeLate(ctx context.Context, then time.Time) {
	s.mu.Lock()
	old := map[string]late{}
	for name, l := range s.late {
		if l.since.Before(then) {
			old[name] = l
		}
	}
	s.mu.Unlock()
	for name, l := range old {
		if err := s.removeUnclaimed(ctx, name, l.id); err != nil {
			s.log.Warn("a container that nobody has asked for again cannot be removed, trying again", slog.String("container", l.id), slog.Any("err", err))
		}
	}
}

func (s *Service) removeUnclaimed(ctx context.Context, name, id string) error {
	done, err := s.turns.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer done()
	s.mu.Lock()
	l, ok := s.late[name]
	s.mu.Unlock()
	if !ok || l.id != id {
		return nil // claimed meanwhile
	}
	if err := s.Remove(ctx, id); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.late, name)
	s.mu.Unlock()
	l.hidden.Reveal()
	return nil
}
