package criu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth/core/shorten"
)

const (
	program = "criu"
	// probeTimeout bounds the calls that find out about CRIU, which take 0.1 s.
	probeTimeout = 30 * time.Second
	// advice is what to do about a CRIU that does not work.
	advice = "install a newer package criu (Linux 6.6 and newer need CRIU 4.1, as in Debian 13)"
)

// Probe returns the version of the CRIU that runc would use as a child of the process pid: of dockerd, or of a shim of
// containerd. The error is of kind FailedPrecondition if CRIU is missing or does not work with this kernel.
func Probe(ctx context.Context, pid int) (version string, err error) { return newHost(pid).probe(ctx) }

func (h host) probe(ctx context.Context) (version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	output, err := h.run(ctx, "", program, "--version")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("CRIU is not installed where Docker runs (PATH %s): install the package criu: %w", h.path, errdefs.ErrFailedPrecondition)
	case ctx.Err() != nil:
		return "", err
	}
	for line := range strings.Lines(output) {
		if value, ok := strings.CutPrefix(line, "Version:"); ok {
			version = strings.TrimSpace(value)
		}
	}
	if err == nil && version == "" {
		err = errors.New("it does not say its version")
	}
	if err != nil {
		return "", fmt.Errorf("criu --version: %w: %s: install the package criu again: %w", err, lastLine(output), errdefs.ErrFailedPrecondition)
	}
	if output, err = h.run(ctx, "", program, "check"); err != nil && ctx.Err() == nil {
		return version, fmt.Errorf("CRIU %s does not work with Linux %s: %s: %s: %w", version, kernelRelease(), errorLines(output), advice, errdefs.ErrFailedPrecondition)
	}
	return version, err
}

// ProbeRestore returns an error of kind FailedPrecondition if containers beside the container id, whose first process is pid, cannot be
// restored: the OCI runtime must be runc, CRIU must work, and both must see dir, the directory of checkpoints.
func (c *Checkpointer) ProbeRestore(ctx context.Context, pid int, id, dir string) error {
	runtime, err := c.runtimeOf(pid, id)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("only runc restores containers, and the pod has another OCI runtime: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return fmt.Errorf("OCI runtime of the pod: %w", err)
	}
	h := c.hostOf(runtime.Shim)
	probe, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	output, err := h.run(probe, "", runtime.Program, "--version")
	if ctx.Err() != nil {
		return err
	}
	if err != nil || !strings.HasPrefix(output, "runc version ") && !strings.Contains(output, "\nrunc version ") {
		return fmt.Errorf("only runc restores containers, and the OCI runtime of the pod is %q: %w", oneLine(output), errdefs.ErrFailedPrecondition)
	}
	if _, err := h.probe(ctx); err != nil {
		return err
	}
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if !isSeenBy(runtime.Shim, f) {
		return fmt.Errorf("containers can only be restored by a Docker that sees %s: it has a mount namespace of its own without it: %w", dir, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// RestoreErrors returns the last errors of the log that CRIU has written to the file path, as one line, "" if there are none, or if
// it has restored the container nevertheless.
func RestoreErrors(path string) string {
	log, err := readTail(path)
	if err != nil || strings.Contains(log, "Restore finished successfully") {
		return ""
	}
	var reasons strings.Builder
	for line := range strings.Lines(log) {
		// These follow each error.
		if strings.Contains(line, "Error (") && !strings.Contains(line, "Restoring FAILED") && !strings.Contains(line, "cgroupd: recv req error") {
			reasons.WriteString(line)
		}
	}
	return errorLines(reasons.String())
}

func kernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return ""
	}
	return unix.ByteSliceToString(name.Release[:])
}

const (
	// maxErrorLines and maxErrorText bound what an error has of a log of CRIU.
	maxErrorLines = 3
	maxErrorText  = 600
)

// errorLines returns the last errors in a log of CRIU as one line: "(00.012345) Error (criu/tty.c:123): tty: ...".
func errorLines(log string) string {
	var lines []string
	for line := range strings.Lines(log) {
		if at := strings.Index(line, "Error ("); at >= 0 {
			lines = append(lines, strings.TrimSpace(line[at:]))
		}
	}
	if len(lines) == 0 {
		return lastLine(log)
	}
	return oneLine(strings.Join(lines[max(len(lines)-maxErrorLines, 0):], "; "))
}

// lastLine returns the last line of the output of a program.
func lastLine(output string) string {
	output = strings.TrimSpace(output)
	return oneLine(output[strings.LastIndexByte(output, '\n')+1:])
}

// oneLine returns text without control characters and at most maxErrorText bytes of it.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "") + "..."
	}
	return shorten.Text(text)
}
