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
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, bytes.NewReader(stdin), &stdout, &stderr
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
	if stderr.Len() > 0 {
		p.log.Debug("plugin wrote", slog.String("plugin", path), slog.String("stderr", strings.TrimSpace(stderr.String())))
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return stdout.Bytes(), nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s did not finish: %w", filepath.Base(path), ctx.Err())
	case !errors.As(err, &exit):
		return nil, err // it could not be started
	}
	return nil, said(exit, stdout.Bytes(), stderr.Bytes())
}

// said returns what a plugin that failed said about it.
func said(exit *exec.ExitError, stdout, stderr []byte) error {
	var said types.Error
	if json.Unmarshal(stdout, &said) == nil && said.Msg != "" {
		return &said
	}
	var words []string
	for _, out := range [][]byte{stdout, stderr} {
		if text := strings.TrimSpace(string(out)); text != "" {
			words = append(words, text)
		}
	}
	if len(words) == 0 {
		return fmt.Errorf("it said nothing: %w", exit)
	}
	return fmt.Errorf("%s: %w", strings.Join(words, "; "), exit)
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
