package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
)

// removalPatience is how long Discard waits for a removal that is under way.
const removalPatience = 10 * time.Second

// Kill sends SIGKILL to the container id and returns once it does not run. One
// that does not run, or is not there, is no error. All of it is one call that should
// be short: a process that cannot be killed is waited for no longer than that.
func (c *Conn) Kill(ctx context.Context, id string) error {
	ctx, cancel := c.WithRequestTimeout(ctx)
	defer cancel()
	ended, failed := c.ContainerWait(ctx, id, container.WaitConditionNotRunning)
	err := c.ContainerKill(ctx, id, "KILL")
	if err != nil && !errdefs.IsConflict(err) { // in conflict with one that does not run
		cancel()
		go func() { // the wait may have ended, and its goroutine does not end before that is read
			select {
			case <-ended:
			case <-failed:
			}
		}()
		if errdefs.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("kill %s: %w", id, err)
	}
	select {
	case <-ended:
		return nil
	case err := <-failed:
		if err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("wait for %s to end: %w", id, err)
		}
		return nil
	}
}

// ForceRemove removes the container id, running or not, with its anonymous
// volumes, and returns once it is gone. One that is not there is no error.
func (c *Conn) ForceRemove(ctx context.Context, id string) error {
	ctx, cancel := c.WithRequestTimeout(ctx)
	defer cancel()
	for deadline := time.Now().Add(removalPatience); ; {
		err := c.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
		switch {
		case err == nil, errdefs.IsNotFound(err):
			return nil
		case !errdefs.IsConflict(err) || time.Now().After(deadline):
			return fmt.Errorf("remove %s: %w", id, err)
		}
		// Somebody else's removal is under way: it is over when the container
		// is not there any more.
		sleep(ctx, 50*time.Millisecond)
	}
}
