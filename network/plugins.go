package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

const (
	// busyWait and busyTries bound the wait for a plugin that is being written.
	busyWait  = 100 * time.Millisecond
	busyTries = 50
	// pipeWait is how long a killed plugin's output may be held open by
	// processes it left behind.
	pipeWait = time.Second
)

// plugins finds and runs plugins for libcni. Unlike libcni's own way it ends
// what a plugin has started together with it, keeps the reason when the
// context ended it, and logs where everything else does.
type plugins struct {
	version.PluginDecoder
	log *slog.Logger
}

// FindInPath returns the file of the plugin name.
func (p *plugins) FindInPath(name string, dirs []string) (string, error) {
	return find(name, dirs)
}

func find(name string, dirs []string) (string, error) {
	if name != filepath.Base(name) {
		return "", fmt.Errorf("%q is no name for a plugin: %w", name, errdefs.ErrInvalidArgument)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", missingPlugin(name, dirs)
}

// missingPlugin is the error, of kind Unavailable, for a plugin that is in
// none of dirs.
func missingPlugin(name string, dirs []string) error {
	return errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("there is no plugin %q in %s", name, strings.Join(dirs, " or ")))
}

// ExecPlugin runs the plugin at path and returns what it printed. If it
// failed, the error is what it said, a [types.Error], or that of ctx.
func (p *plugins) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	for try := 0; ; try++ {
		out, err := p.run(ctx, path, stdin, env)
		if !errors.Is(err, unix.ETXTBSY) || try == busyTries {
			return out, err
		}
		if err := sleep(ctx, busyWait); err != nil {
			return nil, err
		}
	}
}

func (p *plugins) run(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	stdout, stderr := &boundedBuffer{limit: maxPluginOutput}, &boundedBuffer{limit: maxPluginErrors}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, bytes.NewReader(stdin), stdout, stderr
	// A plugin has others work for it. They must not go on when it is killed:
	// an address taken after the DEL that follows would be lost.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		if errors.Is(err, unix.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
	cmd.WaitDelay = pipeWait

	err := cmd.Run()
	if text := bytes.TrimSpace(stderr.Bytes()); len(text) > 0 {
		p.log.Debug("plugin wrote", slog.String("plugin", path), slog.String("stderr", string(text)))
	}
	var exit *exec.ExitError
	switch {
	case err == nil && stdout.dropped:
		return nil, fmt.Errorf("%s printed more than %d bytes, which is no CNI result", filepath.Base(path), maxPluginOutput)
	case err == nil:
		return stdout.Bytes(), nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s did not finish: %w", filepath.Base(path), ctx.Err())
	case !errors.As(err, &exit):
		return nil, err // it could not be started
	}
	return nil, said(exit, stdout.Bytes(), stderr.Bytes())
}

// A CNI result takes some kilobytes. What a plugin writes on stderr is for the log.
const (
	maxPluginOutput = 1 << 20 // bytes
	maxPluginErrors = 16 << 10
)

// A boundedBuffer keeps the first limit bytes that are written to it and drops
// the rest, so that the writer is never blocked.
type boundedBuffer struct {
	buf     bytes.Buffer // not embedded: its ReadFrom would bypass Write
	limit   int
	dropped bool
}

func (b *boundedBuffer) Bytes() []byte { return b.buf.Bytes() }

// Write never fails.
func (b *boundedBuffer) Write(p []byte) (int, error) {
	keep := min(len(p), b.limit-b.buf.Len())
	b.dropped = b.dropped || keep < len(p)
	b.buf.Write(p[:keep])
	return len(p), nil
}

// said returns what a plugin that failed said about it.
func said(exit *exec.ExitError, stdout, stderr []byte) error {
	var said types.Error
	if json.Unmarshal(stdout, &said) == nil && said.Msg != "" {
		said.Msg, said.Details = excerpt(said.Msg), excerpt(said.Details)
		return &said
	}
	var words []string
	for _, out := range [][]byte{stdout, stderr} {
		if text := strings.TrimSpace(string(out)); text != "" {
			words = append(words, excerpt(text))
		}
	}
	if len(words) == 0 {
		return fmt.Errorf("it said nothing: %w", exit)
	}
	return fmt.Errorf("%s: %w", strings.Join(words, "; "), exit)
}

// maxExcerpt is how much of a plugin's text goes into an error, in bytes.
const maxExcerpt = 2 << 10

// excerpt returns text, or its beginning if it is too long for an error.
func excerpt(text string) string {
	if len(text) <= maxExcerpt {
		return text
	}
	return strings.ToValidUTF8(text[:maxExcerpt], "") + " ..."
}

// sleep waits for d, or the end of ctx, whose error it returns.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
