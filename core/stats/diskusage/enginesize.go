package diskusage

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"berth/core/panics"
	"berth/core/sleep"
	"berth/core/stats/cgroupstats"
)

// An engineSize is the size of a writable layer as Docker reports it.
type engineSize struct {
	requested bool // whether to ask Docker once it is due
	bytes     uint64
	at        time.Time // time of the last request with a response
	due       time.Time
}

// requestEngineSize returns the last size that Docker has reported for a run, and has
// runEngineSizes ask again.
func (t *Tracker) requestEngineSize(run runKey) engineSize {
	t.mu.Lock()
	defer t.mu.Unlock()
	size := t.engineSizes[run]
	if size == nil {
		size = &engineSize{}
		t.engineSizes[run] = size
	}
	size.requested = true
	return *size
}

// runEngineSizes asks Docker for the requested sizes until ctx ends.
func (t *Tracker) runEngineSizes(ctx context.Context) error {
	for sleep.WithContext(ctx, sizePollInterval) == nil {
		t.updateEngineSizes(ctx)
	}
	return nil
}

// updateEngineSizes asks Docker for the sizes that are due, one after the other. An error
// or panic affects one container only.
func (t *Tracker) updateEngineSizes(ctx context.Context) {
	now := time.Now()
	var due []runKey
	t.mu.Lock()
	for run, size := range t.engineSizes {
		if size.requested && !now.Before(size.due) {
			due = append(due, run)
		}
	}
	t.mu.Unlock()
	for _, run := range due {
		err := panics.Try(t.log, func() error { return t.updateEngineSize(ctx, run) })
		if ctx.Err() != nil {
			return
		}
		if err != nil && !cgroupstats.IsExited(err) {
			t.log.Debug("Docker could not report the disk usage of a container", slog.String("container", run.id), slog.Any("err", err))
		}
	}
}

// updateEngineSize requests one size from Docker. The next request for it has to wait, also
// after an error or a panic.
func (t *Tracker) updateEngineSize(ctx context.Context, run runKey) error {
	begin := time.Now()
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if size := t.engineSizes[run]; size != nil {
			size.due = time.Now().Add(max(measureInterval, restFactor*time.Since(begin)))
		}
	}()
	bytes, err := t.inspectSize(ctx, run.id)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if size := t.engineSizes[run]; size != nil {
		size.bytes, size.at, size.requested = bytes, begin, false
	}
	return nil
}

// inspectLayerSize returns SizeRw of a container, in bytes.
func (t *Tracker) inspectLayerSize(ctx context.Context, id string) (uint64, error) {
	docker, err := t.docker.Conn()
	if err != nil {
		return 0, err
	}
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	found, _, err := docker.ContainerInspectWithRaw(ctx, id, true)
	if err != nil {
		return 0, err
	}
	if found.SizeRw == nil {
		return 0, errors.New("inspect result has no SizeRw")
	}
	return uint64(max(*found.SizeRw, 0)), nil
}
