package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// errNotImplemented is the error of a side that does not implement a list call.
var errNotImplemented = errors.New("not implemented")

// Intervals of a kubelet's calls that it does not make every second, in seconds.
const (
	statsEvery  = 10
	imagesEvery = 30
)

// removeParallel is the number of pods that are removed in parallel. Removing is not measured.
const removeParallel = 4

// fill starts the pods with the numbers begin to end-1, several in parallel.
func (b *bench) fill(ctx context.Context, s side, name string, begin, end, parallel int) (pods []*pod, err error) {
	pods = make([]*pod, end-begin)
	for i := range pods {
		pods[i] = &pod{}
	}
	defer func() { b.cleanUp(ctx, s, &err, pods...) }()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i := range pods {
		g.Go(func() error {
			p, err := startPod(ctx, s, fmt.Sprintf("%s-%d", name, begin+i), sleeping)
			*pods[i] = p
			if err != nil {
				return fmt.Errorf("start a pod of %s: %w", s.name(), err)
			}
			return nil
		})
	}
	return pods, g.Wait()
}

// grow starts pods until there are n, which it returns also after an error, and measures the memory then.
func (b *bench) grow(ctx context.Context, c *cri, pods []*pod, n int) ([]*pod, error) {
	b.say("%d pods on %s", n, c.label)
	more, err := b.fill(ctx, c, "dense", len(pods), n, removeParallel)
	if err != nil {
		return pods, err // fill has removed its own
	}
	pods = append(pods, more...)
	if err := wait(ctx, measureDelay); err != nil {
		return pods, err
	}
	return pods, b.memory(ctx, rowMemory(n), c)
}

// removeAll removes pods.
func (b *bench) removeAll(ctx context.Context, s side, pods []*pod) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(removeParallel)
	for _, p := range pods {
		g.Go(func() error {
			if err := removePod(ctx, s, *p); err != nil {
				return fmt.Errorf("remove a pod of %s: %w", s.name(), err)
			}
			return nil
		})
	}
	return g.Wait()
}

// density measures a node with many pods, one runtime after the other. The bare
// calls list berthd's pods.
func (b *bench) density(ctx context.Context, runtimes []*cri) error {
	for _, c := range runtimes {
		if err := b.densityOf(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) densityOf(ctx context.Context, c *cri) (err error) {
	var pods []*pod
	defer func() { b.cleanUp(ctx, c, &err, pods...) }()
	with := []side{c}
	if c.label == "berth" {
		with = append(with, b.bare)
	}
	for level, n := range b.Pods {
		if pods, err = b.grow(ctx, c, pods, n); err != nil {
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
		if err := b.relists(ctx, rowRelist, with...); err != nil {
			return err
		}
		if err := b.probes(ctx, c, pods); err != nil {
			return err
		}
		if err := b.idle(ctx, c, pods); err != nil {
			return err
		}
	}
	return b.removeAll(ctx, c, pods)
}

// lists measures the list calls of the sides, in alternation.
func (b *bench) lists(ctx context.Context, pods int, sides ...side) error {
	for _, row := range []string{rowPods, rowContainers, rowStatuses, rowStats, rowPodStats, rowImages} {
		var calls []sideCall
		most := 0
		for _, s := range sides {
			for _, q := range s.lists() {
				if q.row == row {
					calls, most = append(calls, sideCall{s, q}), max(most, q.times)
				}
			}
		}
		if pods != b.Pods[0] {
			row = at(row, pods)
		}
		for i := range most + 1 { // the first call may have to fill caches
			for _, c := range calls {
				if i > c.times {
					continue
				}
				if err := b.list(ctx, row, pods, c, i > 0); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// A sideCall is a list call of a side.
type sideCall struct {
	side
	listCall
}

// list measures one list call.
func (b *bench) list(ctx context.Context, row string, pods int, c sideCall, counts bool) error {
	begin := time.Now()
	n, err := c.call(ctx)
	took := time.Since(begin)
	if errors.Is(err, errNotImplemented) {
		return nil
	}
	least := pods
	if c.row == rowImages {
		least = 1
	}
	if err == nil && n < least {
		err = fmt.Errorf("found %d, want %d", n, least)
	}
	if err != nil {
		return fmt.Errorf("%s of %s: %w", row, c.name(), err)
	}
	if counts {
		b.report.add(row, c.name(), float64(took)/float64(time.Millisecond))
	}
	return nil
}

// relists makes a kubelet's calls every second and measures the CPU of the sides, in alternation; then
// the same number of calls without work, which is the lower bound.
func (b *bench) relists(ctx context.Context, row string, sides ...side) error {
	if b.Relist == 0 {
		return nil
	}
	for round := range b.RelistRounds {
		for _, s := range sides {
			b.say("relist calls of a kubelet to %s, for %v (%d of %d)", s.name(), b.Relist, round+1, b.RelistRounds)
			if err := b.measureEverySecond(ctx, s, row, s.relist); err != nil {
				return err
			}
		}
	}
	if row != rowRelist {
		return nil
	}
	for _, s := range sides {
		b.say("the same number of empty calls to %s", s.name())
		err := b.measureEverySecond(ctx, s, rowEmpty, func(ctx context.Context, _ int) error {
			return errors.Join(s.noop(ctx), s.noop(ctx), s.noop(ctx))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) measureEverySecond(ctx context.Context, s side, row string, call func(ctx context.Context, second int) error) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	return b.measureCPU(s, row, func() error {
		for second := range int(b.Relist / time.Second) {
			if err := call(ctx, second); err != nil {
				return fmt.Errorf("relist of %s: %w", s.name(), err)
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

// measureCPU measures the CPU that a side uses while do runs, in percent of a
// core: in total and for each process.
func (b *bench) measureCPU(s side, row string, do func() error) error {
	m, err := newMeter(s.cost(), noChildren)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := do(); err != nil {
		return err
	}
	took := time.Since(begin).Seconds()
	if err := m.read(); err != nil {
		return err
	}
	b.addCPU(s, row, m, 100/took)
	return nil
}

// addCPU adds what a meter shows, multiplied by factor: the sum, and the part of each process. Without the
// process of the side itself the sum would be too low.
func (b *bench) addCPU(s side, row string, m *meter, factor float64) {
	each, sum := m.used()
	if _, known := each[s.name()]; !known && s != side(b.bare) {
		return
	}
	b.report.add(row, s.name(), factor*sum)
	for _, name := range slices.Sorted(maps.Keys(each)) {
		called := name
		if name == s.name() {
			called = "itself"
		}
		b.report.add(of(row, called), s.name(), factor*each[name])
	}
}

// idle measures the CPU of idle containers without any request.
func (b *bench) idle(ctx context.Context, c *cri, pods []*pod) error {
	if b.Idle == 0 {
		return nil
	}
	for i := len(pods); i < b.IdleContainers; i++ {
		if err := addContainer(ctx, c, pods[i%len(pods)], fmt.Sprintf("c%d", i/len(pods)), sleeping); err != nil {
			return err
		}
	}
	b.say("%d idle containers of %s, for %v", max(b.IdleContainers, len(pods)), c.label, b.Idle)
	if err := wait(ctx, measureDelay); err != nil {
		return err
	}
	return b.measureCPU(c, rowIdle, func() error { return wait(ctx, b.Idle) })
}

// probes runs a command in the pods' containers repeatedly, as exec
// probes do, and counts what the probes leave behind.
func (b *bench) probes(ctx context.Context, c *cri, pods []*pod) error {
	if b.Probing == 0 {
		return nil
	}
	b.say("%d exec probes per minute in %d pods of %s, for %v", b.ProbesEach, len(pods), c.label, b.Probing)
	ids := make([]string, len(pods))
	for i, p := range pods {
		ids[i] = p.containers[0]
	}
	before, err := b.left(ctx, c, ids)
	if err != nil {
		return err
	}
	err = b.measureCPU(c, rowProbes, func() error { return b.probe(ctx, c, ids) })
	if err != nil {
		return err
	}
	if err := wait(ctx, measureDelay); err != nil {
		return err
	}
	after, err := b.left(ctx, c, ids)
	if err != nil {
		return err
	}
	for row, n := range after {
		b.report.add(row, c.label, float64(n-before[row]))
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
			b.report.add(rowProbe, c.label, float64(time.Since(begin))/float64(time.Millisecond))
			return nil
		})
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), g.Wait())
		}
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("%d of %d probes of %s: %w", failed.Load(), total, c.label, err)
	}
	return nil
}

// left counts the processes, exec sessions and open files that probes could leave behind.
func (b *bench) left(ctx context.Context, c *cri, ids []string) (map[string]int, error) {
	found := map[string]int{}
	inside, err := processesIn(ids)
	if err != nil {
		return nil, err
	}
	found[rowLeftProcesses] = len(inside)
	if c.own.pid != 0 {
		if found[rowLeftFiles], err = c.own.descriptors(); err != nil {
			return nil, err
		}
	}
	if c.label != "berth" {
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
