package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

// Times of waiting for a container that prints.
const (
	printLimit = 5 * time.Minute
	lookEvery  = 100 * time.Millisecond
	logLimit   = 20 * time.Second
)

// logs measures the CPU that a container's output costs: the Engine alone with
// its json-file, and with the kubelet's file as well.
func (b *bench) logs(ctx context.Context, runtimes []*cri) error {
	script := fmt.Sprintf(`awk 'BEGIN { l = sprintf("%%99s", ""); for (i = 0; i < %d; i++) print l }'`, b.LogLines)
	for round := range b.LogRounds {
		for _, s := range b.inTurn(round) {
			b.say("%d lines of output on %s", b.LogLines, s.name())
			if err := b.prints(ctx, s, fmt.Sprintf("logs-%d", round), script); err != nil {
				return err
			}
		}
	}
	for _, c := range runtimes {
		for round := range b.LogRounds {
			if err := os.RemoveAll(c.logDir(fmt.Sprintf("logs-%d", round))); err != nil {
				return err
			}
		}
	}
	return nil
}

// prints measures one container that prints.
func (b *bench) prints(ctx context.Context, s side, name, script string) (err error) {
	p := pod{name: name}
	defer b.takeDown(ctx, s, &err, &p)
	if p.sandbox, err = s.run(ctx, name); err != nil {
		return err
	}
	before, err := used(s.cost())
	if err != nil {
		return err
	}
	if err := more(ctx, s, &p, "c0", script); err != nil {
		return err
	}
	id := p.containers[0]
	limited, cancel := context.WithTimeout(ctx, printLimit)
	defer cancel()
	for done := false; !done; {
		if done, err = s.ended(ctx, id); err != nil {
			return err
		}
		if err := wait(limited, lookEvery); err != nil {
			return fmt.Errorf("a container of %s that prints has not ended after %v: %w", s.name(), printLimit, err)
		}
	}
	after, err := used(s.cost())
	if err != nil {
		return err
	}
	if err := b.whole(ctx, s, id, name); err != nil {
		return err
	}
	each, sum := since(before, after)
	if len(each) == len(s.cost()) {
		b.report.add(rowLogs, s.name(), sum)
		for process, seconds := range each {
			if process == s.name() {
				process = "itself"
			}
			b.report.add(of(rowLogs, process), s.name(), seconds)
		}
	}
	return down(ctx, s, p)
}

// whole waits until all lines are in the log. The bare Engine keeps the last
// files only.
func (b *bench) whole(ctx context.Context, s side, id, pod string) error {
	want := b.LogLines
	if s == b.bare {
		want = min(want, 1)
	}
	for end := time.Now().Add(logLimit); ; {
		n, err := s.logLines(ctx, id, pod, "c0")
		if err != nil {
			return fmt.Errorf("the log of a container of %s: %w", s.name(), err)
		}
		if n >= want {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the log of a container of %s has %d lines, want %d", s.name(), n, want)
		}
		if err := wait(ctx, lookEvery); err != nil {
			return err
		}
	}
}
