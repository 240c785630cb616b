package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// shimName is how the names of containerd's shims begin, as /proc has them.
const shimName = "containerd-shim"

// shims prints, for pods of so many containers, the shims of a pod, their memory, and the CPU
// that Docker, containerd, the shims and the low-level runtime take to start it. berthd's own
// is not among it: the two settings of shim-per-pod do not differ there.
func (b *bench) shims(ctx context.Context, c *cri, out io.Writer) error {
	fmt.Fprintf(out, "%-10s  %5s  %8s  %7s  %13s\n", "containers", "shims", "PSS MiB", "threads", "start, CPU ms")
	for _, n := range b.Shims {
		shims, pss, threads, cpu, err := b.shimsOf(ctx, c, n)
		if err != nil {
			return err
		}
		pods := float64(b.Rounds)
		fmt.Fprintf(out, "%-10d  %5.1f  %8.1f  %7.1f  %13.0f\n", n, shims/pods, pss/pods, threads/pods, cpu/pods*1000)
	}
	return nil
}

// shimsOf starts as many pods of n containers as there are rounds, one after the other, and returns the
// sums for all of them; memory in MiB, CPU in seconds.
func (b *bench) shimsOf(ctx context.Context, c *cri, n int) (shims, pss, threads, cpu float64, err error) {
	var pods []*pod
	defer func() { b.cleanUp(ctx, c, &err, pods...) }()
	before, err := cpuWithChildren(c.engine)
	if err != nil {
		return 0, 0, 0, 0, err
	}
	var ids []string
	for i := range b.Rounds {
		p := &pod{name: fmt.Sprintf("shims-%d-%d", n, i)}
		pods = append(pods, p)
		if p.sandbox, err = c.run(ctx, p.name); err != nil {
			return 0, 0, 0, 0, err
		}
		for k := range n {
			if err = addContainer(ctx, c, p, fmt.Sprintf("c%d", k), sleeping); err != nil {
				return 0, 0, 0, 0, err
			}
		}
		ids = append(append(ids, p.sandbox), p.containers...)
	}
	if err = wait(ctx, measureDelay); err != nil {
		return 0, 0, 0, 0, err
	}
	found, err := shimsWith(ids)
	if err != nil {
		return 0, 0, 0, 0, err
	}
	after, err := cpuWithChildren(c.engine)
	if err != nil {
		return 0, 0, 0, 0, err
	}
	ofShims, err := cpuWithChildren(found)
	if err != nil {
		return 0, 0, 0, 0, err
	}
	for _, shim := range found {
		memory, err := shim.pss()
		if err != nil {
			return 0, 0, 0, 0, err
		}
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", shim.pid))
		if err != nil {
			return 0, 0, 0, 0, err
		}
		pss, threads = pss+memory, threads+float64(len(tasks))
	}
	return float64(len(found)), pss, threads, after - before + ofShims, b.removeAll(ctx, c, pods)
}

// shimsWith returns the shims of containers: the parents of their first processes.
func shimsWith(ids []string) (shims []process, err error) {
	wanted := map[string]bool{}
	for _, id := range ids {
		wanted[id] = true
	}
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return nil, err
	}
	seen := map[int]bool{}
	for _, file := range files {
		cgroups, err := os.ReadFile(file)
		if err != nil || !containsAny(containerIDs(string(cgroups)), wanted) {
			continue // it has ended, or is another container's
		}
		s, err := readStat(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return nil, err
		}
		parent, err := readStat(strconv.Itoa(s.parent))
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(parent.name, shimName) && !seen[parent.pid] {
			seen[parent.pid] = true
			shims = append(shims, process{parent.name, parent.pid})
		}
	}
	if len(shims) == 0 {
		return nil, errors.New("the containers have no shim")
	}
	return shims, nil
}

func readStat(pid string) (stat, error) {
	data, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return stat{}, err
	}
	return parseStat(data)
}

// cpuWithChildren returns the seconds of CPU that processes and their children that have
// ended have used.
func cpuWithChildren(all []process) (sum float64, err error) {
	for _, p := range all {
		if p.pid == 0 {
			return 0, fmt.Errorf("the process of %s cannot be determined", p.name)
		}
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
		if err != nil {
			return 0, err
		}
		// utime, stime, cutime and cstime are the fields 14 to 17 of proc_pid_stat(5), and 3 is after the name.
		fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		for _, field := range fields[11:15] {
			n, err := strconv.ParseFloat(field, 64)
			if err != nil {
				return 0, fmt.Errorf("CPU of %s: %w", p.name, err)
			}
			sum += n / ticks
		}
	}
	return sum, nil
}

// pss returns the memory of a process in MiB, with its share of pages that others use too.
func (p process) pss() (float64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", p.pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "Pss:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("/proc has no Pss of %s", p.name)
}

// measureShims is the whole of a run with --shims.
func measureShims(ctx context.Context, p *plan, out, progress io.Writer) error {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	engine, err := engineProcesses(p.Docker)
	if err != nil {
		return err
	}
	c, err := dial(ctx, "berth", p.Berthd, p.Image, dir, engine)
	if err != nil {
		return err
	}
	b := &bench{plan: p, progress: progress}
	b.say("%d pods each, %s", b.Rounds, c.version)
	return b.shims(ctx, c, out)
}
