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

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"berth/core/sleep"
	"berth/network/cniconf"
)

const (
	// textBusyInterval and textBusyRetries bound the wait for a plugin file that is still
	// open for writing (ETXTBSY): five seconds.
	textBusyInterval = 100 * time.Millisecond
	textBusyRetries  = 50
	// pipeGrace is how long processes that a killed plugin has left behind may hold its
	// output open.
	pipeGrace = time.Second
)

const (
	maxPluginStdout = 1 << 20  // in bytes; a CNI result takes some kilobytes
	maxPluginStderr = 16 << 10 // in bytes; it goes into the log
	// maxErrorText is how much of a plugin's output goes into an error, in bytes.
	maxErrorText = 2 << 10
)

// pluginExec finds and runs plugins for libcni (invoke.Exec). Unlike libcni's own
// implementation it kills the child processes of a plugin together with it, returns the
// error of the context that ended it, and logs stderr with the daemon's logger.
type pluginExec struct {
	version.PluginDecoder
	log *slog.Logger
}

// FindInPath implements invoke.Exec.
func (p *pluginExec) FindInPath(name string, dirs []string) (string, error) {
	return cniconf.FindPlugin(name, dirs)
}

// ExecPlugin implements invoke.Exec: it runs the plugin at path and returns its stdout.
// If the plugin fails, the error is its [types.Error], or its output, or that of ctx.
func (p *pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) (out []byte, err error) {
	ctx, span := startSpan(ctx, path, env)
	defer func() { span.End(err) }()
	for try := 0; ; try++ {
		out, err = p.run(ctx, path, stdin, env)
		if !errors.Is(err, unix.ETXTBSY) || try == textBusyRetries {
			return out, err
		}
		if err := sleep.WithContext(ctx, textBusyInterval); err != nil {
			return nil, err
		}
	}
}

func (p *pluginExec) run(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	stdout, stderr := &boundedBuffer{limit: maxPluginStdout}, &boundedBuffer{limit: maxPluginStderr}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, bytes.NewReader(stdin), stdout, stderr
	// Plugins run others, such as IPAM plugins. These must be killed too: an address that
	// one allocates after the DEL that follows would leak.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		if errors.Is(err, unix.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
	cmd.WaitDelay = pipeGrace

	err := cmd.Run()
	if text := bytes.TrimSpace(stderr.Bytes()); len(text) > 0 {
		p.log.Debug("plugin wrote to stderr", slog.String("plugin", path), slog.String("stderr", string(text)))
	}
	var exit *exec.ExitError
	switch {
	case err == nil && stdout.truncated:
		return nil, fmt.Errorf("%s printed more than %d bytes, which is no CNI result", filepath.Base(path), maxPluginStdout)
	case err == nil:
		return stdout.Bytes(), nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s did not finish: %w", filepath.Base(path), ctx.Err())
	case !errors.As(err, &exit):
		return nil, err // it could not be started
	}
	return nil, pluginError(exit, stdout.Bytes(), stderr.Bytes())
}

// A boundedBuffer keeps the first limit bytes that are written to it and drops the rest,
// so that the writer never blocks.
type boundedBuffer struct {
	buf       bytes.Buffer // not embedded: its ReadFrom would bypass Write
	limit     int
	truncated bool
}

func (b *boundedBuffer) Bytes() []byte { return b.buf.Bytes() }

// Write implements io.Writer. It never fails.
func (b *boundedBuffer) Write(p []byte) (int, error) {
	keep := min(len(p), b.limit-b.buf.Len())
	b.truncated = b.truncated || keep < len(p)
	b.buf.Write(p[:keep])
	return len(p), nil
}

// pluginError returns the error of a plugin that has failed: the CNI error that it printed,
// or else its output.
func pluginError(exit *exec.ExitError, stdout, stderr []byte) error {
	var cniError types.Error
	if json.Unmarshal(stdout, &cniError) == nil && cniError.Msg != "" {
		cniError.Msg, cniError.Details = truncate(cniError.Msg), truncate(cniError.Details)
		return &cniError
	}
	var texts []string
	for _, out := range [][]byte{stdout, stderr} {
		if text := strings.TrimSpace(string(out)); text != "" {
			texts = append(texts, truncate(text))
		}
	}
	if len(texts) == 0 {
		return fmt.Errorf("the plugin printed no error: %w", exit)
	}
	return fmt.Errorf("%s: %w", strings.Join(texts, "; "), exit)
}

// truncate shortens text to maxErrorText.
func truncate(text string) string {
	if len(text) <= maxErrorText {
		return text
	}
	return strings.ToValidUTF8(text[:maxErrorText], "") + " ..."
}
