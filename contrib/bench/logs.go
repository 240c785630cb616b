package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

// Timeouts and interval for a container that prints.
const (
	outputTimeout = 5 * time.Minute
	pollInterval  = 100 * time.Millisecond
	logTimeout    = 20 * time.Second
)

// logs measures the CPU of a container's output: of the Engine alone with
// its json-file, and of runtimes that also write the kubelet's log file.
func (b *bench) logs(ctx context.Context, runtimes []*cri) error {
	script := fmt.Sprintf(`awk 'BEGIN { l = sprintf("%%99s", ""); for (i = 0; i < %d; i++) print l }'`, b.LogLines)
	for round := range b.LogRounds {
		for _, s := range b.rotated(round) {
			b.say("%d lines of output on %s", b.LogLines, s.name())
			if err := b.logCost(ctx, s, fmt.Sprintf("logs-%d", round), script); err != nil {
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

// logCost measures the CPU of one container that prints.
func (b *bench) logCost(ctx context.Context, s side, name, script string) (err error) {
	p := pod{name: name}
	defer b.cleanUp(ctx, s, &err, &p)
	if p.sandbox, err = s.run(ctx, name); err != nil {
		return err
	}
	m, err := newMeter(s.cost(), noChildren)
	if err != nil {
		return err
	}
	if err := addContainer(ctx, s, &p, "c0", script); err != nil {
		return err
	}
	id := p.containers[0]
	limited, cancel := context.WithTimeout(ctx, outputTimeout)
	defer cancel()
	for done := false; !done; {
		if err := m.read(); err != nil { // repeatedly: the shim may end with the container
			return err
		}
		if done, err = s.ended(ctx, id); err != nil {
			return err
		}
		if err := wait(limited, pollInterval); err != nil {
			return fmt.Errorf("a container of %s that prints has not ended after %v: %w", s.name(), outputTimeout, err)
		}
	}
	if err := m.read(); err != nil {
		return err
	}
	if err := b.waitForLog(ctx, s, id, name); err != nil {
		return err
	}
	b.addCPU(s, rowLogs, m, 1)
	return removePod(ctx, s, p)
}

// waitForLog waits until all lines are in the log. The bare Engine keeps only the last
// files, so one line is enough there.
func (b *bench) waitForLog(ctx context.Context, s side, id, pod string) error {
	want := b.LogLines
	if s == b.bare {
		want = min(want, 1)
	}
	for end := time.Now().Add(logTimeout); ; {
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
		if err := wait(ctx, pollInterval); err != nil {
			return err
		}
	}
}
