package criu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/core/hostprobe"
	"berth/core/panics"
	"berth/core/sleep"
)

const (
	// maxOutput bounds the output of a program, in bytes.
	maxOutput = 16 << 10
	// outputGrace is how long the output of a program that has ended may be held open by its children.
	outputGrace = 2 * time.Second
	// defaultPath is for shims without PATH, as in runc.
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// markerName is the variable in the environment of runc, and so of CRIU, that says which checkpoint they work for: after a crash
	// they are children of no one. See WorksFor for CRIU, which overwrites it.
	markerName = "BERTH_CHECKPOINT"
)

// A host runs programs as the process pid does: in its mount namespace and with its PATH.
type host struct {
	pid  int
	path string
}

func newHost(pid int) host {
	path, _ := hostprobe.Environ(pid, "PATH")
	if path == "" {
		path = defaultPath
	}
	return host{pid, path}
}

// run runs a program and returns the end of its output. It is killed when ctx ends; its children are not.
func (h host) run(ctx context.Context, marker string, args ...string) (output string, err error) {
	same, err := hostprobe.SameMountNS(h.pid)
	if err != nil {
		return "", err
	}
	if same {
		return h.runHere(ctx, marker, args)
	}
	process := filepath.Join("/proc", strconv.Itoa(h.pid))
	ns, err := os.Open(filepath.Join(process, "ns/mnt"))
	if err != nil {
		return "", fmt.Errorf("mount namespace of process %d: %w", h.pid, err)
	}
	defer ns.Close()
	root, err := os.Open(filepath.Join(process, "root"))
	if err != nil {
		return "", fmt.Errorf("root directory of process %d: %w", h.pid, err)
	}
	defer root.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil { // setns(2) refuses threads that share their working directory
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter the mount namespace of process %d: %w", h.pid, err)
		}
		if err := errors.Join(unix.Fchdir(int(root.Fd())), unix.Chroot(".")); err != nil {
			return fmt.Errorf("enter the root directory of process %d: %w", h.pid, err)
		}
		output, err = h.runHere(ctx, marker, args)
		return err
	})
	return output, err
}

// onThread runs f on a thread that ends with it. It is never the main one, which cannot end: /proc/self would show for good what
// f has changed.
func onThread(f func() error) error {
	g := panics.NewGroup(slog.Default())
	g.Go(func() error {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			return onThread(f) // while this goroutine holds the main thread
		}
		return f() // the thread stays locked and is not used again
	})
	return g.Wait()
}

// runHere runs a program in the mount namespace of the calling thread.
func (h host) runHere(ctx context.Context, marker string, args []string) (string, error) {
	program, err := h.find(args[0])
	if err != nil {
		return "", err
	}
	var output tail
	cmd := exec.CommandContext(ctx, program, args[1:]...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=" + h.path, markerName + "=" + marker}
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &output, &output, outputGrace
	// Signals that a terminal sends to berthd are not for CRIU.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	err = cmd.Run()
	if ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	return strings.TrimSpace(string(output.text)), err
}

// find returns the path of a program, which exec.LookPath would search in the PATH of berthd.
func (h host) find(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for dir := range strings.SplitSeq(h.path, ":") {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); filepath.IsAbs(path) && err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", &fs.PathError{Op: "find", Path: name, Err: fs.ErrNotExist}
}

// A tail keeps the last maxOutput bytes that are written to it.
type tail struct{ text []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	if more := len(t.text) - maxOutput; more > 0 {
		t.text = append(t.text[:0], t.text[more:]...)
	}
	return len(p), nil
}

const (
	// releaseGrace is how long CRIU may take to release the processes of the container once runc is gone. It finds out with its next
	// message to runc.
	releaseGrace = 5 * time.Second
	// killTimeout bounds the wait for the end of killed processes.
	killTimeout  = 5 * time.Second
	pollInterval = 20 * time.Millisecond
)

// EndRestore ends what restores the checkpoint with a marker, a random word in the environment or the arguments of each such process.
func EndRestore(ctx context.Context, marker string) error { return endProcesses(ctx, marker) }

// endProcesses ends what works for the checkpoint marker. If CRIU has to be killed, its code in the container's processes lets them
// go on (compel's parasite daemon, when its socket is closed).
func endProcesses(ctx context.Context, marker string) error {
	match := func(pid int) bool { return WorksFor(pid, marker) }
	if left, err := killUntilGone(ctx, match, releaseGrace, func(comm string) bool { return !strings.HasPrefix(comm, "criu") }); err != nil || len(left) == 0 {
		return err
	}
	if err := KillProcesses(ctx, match); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// KillProcesses kills the processes that match accepts until there are none any more. It fails if some do not end within five seconds.
func KillProcesses(ctx context.Context, match func(pid int) bool) error {
	left, err := killUntilGone(ctx, match, killTimeout, func(string) bool { return true })
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("processes %v do not end", left)
	}
	return err
}

// killUntilGone kills those of the processes that match accepts whose names kill accepts, until match accepts no process or the timeout
// has passed. It returns those that are left.
func killUntilGone(ctx context.Context, match func(pid int) bool, timeout time.Duration, kill func(comm string) bool) (left []int, err error) {
	for end := time.Now().Add(timeout); time.Now().Before(end); {
		if left, err = killOnce(match, kill); err != nil || len(left) == 0 {
			return nil, err
		}
		if err := sleep.WithContext(ctx, pollInterval); err != nil {
			return nil, err
		}
	}
	return left, nil
}

// killOnce kills those of the processes that match accepts whose names kill accepts. It returns all that match accepts.
func killOnce(match func(pid int) bool, kill func(comm string) bool) (found []int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !match(pid) {
			continue
		}
		process, err := os.FindProcess(pid) // a pidfd: from here on the ID cannot become that of another process
		if err != nil || !match(pid) {
			continue
		}
		found = append(found, pid)
		comm, err := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
		if err == nil && kill(strings.TrimSpace(string(comm))) {
			_ = process.Kill() // it may have ended
		}
		_ = process.Release()
	}
	return found, nil
}

// WorksFor reports whether the process pid works for the checkpoint marker, a random word. CRIU overwrites its environment and arguments
// with a title that ends where their memory does, so that the marker may be in neither; but it works in the directory that the request
// of runc names ("--work-path"), and enters it before it changes its title (criu/cr-service.c).
func WorksFor(pid int, marker string) bool {
	process := filepath.Join("/proc", strconv.Itoa(pid))
	for _, name := range []string{"environ", "cmdline"} {
		text, err := os.ReadFile(filepath.Join(process, name))
		if err == nil && bytes.Contains(text, []byte(marker)) {
			return true
		}
	}
	cwd, err := os.Readlink(filepath.Join(process, "cwd"))
	return err == nil && strings.Contains(cwd, marker)
}
