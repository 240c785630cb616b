// Package diskusage measures how much containers have written to disk: to their writable
// layers, to the anonymous volumes that Docker made for them, and to the log files that
// Docker keeps.
//
// A Tracker does that in the background, as du does, while Run runs. Containers control
// the files and may change them on purpose to make a walk slow, endless or wrong, so each
// container is measured in short slices with a budget of its own, a walk never leaves the
// directory and the mount it began in, and its memory is bounded. Last and Totals return
// the latest results without any I/O. Where a layer is not found, Docker reports its
// size (GET /containers/{id}/json?size=true).
package diskusage

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/core/cache"
	"berth/core/engine"
	"berth/core/panics"
	"berth/core/sleep"
	"berth/core/stats/cgroupstats"
)

const (
	// measureInterval is the least time between two measurements of a running container.
	measureInterval = time.Minute
	// sliceTimeout is how long one container is measured in one go. However slow a
	// container makes its own measurement, each of the others waits for it no longer than
	// that and the pause after it.
	sliceTimeout = 100 * time.Millisecond
	// restFactor limits the measurement of one container to a tenth of a core: after a
	// slice the container is left alone for that many times what the slice took.
	restFactor = 9
	// loadFactor limits the measurement of all containers to a quarter of a core: after a
	// slice nothing is measured for that many times what it took.
	loadFactor = 3
	// pollInterval is how often Run looks for due measurements.
	pollInterval = 10 * time.Second
	// sizePollInterval is how often Run looks for sizes to request from Docker.
	sizePollInterval = time.Second
)

// A Usage is what a container has written, as last measured.
type Usage struct {
	At    time.Time // when it was measured
	Bytes uint64    // layer, volumes and logs
	// LayerBytes is the part of Bytes in the writable layer.
	LayerBytes uint64
	// Inodes is valid only with HasInodes: Docker reports a size only.
	Inodes    uint64
	HasInodes bool

	run runKey // with PID 0 if it was measured after the container exited
	// partial is set while the measurement is not complete: at least Bytes are used.
	partial bool
	due     time.Time // earliest time of the next measurement, if the container still runs
}

// A runKey identifies one run of a container by its first process. PIDs are reused.
type runKey struct {
	id  string
	pid int
}

// A Tracker measures containers and keeps the results. Its methods may be called from
// several goroutines.
type Tracker struct {
	docker *engine.Engine
	cache  *cache.Cache
	log    *slog.Logger
	slice  time.Duration // sliceTimeout but in tests

	// inspectSize asks Docker for the size of a container's writable layer.
	inspectSize func(ctx context.Context, id string) (uint64, error)

	// walkLock is a mutex that can be waited for with a timeout. It has an element while a
	// goroutine advances or closes a walk.
	walkLock chan struct{}

	mu           sync.Mutex // guards following
	usage        map[string]*Usage
	measurements map[string]*measurement // not complete, by container ID
	layerDirs    map[string]string       // by container ID, those found in the node's mount table
	engineSizes  map[runKey]*engineSize
}

// New returns a Tracker that has measured nothing. The containers are those in c.
func New(docker *engine.Engine, c *cache.Cache, log *slog.Logger) *Tracker {
	t := &Tracker{
		docker: docker, cache: c, log: log, slice: sliceTimeout, walkLock: make(chan struct{}, 1),
		usage: map[string]*Usage{}, measurements: map[string]*measurement{}, layerDirs: map[string]string{}, engineSizes: map[runKey]*engineSize{},
	}
	t.inspectSize = t.inspectLayerSize
	return t
}

// Last returns the last measurement of the container id, nil before the first one. The
// caller must not change it.
func (t *Tracker) Last(id string) *Usage {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.usage[id]
}

// Totals returns how many bytes and inodes all containers have written, as last measured,
// and how many of the bytes are in writable layers.
func (t *Tracker) Totals() (bytes, inodes, layerBytes uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, u := range t.usage {
		bytes += u.Bytes
		inodes += u.Inodes
		layerBytes += u.LayerBytes
	}
	return bytes, inodes, layerBytes
}

// Run measures containers until ctx ends.
func (t *Tracker) Run(ctx context.Context) error {
	g, ctx := panics.NewGroupWithContext(ctx, t.log)
	g.Go(func() error { return t.runMeasurements(ctx) })
	// In a goroutine of its own: Docker may take long for one container, or hang.
	g.Go(func() error { return t.runEngineSizes(ctx) })
	return g.Wait()
}

func (t *Tracker) runMeasurements(ctx context.Context) error {
	defer func() {
		t.walkLock <- struct{}{} // never released: nothing is measured after Run
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, m := range t.measurements {
			m.close()
		}
		clear(t.measurements)
	}()
	for {
		if list, err := t.cache.Containers(ctx, nil); err == nil {
			t.prune(list)
			for _, c := range list {
				if sleep.WithContext(ctx, loadFactor*t.measureLogged(ctx, c)) != nil {
					return nil
				}
			}
		}
		if sleep.WithContext(ctx, t.untilNext()) != nil {
			return nil
		}
	}
}

// measureLogged measures c for one slice and returns how long that took. Errors and panics
// are logged: they must not end the measurement of other containers.
func (t *Tracker) measureLogged(ctx context.Context, c *cache.Container) time.Duration {
	t.walkLock <- struct{}{}
	begin := time.Now()
	err := panics.Try(t.log, func() error { return t.measure(c) })
	<-t.walkLock
	if err != nil && !cgroupstats.IsExited(err) {
		level := slog.LevelDebug
		if errors.Is(err, unix.ELOOP) { // directories that are nested too deep, perhaps on purpose
			level = slog.LevelWarn
		}
		t.log.Log(ctx, level, "disk usage of a container is incomplete: some files could not be counted", slog.String("container", c.ID()), slog.Any("err", err))
	}
	return time.Since(begin)
}

// MeasureFirst measures a container that has never been measured, for one slice, and
// returns the result. It is nil if nothing was found within the slice, or if another
// measurement took too long.
func (t *Tracker) MeasureFirst(ctx context.Context, c *cache.Container) *Usage {
	timer := time.NewTimer(2 * t.slice)
	defer timer.Stop()
	select {
	case t.walkLock <- struct{}{}:
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return nil
	}
	defer func() { <-t.walkLock }()
	if u := t.Last(c.ID()); u != nil {
		return u
	}
	if err := t.measure(c); err != nil && !cgroupstats.IsExited(err) {
		t.log.Debug("disk usage of a container is incomplete: some files could not be counted", slog.String("container", c.ID()), slog.Any("err", err))
	}
	return t.Last(c.ID())
}

// untilNext returns the time until the next pass: less than pollInterval if a measurement
// is to be continued.
func (t *Tracker) untilNext() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := pollInterval
	for _, m := range t.measurements {
		next = min(next, time.Until(m.resume))
	}
	return max(next, t.slice)
}

// prune drops what is known of containers that are not in list.
func (t *Tracker) prune(list []*cache.Container) {
	t.walkLock <- struct{}{}
	defer func() { <-t.walkLock }()
	ids, runs := map[string]bool{}, map[runKey]bool{}
	for _, c := range list {
		ids[c.ID()], runs[runKey{c.ID(), c.Pid}] = true, true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, m := range t.measurements {
		if !ids[id] {
			m.close()
		}
	}
	keepOnly(t.measurements, ids)
	keepOnly(t.usage, ids)
	keepOnly(t.layerDirs, ids)
	keepOnly(t.engineSizes, runs)
}

// keepOnly deletes the entries of m with keys that are not in keep.
func keepOnly[K comparable, V any](m map[K]V, keep map[K]bool) {
	maps.DeleteFunc(m, func(k K, _ V) bool { return !keep[k] })
}
