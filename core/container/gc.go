package container

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"

	"berth/core/engine"
	"berth/core/panics"
)

// RunGC removes what is left of containers that do not exist any more (records, premounts, logs' state) and applies
// the settings of running ones again, after every connection to Docker and at intervals. It also removes containers
// that were created after their caller's deadline and that no retry has asked for. It returns when ctx ends.
func (s *Service) RunGC(ctx context.Context) error {
	g, ctx := panics.NewGroupWithContext(ctx, s.log)
	g.Go(func() error { return s.pending.Run(ctx) })
	g.Go(func() error { return s.cache.ReconcileLoop(ctx, "containers", nil, s.gc) })
	return g.Wait()
}

// gc is one round of RunGC.
func (s *Service) gc(ctx context.Context, docker *engine.Conn) error {
	known := func(id string) bool {
		_, err := s.cache.Container(ctx, id)
		if errdefs.IsNotFound(err) {
			_, err = s.cache.Sandbox(ctx, id)
		}
		return !errdefs.IsNotFound(err)
	}
	return errors.Join(s.gcCheckpoints(ctx), s.gcRecords(ctx), s.oci.GC(ctx, docker, known, s.log), s.premounts.GC(ctx, docker), s.resources.Reapply(ctx, docker), s.logs.Prune(func(id string) bool {
		_, err := s.cache.Container(ctx, id)
		return !errdefs.IsNotFound(err)
	}))
}

// gcRecords deletes the records of containers that were removed without berth, as with docker rm.
func (s *Service) gcRecords(ctx context.Context) error {
	type records interface {
		Keys() ([]string, error)
		Delete(key string) error
	}
	for _, bucket := range []records{s.failures, s.updates, s.nriRecords} {
		ids, err := bucket.Keys()
		if err != nil {
			return err
		}
		for _, id := range ids {
			if _, err := s.cache.Container(ctx, id); !errdefs.IsNotFound(err) {
				continue
			}
			if err := bucket.Delete(id); err != nil {
				return err
			}
		}
	}
	return nil
}
