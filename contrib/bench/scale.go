package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"github.com/prometheus/procfs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Timeouts and interval of a restart.
const (
	shutdownTimeout = time.Minute
	restartTimeout  = 5 * time.Minute
	connectInterval = time.Millisecond // it is added to the time that a restart takes
)

// scales measures nodes with more and more pods, one runtime after the other.
func (b *bench) scales(ctx context.Context, runtimes []*cri) error {
	for _, c := range runtimes {
		if err := b.scale(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) scale(ctx context.Context, c *cri) (err error) {
	var pods []*pod
	defer func() { b.cleanUp(ctx, c, &err, pods...) }()
	if c.own.pid == 0 {
		return fmt.Errorf("the process of %s cannot be determined, so that it cannot be restarted", c.label)
	}
	if err := wait(ctx, measureDelay); err != nil {
		return err
	}
	_, empty, err := node(c, nil)
	if err != nil {
		return err
	}
	for _, n := range b.Density {
		if pods, err = b.grow(ctx, c, pods, n); err != nil {
			return err
		}
		if err := b.nodeMemory(ctx, c, pods, empty); err != nil {
			return err
		}
		if err := b.relists(ctx, at(rowRelist, n), c); err != nil {
			return err
		}
		b.say("%d restarts of %s", b.Restarts, c.label)
		for range b.Restarts {
			if err := b.restart(ctx, c, n, pods); err != nil {
				return err
			}
		}
	}
	return b.removeAll(ctx, c, pods)
}

// nodeMemory measures the memory of a node with pods, and how much of it is for one of them: without them it was empty.
func (b *bench) nodeMemory(ctx context.Context, c *cri, pods []*pod, empty float64) error {
	n := len(pods)
	for range memorySamples {
		parts, sum, err := node(c, pods)
		if err != nil {
			return err
		}
		b.report.add(at(rowNode, n), c.label, sum)
		for _, name := range slices.Sorted(maps.Keys(parts)) {
			b.report.add(of(at(rowNode, n), name), c.label, parts[name])
		}
		b.report.add(at(rowNodePod, n), c.label, (sum-empty)/float64(n))
		if err := wait(ctx, memoryInterval); err != nil {
			return err
		}
	}
	return nil
}

// node returns the memory of a node in MiB: of the processes of a side, its shims, and the first processes of its sandboxes. That of
// containers is not part of it.
func node(c *cri, pods []*pod) (parts map[string]float64, sum float64, err error) {
	shims, err := c.working.shims()
	if err != nil {
		return nil, 0, err
	}
	var ids []string
	for _, p := range pods {
		ids = append(ids, p.sandbox)
	}
	first, err := processesIn(ids)
	if err != nil {
		return nil, 0, err
	}
	for i := range first {
		first[i].name = "pause"
	}
	parts = map[string]float64{}
	for _, p := range slices.Concat(c.working.named, shims, first) {
		size, err := p.pss()
		if err != nil {
			return nil, 0, err
		}
		name := p.name
		if name == c.label {
			name = "itself"
		}
		parts[name] += size
		sum += size
	}
	return parts, sum, nil
}

// restart ends a runtime and starts it again, and measures the time from its exec until a list of pods and
// a list of containers are correct.
func (b *bench) restart(ctx context.Context, c *cri, n int, pods []*pod) error {
	again, err := commandOf(c.own)
	if err != nil {
		return err
	}
	if err := end(c.own); err != nil {
		return err
	}
	// From here on the runtime has to start also if ctx ends: it has to remove the pods.
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), restartTimeout)
	defer cancel()
	begin := time.Now()
	if err := again.Start(); err != nil {
		return fmt.Errorf("start %s again: %w", c.label, err)
	}
	started := process{c.label, again.Process.Pid}
	go func() { _ = again.Wait() }() // so that it is no zombie when it has ended
	var last error
	for {
		if last = c.reconnect(limited, pods); last == nil {
			break
		}
		if err := wait(limited, connectInterval); err != nil {
			return fmt.Errorf("%s has no correct list %v after its restart: %w", c.label, restartTimeout, last)
		}
	}
	b.report.add(at(rowRestart, n), c.label, float64(time.Since(begin))/float64(time.Millisecond))
	used, err := started.cpu(false)
	if err != nil {
		return err
	}
	b.report.add(at(rowRestartCPU, n), c.label, used*1000)
	return errors.Join(c.findProcesses(), c.ready(limited), wait(ctx, measureDelay))
}

// reconnect connects to a runtime that was restarted. It succeeds when all pods are ready and their containers run.
func (c *cri) reconnect(ctx context.Context, pods []*pod) error {
	if err := checkSocket(c.socket); err != nil {
		return err
	}
	conn, err := connect(c.socket)
	if err != nil {
		return err
	}
	fresh := *c
	fresh.use(conn)
	if err := fresh.correct(ctx, pods); err != nil {
		return errors.Join(err, conn.Close())
	}
	_ = c.conn.Close() // to the process that has ended
	c.use(conn)
	return nil
}

// correct returns an error unless the lists have exactly these pods and their containers.
func (c *cri) correct(ctx context.Context, pods []*pod) error {
	sandboxes, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	containers, err := c.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	running := map[string]bool{}
	for _, p := range sandboxes.GetItems() {
		running[p.GetId()] = p.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY
	}
	for _, k := range containers.GetContainers() {
		running[k.GetId()] = k.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	want := 0
	for _, p := range pods {
		for _, id := range append([]string{p.sandbox}, p.containers...) {
			want++
			if !running[id] {
				return fmt.Errorf("%s of pod %s does not run, or is not in the list", id, p.name)
			}
		}
	}
	if len(running) != want {
		return fmt.Errorf("the lists have %d pods and containers, want %d", len(running), want)
	}
	return nil
}

// commandOf returns the command that starts a process again.
func commandOf(p process) (*exec.Cmd, error) {
	cmd, err := readCommand(p)
	if p.ended() { // at any of the reads, which then fail or find nothing
		return nil, fmt.Errorf("%s has ended", p.name)
	}
	return cmd, err
}

func readCommand(p process) (*exec.Cmd, error) {
	proc, err := procfs.NewProc(p.pid)
	if err != nil {
		return nil, err
	}
	s, err := proc.Stat()
	if err != nil {
		return nil, err
	}
	if s.PPID == 1 && os.Getppid() != 1 {
		return nil, fmt.Errorf("%s is not restarted: init started it, so it may be one that this node needs; measure a private one, as bench.sh does", p.name)
	}
	program, err := proc.Executable()
	if err != nil {
		return nil, err
	}
	args, err := proc.CmdLine()
	if err != nil {
		return nil, err
	}
	env, err := proc.Environ()
	if err != nil {
		return nil, err
	}
	dir, err := proc.Cwd()
	if err != nil {
		return nil, err
	}
	cmd := &exec.Cmd{Path: program, Args: args, Env: env, Dir: dir, SysProcAttr: &syscall.SysProcAttr{Setpgid: true}} // Ctrl-C is not for it
	if log, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/2", p.pid), os.O_APPEND|os.O_WRONLY, 0); err == nil {
		cmd.Stdout, cmd.Stderr = log, log
	}
	return cmd, nil
}

// end ends a process and waits until it has ended.
func end(p process) error {
	if err := syscall.Kill(p.pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("end %s: %w", p.name, err)
	}
	for limit := time.Now().Add(shutdownTimeout); time.Now().Before(limit); <-time.After(connectInterval) {
		if p.ended() {
			return nil
		}
	}
	return fmt.Errorf("%s has not ended %v after SIGTERM", p.name, shutdownTimeout)
}
