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
		b.say("%d pods on %s", n, c.label)
		more, err := b.fill(ctx, c, "dense", len(pods), n, removeParallel)
		if err != nil {
			return err
		}
		pods = append(pods, more...)
		if err := wait(ctx, measureDelay); err != nil {
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
	return b.removeAll(ctx, c, pods)
}

// lists measures the list calls.
func (b *bench) lists(ctx context.Context, pods int, sides ...side) error {
	for _, s := range sides {
		for _, q := range s.lists() {
			row := q.row
			if pods != b.Pods[0] {
				row = at(row, pods)
			}
			for i := range q.times + 1 {
				begin := time.Now()
				n, err := q.call(ctx)
				took := time.Since(begin)
				if errors.Is(err, errNotImplemented) {
					break
				}
				if err == nil && n < pods {
					err = fmt.Errorf("found %d, want %d", n, pods)
				}
				if err != nil {
					return fmt.Errorf("%s of %s: %w", row, s.name(), err)
				}
				if i > 0 { // the first call may have to fill caches
					b.report.add(row, s.name(), float64(took)/float64(time.Millisecond))
				}
			}
		}
	}
	return nil
}

// relists makes a kubelet's calls every second and measures the CPU; then
// the same number of calls without work, which is the lower bound.
func (b *bench) relists(ctx context.Context, s side) error {
	if b.Relist == 0 {
		return nil
	}
	b.say("relist calls of a kubelet to %s, for %v", s.name(), b.Relist)
	if err := b.measureEverySecond(ctx, s, rowRelist, s.relist); err != nil {
		return err
	}
	b.say("the same number of empty calls to %s", s.name())
	return b.measureEverySecond(ctx, s, rowEmpty, func(ctx context.Context, _ int) error {
		return errors.Join(s.noop(ctx), s.noop(ctx), s.noop(ctx))
	})
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
	before, err := cpuSeconds(s.cost())
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := do(); err != nil {
		return err
	}
	took := time.Since(begin).Seconds()
	after, err := cpuSeconds(s.cost())
	if err != nil {
		return err
	}
	each, sum := difference(before, after)
	if len(each) < len(s.cost()) {
		return nil // without a process of the side the sum would be too low
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
	var err error
	if found[rowLeftProcesses], err = processesIn(ids); err != nil {
		return nil, err
	}
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
