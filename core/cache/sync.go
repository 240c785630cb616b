package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"

	"berth/core/engine"
	"berth/core/labels"
	"berth/core/panics"
)

const (
	// auditInterval is how often the Engine's list is compared with the cache: an Engine
	// drops events of a client that reads them too slowly, without telling it.
	auditInterval = 30 * time.Second
	// maxSyncInspects bounds how many containers a sync inspects at a time.
	maxSyncInspects = 8
	// syncInspectTimeout is how long a sync waits for one inspect. One that hangs must not
	// hide the other containers for longer than a read waits for a sync (syncTimeout), which
	// inspects all sandboxes before all containers.
	syncInspectTimeout = syncTimeout / 2
	// inspectRetryInterval is the pause before another attempt to inspect a container.
	inspectRetryInterval = 2 * time.Second
)

// Run keeps the cache current until ctx ends.
func (c *Cache) Run(ctx context.Context) error {
	for {
		conn, err := c.engine.WaitConn(ctx)
		if err != nil {
			return nil // ctx has ended
		}
		err = c.follow(ctx, conn)
		if ctx.Err() != nil {
			return nil
		}
		c.engine.MarkBroken(conn, err)
	}
}

// A syncer keeps the cache in sync over one connection.
type syncer struct {
	*Cache
	conn  *engine.Conn
	group *panics.Group // of background inspects
	queue inspectQueue
}

var errReplaced = errors.New("the connection to docker has been replaced")

// follow syncs the cache and then applies the changes that events report. It returns when
// the event stream breaks or the connection is replaced, after all inspects have ended.
func (c *Cache) follow(ctx context.Context, conn *engine.Conn) error {
	g, ctx := panics.NewGroupWithContext(ctx, c.log)
	defer c.lag.Reset() // the next sync applies all pending changes
	if c.oom != nil {
		defer c.oom.EventsLost()
	}
	s := &syncer{Cache: c, conn: conn, group: g, queue: newInspectQueue()}
	g.Go(func() error {
		// After an Engine was too slow, its old connection and event stream still work.
		c.engine.WaitReplaced(ctx, conn, nil)
		return errReplaced
	})
	g.Go(func() error { return s.run(ctx) })
	return g.Wait()
}

// run does a sync and then handles events and audits until the event stream breaks.
func (s *syncer) run(ctx context.Context) error {
	// Subscribe before the sync, so that no change between the two is missed.
	messages, errs := s.conn.Events(ctx, events.ListOptions{Filters: eventFilter()})
	if err := s.sync(ctx); err != nil {
		return err
	}
	s.setSynced(s.conn)
	audit := time.NewTicker(auditInterval)
	defer audit.Stop()
	for {
		select {
		case m := <-messages:
			s.handleEvent(ctx, m)
		case err := <-errs:
			if err == nil {
				err = errors.New("the event stream ended")
			}
			return fmt.Errorf("docker events: %w", err)
		case <-audit.C:
			if err := s.audit(ctx); err != nil {
				return err
			}
		}
	}
}

// setSynced publishes that the cache is in sync with conn.
func (c *Cache) setSynced(conn *engine.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.synced, c.everSynced = conn, true
	close(c.syncChanged)
	c.syncChanged = make(chan struct{})
}

// inspectOn are the events after which a container is inspected.
var inspectOn = []events.Action{
	events.ActionCreate, events.ActionStart, events.ActionDie, events.ActionOOM, events.ActionPause,
	events.ActionUnPause, events.ActionRename, events.ActionUpdate, events.ActionStop, events.ActionRestart,
}

// eventFilter selects the events that handleEvent uses. Others are kept off the wire: an
// event has all labels of its container, which may be megabytes of the image's, and each
// exec probe causes three events.
func eventFilter() filters.Args {
	f := filters.NewArgs(
		filters.Arg("type", string(events.ContainerEventType)),
		filters.Arg("label", labels.Set{}.Filter()[0]),
		filters.Arg("event", string(events.ActionDestroy)),
		filters.Arg("event", string(events.ActionKill)),
	)
	for _, action := range inspectOn {
		f.Add("event", string(action))
	}
	return f
}

// handleEvent applies one event. It must not block: the Engine drops events of a client
// that reads them too slowly.
func (s *syncer) handleEvent(ctx context.Context, m events.Message) {
	id := m.Actor.ID
	s.notifyOOM(m)
	switch {
	case m.Action == events.ActionDestroy:
		generation, endRead := s.startRead("")
		removed := s.markRemoved(id, generation)
		endRead()
		if removed {
			s.group.Go(func() error { s.notifyRemoved(id); return nil })
		}
	case slices.Contains(inspectOn, m.Action):
		s.lag.Event(id, time.Unix(0, m.TimeNano))
		s.enqueueInspect(ctx, id)
	}
}

const sigKill = "9" // attribute "signal" of Docker's kill events

// notifyOOM passes an event on to OOM.
func (c *Cache) notifyOOM(m events.Message) {
	if c.oom == nil {
		return
	}
	switch m.Action {
	case events.ActionStart:
		c.mu.RLock()
		_, removed := c.tombstones[m.Actor.ID]
		c.mu.RUnlock()
		if !removed { // else the event is late, and OOM would keep the container forever
			c.oom.Started(m.Actor.ID)
		}
	case events.ActionKill:
		if m.Actor.Attributes["signal"] == sigKill {
			c.oom.KillSent(m.Actor.ID)
		}
	case events.ActionDie:
		c.oom.Exited(m.Actor.ID)
	default:
	}
}

// An inspectQueue holds the containers that are being inspected in the background. A
// container that is enqueued meanwhile is inspected once more afterwards, however many
// events it has.
type inspectQueue struct {
	mu   sync.Mutex      // guards busy
	busy map[string]bool // by ID; true if another inspect must follow
}

func newInspectQueue() inspectQueue { return inspectQueue{busy: map[string]bool{}} }

// start returns true if the caller must inspect id. If it is being inspected already,
// start has that repeated.
func (q *inspectQueue) start(id string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, busy := q.busy[id]; busy {
		q.busy[id] = true
		return false
	}
	q.busy[id] = false
	return true
}

// done returns true if the inspect of id must be repeated; else id leaves the queue.
func (q *inspectQueue) done(id string) (repeat bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.busy[id] {
		q.busy[id] = false
		return true
	}
	delete(q.busy, id)
	return false
}

// enqueueInspect inspects id in the background, and retries until it succeeds or the
// container is removed.
func (s *syncer) enqueueInspect(ctx context.Context, id string) {
	if !s.queue.start(id) {
		return
	}
	s.group.Go(func() error {
		for {
			_, err := s.inspect(ctx, s.conn, id)
			switch {
			case err == nil, errdefs.IsNotFound(err):
			case ctx.Err() != nil:
				return nil
			case errors.Is(err, errUnreadable):
				s.warnSkipped(id, err)
			default:
				level := slog.LevelWarn
				if engine.IsUnavailable(err) { // the end of the event stream is logged, once
					level = slog.LevelDebug
				}
				s.log.Log(ctx, level, "cannot inspect container, will retry", slog.String("container", id), slog.Any("err", err))
				pause, cancel := context.WithTimeout(ctx, inspectRetryInterval)
				<-pause.Done()
				cancel()
				continue
			}
			if !s.queue.done(id) {
				s.lag.Applied(id)
				return nil
			}
		}
	})
}

func (c *Cache) warnSkipped(id string, err error) {
	c.log.Warn("container skipped: CRI requests will not see it, its inspect result is not usable", slog.String("container", id), slog.Any("err", err))
}

// sync inspects all containers of pods and removes those from the cache that the Engine
// does not have any more.
func (s *syncer) sync(ctx context.Context) error {
	generation, endRead := s.startRead("")
	defer endRead()
	list, err := s.list(ctx)
	if err != nil {
		return err
	}
	// Sandboxes come first: the log of a container must be below the log directory of its
	// sandbox.
	var sandboxes, containers []container.Summary
	for _, row := range list {
		if set, _ := labels.ReadSummary(row); set.Kind == labels.Sandbox {
			sandboxes = append(sandboxes, row)
		} else {
			containers = append(containers, row)
		}
	}
	for _, rows := range [][]container.Summary{sandboxes, containers} {
		if err := s.inspectAll(ctx, rows, generation); err != nil {
			return err
		}
	}
	s.removeMissing(list, generation)
	if s.oom != nil {
		s.mu.RLock()
		present := maps.Clone(s.containers)
		s.mu.RUnlock()
		s.oom.Prune(func(id string) bool { return present[id] != nil })
	}
	return nil
}

// inspectAll inspects the containers in rows, which are from a list of the given
// generation.
func (s *syncer) inspectAll(ctx context.Context, rows []container.Summary, generation uint64) error {
	g := panics.NewGroup(s.log)
	g.SetLimit(maxSyncInspects)
	for _, row := range rows {
		g.Go(func() error {
			short, cancel := context.WithTimeout(ctx, syncInspectTimeout)
			defer cancel()
			_, err := s.inspect(short, s.conn, row.ID)
			switch {
			case err == nil, errdefs.IsNotFound(err):
				return nil
			case errors.Is(err, errUnreadable):
				s.warnSkipped(row.ID, err)
				return nil
			case engine.IsUnavailable(err):
				return err
			}
			s.log.Warn("cannot inspect container, using its list entry until a retry succeeds", slog.String("container", row.ID), slog.Any("err", err))
			if err := s.applySummary(row, generation); err != nil {
				s.log.Warn("container skipped: its list entry is not usable", slog.String("container", row.ID), slog.Any("err", err))
			}
			s.enqueueInspect(ctx, row.ID)
			return nil
		})
	}
	return g.Wait()
}

// audit compares the Engine's list with the cache and inspects what differs.
func (s *syncer) audit(ctx context.Context) error {
	generation, endRead := s.startRead("")
	defer endRead()
	list, err := s.list(ctx)
	if err != nil {
		return err
	}
	s.mu.RLock()
	var differ []string
	for _, row := range list {
		if state, _, known := s.stateLocked(row.ID); !known || state != row.State {
			differ = append(differ, row.ID)
		}
	}
	s.mu.RUnlock()
	for _, id := range differ {
		s.enqueueInspect(ctx, id)
	}
	s.removeMissing(list, generation)
	return nil
}

// list returns the Engine's list of all containers that belong to pods.
func (s *syncer) list(ctx context.Context) ([]container.Summary, error) {
	ctx, cancel := s.conn.WithRequestTimeout(ctx)
	defer cancel()
	list, err := s.conn.ContainerList(ctx, container.ListOptions{
		All:     true,
		Filters: filters.NewArgs(filters.Arg("label", labels.Set{}.Filter()[0])),
	})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	return slices.DeleteFunc(list, func(row container.Summary) bool {
		set, err := labels.ReadSummary(row)
		if errors.Is(err, labels.ErrMismatch) {
			s.warnIgnored(row.ID, err)
		}
		return set.Kind == ""
	}), nil
}

// removeMissing removes from the cache what is not in a list of the given generation, and
// the tombstones that are not needed any more.
func (c *Cache) removeMissing(list []container.Summary, generation uint64) {
	listed := make(map[string]bool, len(list))
	for _, row := range list {
		listed[row.ID] = true
	}
	c.mu.RLock()
	var missing []string
	for id := range c.sandboxes {
		if !listed[id] {
			missing = append(missing, id)
		}
	}
	for id := range c.containers {
		if !listed[id] {
			missing = append(missing, id)
		}
	}
	c.mu.RUnlock()
	for _, id := range missing {
		c.handleMissing(id, generation)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	oldest := c.generation
	for g := range c.inflight {
		oldest = min(oldest, g)
	}
	// No read is in flight that began before the removal.
	maps.DeleteFunc(c.tombstones, func(_ string, removedAt uint64) bool { return removedAt <= oldest })
}

// applySummary falls back to the list entry of a container whose inspect fails. If its
// state has not changed, the last inspect is kept, because it has more detail.
func (c *Cache) applySummary(row container.Summary, generation uint64) error {
	c.mu.RLock()
	state, times, known := c.stateLocked(row.ID)
	c.mu.RUnlock()
	if known && engine.BaseState(state) == engine.BaseState(row.State) {
		return nil
	}
	var runningSince time.Time
	if times.started != 0 && times.stopped == 0 {
		runningSince = time.Unix(0, times.started)
	}
	result := engine.InspectFromSummary(row, runningSince)
	set, err := c.readLabels(result)
	if err != nil {
		return err
	}
	return c.apply(result, set, generation, nil)
}
