// Package verify runs the programs of the node that decide whether an image may be pulled. A
// program is called as containerd calls its image verifiers (docs/image-verification.md of
// containerd 2.3), so that those for containerd can be used as they are.
//
// Whatever goes wrong means no: a directory that is missing or that others can write to, a
// program that cannot be started, crashes or exceeds its timeout.
package verify

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

const (
	// maxOutput is how much of a program's output is kept, in bytes, as in containerd
	// (pkg/imageverifier/bindir). The rest is read and discarded.
	maxOutput = 32 << 10
	// outputGrace is how long a program's output is read after its end, if a process that has left
	// its process group keeps it open.
	outputGrace = time.Second
	// maxRunning is how many programs run at once, for all pulls. The kubelet pulls up to
	// maxParallelImagePulls images at once, by default without a limit if it is not serial.
	maxRunning = 8
)

// Config says which programs decide.
type Config struct {
	Dir     string        // all files in it are programs; called in the order of their names
	Timeout time.Duration // of each program
	Max     int           // how many programs are called; negative for all
}

// A Pod is the pod that an image is pulled for. The zero Pod means that it is not known.
type Pod struct{ Namespace, Name, UID string }

// A Verifier has the programs of a directory decide. Its methods may be called concurrently.
type Verifier struct {
	cfg     Config
	log     *slog.Logger
	running chan struct{} // has an element for each running program
}

// New returns a Verifier.
func New(cfg Config, log *slog.Logger) *Verifier {
	return &Verifier{cfg: cfg, log: log, running: make(chan struct{}, maxRunning)}
}

// Check returns an error if the directory or a program in it cannot be used now, so that all images are
// refused. It logs a warning if all are allowed.
func (v *Verifier) Check() error {
	programs, err := Programs(v.cfg.Dir)
	if err == nil && len(programs) == 0 {
		v.log.Warn("all images may be pulled: the directory of image verifiers is empty", slog.String("dir", v.cfg.Dir))
	}
	return err
}

// Verify returns nil if all programs allow the pull of the image called name, whose manifest or
// index desc describes. The programs are called one after another, until one does not allow it.
func (v *Verifier) Verify(ctx context.Context, name string, desc ocispec.Descriptor, pod Pod) error {
	programs, err := Programs(v.cfg.Dir)
	if err != nil {
		return fmt.Errorf("image verifiers: %w", err)
	}
	payload, err := json.Marshal(desc)
	if err != nil {
		return fmt.Errorf("descriptor of %s: %w", name, err)
	}
	if v.cfg.Max >= 0 && len(programs) > v.cfg.Max {
		v.log.Warn("image verifiers are skipped: there are more than image-verifier-max", slog.String("dir", v.cfg.Dir), slog.Int("programs", len(programs)), slog.Int("max", v.cfg.Max))
		programs = programs[:v.cfg.Max]
	}
	for _, program := range programs {
		select {
		case v.running <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		err := v.run(ctx, program, []string{"-name", name, "-digest", desc.Digest.String(), "-stdin-media-type", ocispec.MediaTypeDescriptor}, append(payload, '\n'), pod)
		<-v.running
		if err != nil {
			return err
		}
	}
	return nil
}

// run runs one program. All processes of its process group are killed with it, and it is killed
// with the thread that started it, which is when berthd ends.
func (v *Verifier) run(caller context.Context, program string, args []string, stdin []byte, pod Pod) error {
	ctx, cancel := context.WithTimeout(caller, v.cfg.Timeout)
	defer cancel()
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()

	var stdout, stderr output
	name := filepath.Base(program)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = "/", environ(pod)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	killGroup := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel, cmd.WaitDelay = killGroup, outputGrace
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("image verifier %s cannot be run: %w", name, err)
	}
	waitExit(cmd.Process.Pid)
	_ = killGroup() // processes that the program has left; its own ID is not used again before Wait
	waitErr := cmd.Wait()

	state, err := cmd.ProcessState, error(nil)
	switch {
	case caller.Err() != nil:
		return caller.Err()
	case state.Success():
	case state.Exited():
		err = fmt.Errorf("image verifier %s refuses the image (exit code %d): %s", name, state.ExitCode(), cmp.Or(stdout.String(), "it gives no reason"))
	case ctx.Err() != nil:
		err = fmt.Errorf("image verifier %s has not decided within %v", name, v.cfg.Timeout)
	default:
		err = fmt.Errorf("image verifier %s failed: %w", name, waitErr)
	}
	level := slog.LevelDebug
	if err != nil {
		level = slog.LevelInfo
	}
	v.log.Log(ctx, level, "image verifier called", slog.String("verifier", name), slog.Any("args", args), slog.String("namespace", pod.Namespace), slog.String("pod", pod.Name),
		slog.Bool("allowed", err == nil), slog.String("stdout", stdout.String()), slog.String("stderr", stderr.String()), slog.Duration("took", time.Since(begin)))
	return err
}

// waitExit waits until a child process has ended, and leaves it to be waited for.
func waitExit(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// environ returns the environment of a program: that of berthd, as with containerd, without what is
// for berthd alone, and the pod. The variables of the pod are always set.
func environ(pod Pod) []string {
	env := slices.DeleteFunc(os.Environ(), func(variable string) bool {
		return slices.ContainsFunc([]string{"BERTH_POD_", "LISTEN_", "NOTIFY_SOCKET=", "WATCHDOG_"}, func(prefix string) bool { return strings.HasPrefix(variable, prefix) })
	})
	return append(env, "BERTH_POD_NAMESPACE="+pod.Namespace, "BERTH_POD_NAME="+pod.Name, "BERTH_POD_UID="+pod.UID)
}

// An output keeps the first maxOutput bytes that are written to it.
type output struct {
	kept bytes.Buffer
	more bool
}

// Write implements io.Writer. It accepts everything, or the program would get SIGPIPE.
func (o *output) Write(p []byte) (int, error) {
	free := min(len(p), maxOutput-o.kept.Len())
	o.kept.Write(p[:free])
	o.more = o.more || free < len(p)
	return len(p), nil
}

// String returns what is kept as text.
func (o *output) String() string {
	text := strings.TrimSpace(strings.ToValidUTF8(o.kept.String(), ""))
	if o.more {
		text += " (truncated)"
	}
	return text
}
