package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	"berth/core/sleep"
)

const (
	// concurrentRemovalTimeout is how long ForceRemove waits for a removal that another client has begun.
	concurrentRemovalTimeout = 10 * time.Second
	removalPollInterval      = 50 * time.Millisecond
)

// Kill sends SIGKILL to the container id and returns once it does not run. It succeeds if the container does not run or
// does not exist. It takes no longer than Config.Timeout, also for a process that cannot be killed.
func (c *Conn) Kill(ctx context.Context, id string) error {
	ctx, cancel := c.WithRequestTimeout(ctx)
	defer cancel()
	exited, failed := c.ContainerWait(ctx, id, container.WaitConditionNotRunning)
	err := c.ContainerKill(ctx, id, "KILL")
	if err != nil && !errdefs.IsConflict(err) { // Conflict: it does not run
		cancel()
		go func() { // the goroutine of ContainerWait ends only when its result is received
			select {
			case <-exited:
			case <-failed:
			}
		}()
		if errdefs.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("kill %s: %w", id, err)
	}
	select {
	case <-exited:
		return nil
	case err := <-failed:
		if err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("wait for %s to exit: %w", id, err)
		}
		return nil
	}
}

// ForceRemove removes the container id, running or not, with its anonymous volumes, and
// returns once it is removed. It succeeds if the container does not exist.
func (c *Conn) ForceRemove(ctx context.Context, id string) error {
	ctx, cancel := c.WithRequestTimeout(ctx)
	defer cancel()
	for deadline := time.Now().Add(concurrentRemovalTimeout); ; {
		err := c.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
		if errdefs.IsNotFound(err) { // believed only if an inspect agrees: else the container would stay
			if _, err = c.ContainerInspect(ctx, id); err == nil {
				err = fmt.Errorf("docker does not find the container that it has: %w", errdefs.ErrConflict)
			}
		}
		switch {
		case err == nil, errdefs.IsNotFound(err):
			return nil
		case !errdefs.IsConflict(err) || time.Now().After(deadline):
			return fmt.Errorf("remove %s: %w", id, err)
		}
		// Another removal is in progress, after which it is NotFound.
		_ = sleep.WithContext(ctx, removalPollInterval)
	}
}
