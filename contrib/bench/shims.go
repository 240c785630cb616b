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
		b.say("%d pods of %d containers on each side, one after the other", b.Rounds, n)
		if err := b.shimsOf(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// shimsOf measures pods of n containers.
func (b *bench) shimsOf(ctx context.Context, n int) (err error) {
	pods := map[side][]*pod{}
	defer func() {
		for s, all := range pods {
			b.cleanUp(ctx, s, &err, all...)
		}
	}()
	for _, s := range b.sides { // a pod that is not measured, as the first one includes one-time work
		if err := b.startMany(ctx, s, pods, n, "warm", false); err != nil {
			return err
		}
	}
	for round := range b.Rounds {
		for _, s := range b.rotated(round) {
			if err := b.startMany(ctx, s, pods, n, fmt.Sprint(round), true); err != nil {
				return err
			}
		}
	}
	if err := wait(ctx, measureDelay); err != nil {
		return err
	}
	for _, s := range b.sides {
		if err := b.countShims(s, n, pods[s]); err != nil {
			return err
		}
		if err := b.removeAll(ctx, s, pods[s]); err != nil {
			return err
		}
		delete(pods, s)
	}
	return nil
}

// startMany starts a pod of n containers.
func (b *bench) startMany(ctx context.Context, s side, pods map[side][]*pod, n int, name string, counts bool) error {
	p := &pod{name: fmt.Sprintf("shims-%d-%s", n, name)}
	pods[s] = append(pods[s], p)
	m, err := newMeter(s.cost(), true)
	if err != nil {
		return err
	}
	begin := time.Now()
	if p.sandbox, err = s.run(ctx, p.name); err != nil {
		return fmt.Errorf("start a pod of %s: %w", s.name(), err)
	}
	for k := range n {
		if err := addContainer(ctx, s, p, fmt.Sprintf("c%d", k), sleeping); err != nil {
			return fmt.Errorf("start a container of %s: %w", s.name(), err)
		}
	}
	took := time.Since(begin)
	if err := m.read(); err != nil || !counts {
		return err
	}
	b.report.add(each(rowPodStart, n), s.name(), float64(took)/float64(time.Millisecond))
	_, sum := m.used()
	b.report.add(each(rowPodCPU, n), s.name(), sum*1000)
	return nil
}

// countShims adds the shims of each pod of a side, their memory and threads.
func (b *bench) countShims(s side, n int, pods []*pod) error {
	for _, p := range pods[1:] { // without that which is not measured
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
