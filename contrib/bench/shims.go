package main

import (
	"context"
	"fmt"
	"time"
)

// shims measures, for pods of so many containers, how long they take to start, the CPU that all processes of a side take for it,
// and containerd's shims of a pod. The pods are in the network of the node, as
// CNI plugins do not differ between the sides.
func (b *bench) shims(ctx context.Context, _ []*cri) error {
	for _, n := range b.Shims {
		b.say("%d pods on each side, one after the other; containers of each: %d", b.Rounds, n)
		for round := range b.Rounds + 1 { // the first is not counted, as it includes one-time work
			for _, s := range b.rotated(round) {
				if err := b.startOnce(ctx, s, n, round); err != nil {
					return err
				}
			}
		}
		// Shims share the pages of their program, so no other side may have any.
		for _, s := range b.sides {
			if err := b.shimsOf(ctx, s, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// startOnce measures the start of a pod of n containers.
func (b *bench) startOnce(ctx context.Context, s side, n, round int) (err error) {
	p := &pod{name: fmt.Sprintf("start-%d-%d", n, round)}
	defer func() { b.cleanUp(ctx, s, &err, p) }()
	m, err := newMeter(s.cost(), allOfTheStart)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := startMany(ctx, s, p, n); err != nil {
		return err
	}
	took := time.Since(begin)
	if err := m.read(); err != nil {
		return err
	}
	if round > 0 {
		b.report.add(each(rowPodStart, n), s.name(), float64(took)/float64(time.Millisecond))
		_, sum := m.used()
		b.report.add(each(rowPodCPU, n), s.name(), sum*1000)
	}
	return removePod(ctx, s, *p)
}

// startMany starts a pod of n containers.
func startMany(ctx context.Context, s side, p *pod, n int) (err error) {
	if p.sandbox, err = s.run(ctx, p.name); err != nil {
		return fmt.Errorf("start a pod of %s: %w", s.name(), err)
	}
	for k := range n {
		if err := addContainer(ctx, s, p, fmt.Sprintf("c%d", k), sleeping); err != nil {
			return fmt.Errorf("start a container of %s: %w", s.name(), err)
		}
	}
	return nil
}

// shimsOf measures the shims of as many pods of n containers as there are rounds.
func (b *bench) shimsOf(ctx context.Context, s side, n int) (err error) {
	var pods []*pod
	defer func() { b.cleanUp(ctx, s, &err, pods...) }()
	for i := range b.Rounds {
		p := &pod{name: fmt.Sprintf("shims-%d-%d", n, i)}
		pods = append(pods, p)
		if err := startMany(ctx, s, p, n); err != nil {
			return err
		}
	}
	if err := wait(ctx, measureDelay); err != nil {
		return err
	}
	if err := b.countShims(s, n, pods); err != nil {
		return err
	}
	return b.removeAll(ctx, s, pods)
}

// countShims adds the shims of each pod of a side, their memory and threads.
func (b *bench) countShims(s side, n int, pods []*pod) error {
	for _, p := range pods {
		inside, err := processesIn(append([]string{p.sandbox}, p.containers...))
		if err != nil {
			return err
		}
		shims, err := shimsAbove(s.cost(), inside)
		if err != nil {
			return err
		}
		memory, threads := 0.0, 0
		for _, shim := range shims {
			size, err := shim.pss()
			if err != nil {
				return err
			}
			more, err := shim.threads()
			if err != nil {
				return err
			}
			memory, threads = memory+size, threads+more
		}
		b.report.add(each(rowShims, n), s.name(), float64(len(shims)))
		b.report.add(each(rowShimMemory, n), s.name(), memory)
		b.report.add(each(rowShimThreads, n), s.name(), float64(threads))
	}
	return nil
}

// shimsAbove returns the shims that are parents of processes.
func shimsAbove(w workers, inside []process) (found []process, err error) {
	all, err := w.shims()
	if err != nil {
		return nil, err
	}
	parents := map[int]bool{}
	for _, p := range inside {
		s, err := p.stat()
		if err != nil {
			return nil, err
		}
		parents[s.PPID] = true
	}
	for _, shim := range all {
		if parents[shim.pid] {
			found = append(found, shim)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("the containers have no shim among %d of their containerd", len(all))
	}
	return found, nil
}
