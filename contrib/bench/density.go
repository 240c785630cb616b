package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// errNotThere is the answer of a side that has no such list.
var errNotThere = errors.New("not there")

// What a kubelet asks not every second, in seconds.
const (
	statsEvery  = 10
	imagesEvery = 30
)

// wideDown is how many pods are taken down at a time.
const wideDown = 4

// fill sets up the pods from number begin to end, so many at a time.
func (b *bench) fill(ctx context.Context, s side, name string, begin, end, wide int) (pods []*pod, err error) {
	pods = make([]*pod, end-begin)
	for i := range pods {
		pods[i] = &pod{}
	}
	defer func() { b.takeDown(ctx, s, &err, pods...) }()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(wide)
	for i := range pods {
		g.Go(func() error {
			p, err := up(ctx, s, fmt.Sprintf("%s-%d", name, begin+i), sleeping)
			*pods[i] = p
			if err != nil {
				return fmt.Errorf("pod of %s: %w", s.name(), err)
			}
			return nil
		})
	}
	return pods, g.Wait()
}

// empty takes pods down.
func (b *bench) empty(ctx context.Context, s side, pods []*pod) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(wideDown)
	for _, p := range pods {
		g.Go(func() error {
			if err := down(ctx, s, *p); err != nil {
				return fmt.Errorf("taking down a pod of %s: %w", s.name(), err)
			}
			return nil
		})
	}
	return g.Wait()
}

// density measures nodes full of pods, one runtime after the other. The bare
// calls are asked about berthd's pods.
func (b *bench) density(ctx context.Context, runtimes []*cri) error {
	for _, c := range runtimes {
		if err := b.dense(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) dense(ctx context.Context, c *cri) (err error) {
	var pods []*pod
	defer func() { b.takeDown(ctx, c, &err, pods...) }()
	with := []side{c}
	if c.called == "berth" {
		with = append(with, b.bare)
	}
	for level, n := range b.Pods {
		b.say("%d pods on %s", n, c.called)
		more, err := b.fill(ctx, c, "dense", len(pods), n, wideDown)
		if err != nil {
			return err
		}
		pods = append(pods, more...)
		if err := wait(ctx, settle); err != nil {
			return err
		}
		if err := b.memory(rowMemory(n), c); err != nil {
			return err
		}
		if level > 0 {
			if err := b.lists(ctx, n, c); err != nil {
				return err
			}
			continue
		}
		if err := b.lists(ctx, n, with...); err != nil {
			return err
		}
		for _, s := range with {
			if err := b.relists(ctx, s); err != nil {
				return err
			}
		}
		if err := b.probes(ctx, c, pods); err != nil {
			return err
		}
		if err := b.idle(ctx, c, pods); err != nil {
			return err
		}
	}
	return b.empty(ctx, c, pods)
}

// lists measures the questions about all there is.
func (b *bench) lists(ctx context.Context, pods int, sides ...side) error {
	for _, s := range sides {
		for _, q := range s.lists() {
			row := q.row
			if pods != b.Pods[0] {
				row = at(row, pods)
			}
			for i := range q.times + 1 {
				begin := time.Now()
				n, err := q.ask(ctx)
				took := time.Since(begin)
				if errors.Is(err, errNotThere) {
					break
				}
				if err == nil && n < pods {
					err = fmt.Errorf("found %d, want %d", n, pods)
				}
				if err != nil {
					return fmt.Errorf("%s of %s: %w", row, s.name(), err)
				}
				if i > 0 { // the first may have had to look
					b.report.add(row, s.name(), float64(took)/float64(time.Millisecond))
				}
			}
		}
	}
	return nil
}

// relists asks what a kubelet asks, every second, and measures the CPU; then
// the same number of calls that do nothing, which is the least that it can be.
func (b *bench) relists(ctx context.Context, s side) error {
	if b.Relist == 0 {
		return nil
	}
	b.say("what a kubelet asks of %s, for %v", s.name(), b.Relist)
	if err := b.everySecond(ctx, s, rowRelist, s.relist); err != nil {
		return err
	}
	b.say("as many calls of %s that do nothing", s.name())
	return b.everySecond(ctx, s, rowEmpty, func(ctx context.Context, _ int) error {
		return errors.Join(s.empty(ctx), s.empty(ctx), s.empty(ctx))
	})
}

func (b *bench) everySecond(ctx context.Context, s side, row string, ask func(ctx context.Context, second int) error) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	return b.costs(s, row, func() error {
		for second := range int(b.Relist / time.Second) {
			if err := ask(ctx, second); err != nil {
				return fmt.Errorf("what a kubelet asks of %s: %w", s.name(), err)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
}

// costs measures how much CPU a side uses while something goes on, in percent of a
// processor: of all and of each process.
func (b *bench) costs(s side, row string, do func() error) error {
	before, err := used(s.cost())
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := do(); err != nil {
		return err
	}
	took := time.Since(begin).Seconds()
	after, err := used(s.cost())
	if err != nil {
		return err
	}
	each, sum := since(before, after)
	if len(each) < len(s.cost()) {
		return nil // a part is not seen, and the rest would flatter
	}
	b.report.add(row, s.name(), 100*sum/took)
	for name, seconds := range each {
		if name == s.name() {
			name = "itself"
		}
		b.report.add(of(row, name), s.name(), 100*seconds/took)
	}
	return nil
}

// idle measures the CPU of containers that do nothing and of which nobody asks.
func (b *bench) idle(ctx context.Context, c *cri, pods []*pod) error {
	if b.Idle == 0 {
		return nil
	}
	for i := len(pods); i < b.IdleContainers; i++ {
		if err := more(ctx, c, pods[i%len(pods)], fmt.Sprintf("c%d", i/len(pods)), sleeping); err != nil {
			return err
		}
	}
	b.say("%d containers of %s at rest, for %v", max(b.IdleContainers, len(pods)), c.called, b.Idle)
	if err := wait(ctx, settle); err != nil {
		return err
	}
	return b.costs(c, rowIdle, func() error { return wait(ctx, b.Idle) })
}

// probes runs a command in the pods' containers again and again, as exec
// probes do, and looks for what is left of that.
func (b *bench) probes(ctx context.Context, c *cri, pods []*pod) error {
	if b.Probing == 0 {
		return nil
	}
	b.say("%d exec probes a minute in %d pods of %s, for %v", b.ProbesEach, len(pods), c.called, b.Probing)
	ids := make([]string, len(pods))
	for i, p := range pods {
		ids[i] = p.containers[0]
	}
	before, err := b.left(ctx, c, ids)
	if err != nil {
		return err
	}
	err = b.costs(c, rowProbes, func() error { return b.probe(ctx, c, ids) })
	if err != nil {
		return err
	}
	if err := wait(ctx, settle); err != nil {
		return err
	}
	after, err := b.left(ctx, c, ids)
	if err != nil {
		return err
	}
	for row, n := range after {
		b.report.add(row, c.called, float64(n-before[row]))
	}
	return nil
}

func (b *bench) probe(ctx context.Context, c *cri, ids []string) error {
	var mu sync.Mutex // guards b.report
	var failed atomic.Int64
	tick := time.NewTicker(time.Minute / time.Duration(b.ProbesEach))
	defer tick.Stop()
	var g errgroup.Group
	total := int(b.Probing * time.Duration(b.ProbesEach) / time.Minute)
	for i := range total {
		g.Go(func() error {
			begin := time.Now()
			if err := c.exec(ctx, ids[i%len(ids)]); err != nil {
				failed.Add(1)
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			b.report.add(rowProbe, c.called, float64(time.Since(begin))/float64(time.Millisecond))
			return nil
		})
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), g.Wait())
		}
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("%d of %d probes of %s: %w", failed.Load(), total, c.called, err)
	}
	return nil
}

// left counts what probes could leave behind.
func (b *bench) left(ctx context.Context, c *cri, ids []string) (map[string]int, error) {
	found := map[string]int{}
	var err error
	if found[rowLeftProcesses], err = inside(ids); err != nil {
		return nil, err
	}
	if c.own.pid != 0 {
		if found[rowLeftFiles], err = c.own.descriptors(); err != nil {
			return nil, err
		}
	}
	if c.called != "berth" {
		return found, nil
	}
	found[rowLeftSessions] = 0
	for _, id := range ids {
		seen, err := b.docker.ContainerInspect(ctx, id)
		if err != nil {
			return nil, err
		}
		found[rowLeftSessions] += len(seen.ExecIDs)
	}
	return found, nil
}
