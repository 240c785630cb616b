package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/docker/docker/client"
	"github.com/prometheus/procfs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// wait waits for d, or until ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A bench is one run.
type bench struct {
	*plan
	docker   *client.Client
	sides    []side // the bare side first
	bare     *bare
	report   *Report
	progress io.Writer
}

// measureDelay is how long a side is idle before its memory and open files are measured.
const measureDelay = 3 * time.Second

// Memory is read so many times, because garbage collection changes it.
const (
	memorySamples  = 5
	memoryInterval = 200 * time.Millisecond
)

// measure makes one run.
func measure(ctx context.Context, p *plan, progress io.Writer) (_ *Report, err error) {
	if os.Getuid() != 0 {
		return nil, errors.New("the bare calls set up networks and need root")
	}
	dir, err := os.MkdirTemp("", "berth-bench")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	docker, engine, err := connectEngine(ctx, p.Docker)
	if err != nil {
		return nil, err
	}
	defer docker.Close()
	b := &bench{plan: p, docker: docker, report: newReport(p), progress: progress}
	if b.bare, err = newBare(ctx, p, docker, engine, dir); err != nil {
		return nil, err
	}
	defer b.bare.close()
	b.sides = []side{b.bare}
	var runtimes []*cri
	for _, r := range p.runtimes() {
		c, err := connectRuntime(ctx, *r, dir)
		if err != nil {
			return nil, err
		}
		if n, err := c.listSandboxes(ctx); err != nil || n > 0 {
			return nil, errors.Join(err, fmt.Errorf("%s has %d pods: measure on a node without pods", c.label, n))
		}
		b.sides, runtimes = append(b.sides, c), append(runtimes, c)
	}
	if err := b.describeRun(ctx, runtimes); err != nil {
		return nil, err
	}
	phases := []func(context.Context, []*cri) error{b.baseline, b.lifecycles, b.bursts, b.density, b.logs}
	switch {
	case len(p.Shims) > 0:
		phases = []func(context.Context, []*cri) error{b.shims}
	case len(p.Density) > 0:
		phases = []func(context.Context, []*cri) error{b.scales}
	case p.Streams > 0:
		phases = []func(context.Context, []*cri) error{b.streams}
	}
	for _, phase := range phases {
		if err := phase(ctx, runtimes); err != nil {
			return nil, err
		}
	}
	return b.report, nil
}

// connectRuntime connects to berthd or a peer, and to its Engine.
func connectRuntime(ctx context.Context, r runtimePlan, dir string) (*cri, error) {
	var engine []process
	if r.Engine != "" {
		docker, found, err := connectEngine(ctx, r.Engine)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.Name, err)
		}
		defer docker.Close()
		if err := loadPause(ctx, docker); err != nil {
			return nil, err
		}
		engine = found
	}
	return dial(ctx, r, dir, engine)
}

// describeRun adds the machine, the Engine and the sides to the report.
func (b *bench) describeRun(ctx context.Context, runtimes []*cri) error {
	engine, err := describe(ctx, b.docker)
	if err != nil {
		return err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	b.report.Kind = machineKind()
	b.report.Machine = fmt.Sprintf("%s, Linux %s", b.report.Kind, unix.ByteSliceToString(uts.Release[:]))
	b.report.Engine = engine
	b.report.Order = []string{"bare"}
	b.report.Sides = map[string]string{"bare": "calls to the Engine and the CNI plugins"}
	for _, c := range runtimes {
		b.report.Sides[c.label] = c.version
		b.report.Order = append(b.report.Order, c.label)
	}
	return nil
}

// machineKind describes the processors. Runs on different ones are not compared.
func machineKind() string {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return "unknown CPUs"
	}
	cpus, err := fs.CPUInfo()
	if err != nil || len(cpus) == 0 {
		return fmt.Sprintf("%d CPUs", runtime.NumCPU())
	}
	return strings.TrimSpace(fmt.Sprintf("%d CPUs %s", len(cpus), cpus[0].ModelName))
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// timed measures one step of a side.
func (b *bench) timed(row string, s side, do func() error) error {
	begin := time.Now()
	if err := do(); err != nil {
		return fmt.Errorf("%s of %s: %w", row, s.name(), err)
	}
	b.report.add(row, s.name(), float64(time.Since(begin))/float64(time.Millisecond))
	return nil
}

// rotated returns the sides in a different order for each round, so that no side is always
// first.
func (b *bench) rotated(round int) []side {
	n := len(b.sides)
	return append(append([]side{}, b.sides[round%n:]...), b.sides[:round%n]...)
}

// baseline measures the size and memory of the runtimes before the first pod.
func (b *bench) baseline(ctx context.Context, runtimes []*cri) error {
	if err := wait(ctx, measureDelay); err != nil {
		return err
	}
	for _, c := range runtimes {
		if c.own.pid == 0 {
			b.say("the process of %s cannot be determined: its CPU and memory are not measured", c.label)
			continue
		}
		size, err := c.own.binary()
		if err != nil {
			return err
		}
		b.report.add(rowBinary, c.label, size)
		if err := b.memory(ctx, rowMemoryIdle, c); err != nil {
			return err
		}
	}
	return nil
}

// memory measures the resident memory of a runtime.
func (b *bench) memory(ctx context.Context, row string, c *cri) error {
	if c.own.pid == 0 {
		return nil
	}
	for range memorySamples {
		size, err := c.own.resident()
		if err != nil {
			return err
		}
		b.report.add(row, c.label, size)
		if err := wait(ctx, memoryInterval); err != nil {
			return err
		}
	}
	return nil
}

// lifecycles measures the steps of a pod's life, one pod at a time.
func (b *bench) lifecycles(ctx context.Context, _ []*cri) error {
	if b.Rounds == 0 {
		return nil
	}
	b.say("%d pods on each side, one after the other", b.Rounds)
	for round := range b.Rounds + 1 {
		for _, s := range b.rotated(round) {
			if err := b.lifecycle(ctx, s, fmt.Sprintf("life-%d", round)); err != nil {
				return err
			}
		}
		if round == 0 {
			b.report.dropSamples() // the first pod includes one-time work
		}
	}
	return nil
}

func (b *bench) lifecycle(ctx context.Context, s side, name string) (err error) {
	p := pod{name: name}
	defer b.cleanUp(ctx, s, &err, &p)
	id := ""
	steps := []struct {
		row   string
		times int
		do    func() error
	}{
		{rowRun, 1, func() (err error) { p.sandbox, err = s.run(ctx, name); return err }},
		{rowCreate, 1, func() (err error) {
			if id, err = s.create(ctx, p.sandbox, name, "c0", sleeping); err == nil {
				p.containers = []string{id}
			}
			return err
		}},
		{rowStart, 1, func() error { return s.start(ctx, id) }},
		{rowStatus, 5, func() error { return s.status(ctx, id) }},
		{rowExec, 3, func() error { return s.exec(ctx, id) }},
		{rowStopContainer, 1, func() error { return s.stopContainer(ctx, id) }},
		{rowRemoveContainer, 1, func() error { return s.removeContainer(ctx, id) }},
		{rowStop, 1, func() error { p.containers = nil; return s.stop(ctx, p.sandbox) }},
		{rowRemove, 1, func() error {
			err := s.remove(ctx, p.sandbox)
			p.sandbox = ""
			return err
		}},
	}
	for _, step := range steps {
		for range step.times {
			if err := b.timed(step.row, s, step.do); err != nil {
				return err
			}
		}
	}
	return nil
}

// cleanUp removes pods after a failure, also if ctx has ended.
func (b *bench) cleanUp(ctx context.Context, s side, err *error, pods ...*pod) {
	if *err == nil || len(pods) == 0 {
		return
	}
	b.say("removing %d pods of %s after an error or signal", len(pods), s.name())
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute+time.Duration(len(pods))*time.Second)
	defer cancel()
	left := make([]error, len(pods))
	var g errgroup.Group
	g.SetLimit(removeParallel)
	for i, p := range pods {
		g.Go(func() error {
			left[i] = removePod(ctx, s, *p)
			return nil
		})
	}
	_ = g.Wait() // the errors are in left
	for i, p := range pods {
		if left[i] != nil {
			*err = errors.Join(*err, fmt.Errorf("pod %s of %s is left behind: %w", p.name, s.name(), left[i]))
			return // one line is enough
		}
	}
}

// bursts measures the time until many pods that are started in parallel run.
func (b *bench) bursts(ctx context.Context, _ []*cri) error {
	for round := range b.Bursts {
		b.say("burst %d of %d: %d pods on each side", round+1, b.Bursts, b.Burst)
		for _, s := range b.rotated(round) {
			begin := time.Now()
			pods, err := b.fill(ctx, s, fmt.Sprintf("burst-%d", round), 0, b.Burst, b.Parallel)
			if err != nil {
				return err
			}
			b.report.add(rowBurst, s.name(), time.Since(begin).Seconds())
			if err := b.removeAll(ctx, s, pods); err != nil {
				return err
			}
		}
	}
	return nil
}

// logDir returns the log directory of a pod.
func (c *cri) logDir(pod string) string { return filepath.Join(c.dir, pod) }
