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
	// auditEvery is how often the Engine's list is compared with the view. An
	// Engine drops events of a listener that it finds slow, and says nothing.
	auditEvery = 30 * time.Second
	// looksAtOnce bounds how many containers a fresh look inspects at a time.
	looksAtOnce = 8
	// firstLook is how long a sync waits for one inspect. One that hangs must not hide
	// the others for longer than a call waits for a sync (syncPatience), which inspects
	// sandboxes first and containers then.
	firstLook = syncPatience / 2
	// lookAgain is the pause before another try at a container that could not
	// be looked at.
	lookAgain = 2 * time.Second
)

// Run keeps the view current until ctx ends.
func (v *Cache) Run(ctx context.Context) error {
	for {
		conn, err := v.docker.WaitConn(ctx)
		if err != nil {
			return nil // ctx has ended
		}
		err = v.follow(ctx, conn)
		if ctx.Err() != nil {
			return nil
		}
		v.docker.MarkBroken(conn, err)
	}
}

// follow looks at everything once and then at what events tell of. It returns
// when the event stream breaks, or the Engine has another connection.
func (v *Cache) follow(ctx context.Context, conn *engine.Conn) error {
	// Whatever is still looking when the stream breaks is called off and
	// waited for.
	g, ctx := panics.NewGroupWithContext(ctx, v.log)
	defer v.lag.clear() // the next sync sees all that was not seen
	if v.OOM != nil {
		defer v.OOM.Deaf()
	}
	desk := &desk{looks: map[string]bool{}}
	g.Go(func() error {
		// An Engine that was only slow has a new connection, and breaks no stream.
		v.docker.WaitReplaced(ctx, conn, nil)
		return errReplaced
	})
	g.Go(func() error {
		// Listen first, look second: nothing can happen in between.
		news, broken := conn.Events(ctx, events.ListOptions{Filters: eventFilter()})
		if err := v.sync(ctx, conn, g, desk); err != nil {
			return err
		}
		v.settle(conn)
		audit := time.NewTicker(auditEvery)
		defer audit.Stop()
		for {
			select {
			case m := <-news:
				v.handleEvent(ctx, conn, g, desk, m)
			case err := <-broken:
				if err == nil {
					err = errors.New("the event stream ended")
				}
				return fmt.Errorf("docker events: %w", err)
			case <-audit.C:
				if err := v.audit(ctx, conn, g, desk); err != nil {
					return err
				}
			}
		}
	})
	return g.Wait()
}

// errReplaced is why a connection that still works is not followed any more.
var errReplaced = errors.New("there is another connection to docker")

// settle publishes that the view is that of conn.
func (v *Cache) settle(conn *engine.Conn) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.synced, v.known = conn, true
	close(v.changed)
	v.changed = make(chan struct{})
}

// inspectOn are the events after which a container is inspected.
var inspectOn = []events.Action{
	events.ActionCreate, events.ActionStart, events.ActionDie, events.ActionOOM, events.ActionPause,
	events.ActionUnPause, events.ActionRename, events.ActionUpdate, events.ActionStop, events.ActionRestart,
}

// eventFilter selects the events that handleEvent acts on. An event carries all
// labels of its container, which may be megabytes of the image's, and each exec
// probe would cause three of them.
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

// sigKill is SIGKILL, as events of Docker name it.
const sigKill = "9"

// handleEvent acts on one event. It must not wait: the Engine drops the events of a
// slow listener.
func (v *Cache) handleEvent(ctx context.Context, conn *engine.Conn, g *panics.Group, d *desk, m events.Message) {
	if v.OOM != nil {
		switch m.Action {
		case events.ActionStart:
			v.mu.RLock()
			_, removed := v.removed[m.Actor.ID]
			v.mu.RUnlock()
			if !removed { // else the event is late, and nothing would forget the container again
				v.OOM.Started(m.Actor.ID)
			}
		case events.ActionKill:
			if m.Actor.Attributes["signal"] == sigKill {
				v.OOM.Slain(m.Actor.ID)
			}
		case events.ActionDie:
			v.OOM.Died(m.Actor.ID)
		default:
		}
	}
	switch {
	case m.Action == events.ActionDestroy:
		ticket, over := v.begin()
		removed := v.miss(m.Actor.ID, ticket)
		over()
		if removed {
			g.Go(func() error { v.drop(m.Actor.ID); return nil }) // which takes disk I/O
		}
	case slices.Contains(inspectOn, m.Action):
		v.lag.heard(m.Actor.ID, time.Unix(0, m.TimeNano))
		v.lookSoon(ctx, conn, g, d, m.Actor.ID)
	}
}

// A desk knows which looks are under way, so that a container is never looked
// at twice at a time, however many events it has.
type desk struct {
	mu    sync.Mutex      // guards looks
	looks map[string]bool // by ID; true if one more is due afterwards
}

// begin reports whether the caller is to look at id; if not, another look is
// under way and will be followed by one more.
func (d *desk) begin(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, busy := d.looks[id]; busy {
		d.looks[id] = true
		return false
	}
	d.looks[id] = false
	return true
}

// again reports whether id is to be looked at once more.
func (d *desk) again(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.looks[id] {
		d.looks[id] = false
		return true
	}
	delete(d.looks, id)
	return false
}

// lookSoon looks at id in the background, until it has been seen or is gone.
func (v *Cache) lookSoon(ctx context.Context, conn *engine.Conn, g *panics.Group, d *desk, id string) {
	if !d.begin(id) {
		return
	}
	g.Go(func() error {
		for {
			_, err := v.look(ctx, conn, id)
			switch {
			case err == nil, errdefs.IsNotFound(err):
				if !d.again(id) {
					v.lag.seen(id)
					return nil
				}
			case ctx.Err() != nil:
				return nil
			case errors.Is(err, errUnreadable):
				v.log.Warn("left out of all answers", slog.String("container", id), slog.Any("err", err))
				if !d.again(id) {
					v.lag.seen(id)
					return nil
				}
			default:
				level := slog.LevelWarn
				if engine.IsUnavailable(err) { // said once, when its events end
					level = slog.LevelDebug
				}
				v.log.Log(ctx, level, "cannot look at a container, trying again", slog.String("container", id), slog.Any("err", err))
				wait(ctx, lookAgain)
			}
		}
	})
}

// sync looks at everything that is ours.
func (v *Cache) sync(ctx context.Context, conn *engine.Conn, g *panics.Group, d *desk) error {
	ticket, over := v.begin()
	defer over()
	list, err := v.list(ctx, conn)
	if err != nil {
		return err
	}
	// A container's log must be below the log directory of its sandbox, so all
	// sandboxes come first.
	var sandboxes, containers []container.Summary
	for _, row := range list {
		if recorded, _ := labels.ReadSummary(row); recorded.Kind == labels.Sandbox {
			sandboxes = append(sandboxes, row)
		} else {
			containers = append(containers, row)
		}
	}
	for _, rows := range [][]container.Summary{sandboxes, containers} {
		if err := v.lookAll(ctx, conn, g, d, rows, ticket); err != nil {
			return err
		}
	}
	v.sweep(list, ticket)
	v.forgetOOM()
	return nil
}

// lookAll inspects the containers in rows, a part of a list that was asked for at ticket.
func (v *Cache) lookAll(ctx context.Context, conn *engine.Conn, g *panics.Group, d *desk, rows []container.Summary, ticket uint64) error {
	all := panics.NewGroup(v.log)
	all.SetLimit(looksAtOnce)
	for _, row := range rows {
		all.Go(func() error {
			short, cancel := context.WithTimeout(ctx, firstLook)
			defer cancel()
			_, err := v.look(short, conn, row.ID)
			switch {
			case err == nil, errdefs.IsNotFound(err):
				return nil
			case errors.Is(err, errUnreadable):
				v.log.Warn("left out of all answers", slog.String("container", row.ID), slog.Any("err", err))
				return nil
			case engine.IsUnavailable(err):
				return err
			}
			// Not hidden for that.
			v.log.Warn("cannot look at a container, going by the list", slog.String("container", row.ID), slog.Any("err", err))
			if err := v.guess(row, ticket); err != nil {
				v.log.Warn("a container that cannot be understood", slog.String("container", row.ID), slog.Any("err", err))
			}
			v.lookSoon(ctx, conn, g, d, row.ID)
			return nil
		})
	}
	return all.Wait()
}

// audit compares the Engine's list with the view and looks at what differs.
func (v *Cache) audit(ctx context.Context, conn *engine.Conn, g *panics.Group, d *desk) error {
	ticket, over := v.begin()
	defer over()
	list, err := v.list(ctx, conn)
	if err != nil {
		return err
	}
	v.mu.RLock()
	var differ []string
	for _, row := range list {
		if state, _, known := v.last(row.ID); !known || state != row.State {
			differ = append(differ, row.ID)
		}
	}
	v.mu.RUnlock()
	for _, id := range differ {
		v.lookSoon(ctx, conn, g, d, id)
	}
	v.sweep(list, ticket)
	return nil
}

// list asks the Engine for all that is ours.
func (v *Cache) list(ctx context.Context, conn *engine.Conn) ([]container.Summary, error) {
	ctx, cancel := conn.WithRequestTimeout(ctx)
	defer cancel()
	list, err := conn.ContainerList(ctx, container.ListOptions{
		All:     true,
		Filters: filters.NewArgs(filters.Arg("label", labels.Set{}.Filter()[0])),
	})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	return slices.DeleteFunc(list, func(row container.Summary) bool {
		recorded, err := labels.ReadSummary(row)
		if errors.Is(err, labels.ErrMismatch) {
			v.warnIgnored(row.ID, err)
		}
		return recorded.Kind == ""
	}), nil
}

// sweep takes out what is not in a list that was asked for at ticket.
func (v *Cache) sweep(list []container.Summary, ticket uint64) {
	there := make(map[string]bool, len(list))
	for _, row := range list {
		there[row.ID] = true
	}
	v.mu.RLock()
	var gone []string
	for id := range v.sandboxes {
		if !there[id] {
			gone = append(gone, id)
		}
	}
	for id := range v.containers {
		if !there[id] {
			gone = append(gone, id)
		}
	}
	v.mu.RUnlock()
	for _, id := range gone {
		v.missing(id, ticket)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	oldest := v.tickets
	for t := range v.looking {
		oldest = min(oldest, t)
	}
	// No look is under way that could bring these back.
	maps.DeleteFunc(v.removed, func(_ string, at uint64) bool { return at <= oldest })
}

// last returns the state that id was in, in the Engine's words, and its life,
// by the last look. v.mu is held.
func (v *Cache) last(id string) (state string, l life, known bool) {
	if s, ok := v.sandboxes[id]; ok {
		return s.seen.State, s.seen.life(), true
	}
	if c, ok := v.containers[id]; ok {
		return c.seen.State, c.seen.life(), true
	}
	return "", life{}, false
}

// guess makes do with what a list that was asked for at ticket says of a
// container that cannot be inspected. Where that is no news, more is known from
// the last look.
func (v *Cache) guess(row container.Summary, ticket uint64) error {
	v.mu.RLock()
	state, was, known := v.last(row.ID)
	v.mu.RUnlock()
	if known && phase(state) == phase(row.State) {
		return nil
	}
	return v.put(fromList(row, was), ticket, nil)
}

// phase returns which state of a life a state is: that of one that runs,
// whatever else may be said of it, or that of one that has ended.
func phase(state string) string {
	switch state {
	case container.StatePaused, container.StateRestarting:
		return container.StateRunning
	case container.StateDead, container.StateRemoving:
		return container.StateExited
	default:
		return state
	}
}

// exitUnknown is the exit code of what has ended in a way that is not known:
// it must not be taken for a success.
const exitUnknown = 255

// fromList is what a list says of a container with the life was, as far as it
// is known, in the form of an inspect.
func fromList(row container.Summary, was life) container.InspectResponse {
	name := ""
	if len(row.Names) > 0 {
		name = row.Names[0]
	}
	stamp := func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }
	created := stamp(time.Unix(row.Created, 0))
	// A list has no times but that of the creation.
	started, finished := created, created
	if was.started != 0 && was.stopped == 0 {
		started, finished = stamp(time.Unix(0, was.started)), stamp(time.Now())
	}
	state := &container.State{
		Status: row.State,
		Paused: row.State == container.StatePaused, Restarting: row.State == container.StateRestarting, Dead: row.State == container.StateDead,
	}
	switch phase(row.State) {
	case container.StateRunning:
		state.Running, state.StartedAt = true, started
	case container.StateExited:
		state.StartedAt, state.FinishedAt = started, finished
		if _, err := fmt.Sscanf(row.Status, "Exited (%d)", &state.ExitCode); err != nil {
			state.ExitCode = exitUnknown
		}
	}
	c := container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{
			ID: row.ID, Name: name, Created: created, Image: row.ImageID, State: state,
			HostConfig: &container.HostConfig{NetworkMode: container.NetworkMode(row.HostConfig.NetworkMode)},
		},
		Mounts: row.Mounts,
		Config: &container.Config{Image: row.Image, Labels: row.Labels},
	}
	if row.NetworkSettings != nil {
		c.NetworkSettings = &container.NetworkSettings{Networks: row.NetworkSettings.Networks}
	}
	return c
}

// wait waits for d or the end of ctx.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// eachAgain is how often what is done for each connection is done again while
// one lasts: something may have failed, or been removed behind our back.
const eachAgain = 15 * time.Minute

// eachFirst is the pause after the first failure, eachMost that after many: what
// waits for a pod of the network's own may wait for long.
const (
	eachFirst = time.Second
	eachMost  = time.Minute
)

// ReconcileLoop calls do for every connection to the Engine, as soon as the view is up to
// date with it, again until it succeeds, with growing pauses, and after that
// whenever there is something in wake, which may be nil, and now and then. It
// returns when ctx ends.
func (v *Cache) ReconcileLoop(ctx context.Context, what string, wake <-chan struct{}, do func(context.Context, *engine.Conn) error) error {
	pause, last := eachFirst, (*engine.Conn)(nil)
	for {
		conn, err := v.docker.WaitConn(ctx)
		if err != nil {
			return nil // ctx has ended
		}
		if err = v.Ready(ctx); err == nil {
			err = panics.Try(v.log, func() error { return do(ctx, conn) })
		}
		if err == nil || conn != last {
			pause, last = eachFirst, conn
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			v.rest(ctx, conn, eachAgain, wake)
		default:
			v.log.Warn("could not catch up after connecting to docker, trying again", slog.String("with", what), slog.Any("err", err))
			v.rest(ctx, conn, pause, nil)
			pause = min(2*pause, eachMost)
		}
	}
}

// rest returns after d, or earlier if conn is not the connection any more, there
// is something in wake, or ctx has ended.
func (v *Cache) rest(ctx context.Context, conn *engine.Conn, d time.Duration, wake <-chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	v.docker.WaitReplaced(ctx, conn, wake)
}
