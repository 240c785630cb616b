package verify_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/core/image/verify"
)

const digest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

var descriptor = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest, Size: 7}

// TestMain sets a umask with which the directories of the tests are not writable by a group.
func TestMain(m *testing.M) {
	syscall.Umask(0o022)
	os.Exit(m.Run())
}

// newDir returns a directory that only this user can write to, with scripts by name.
func newDir(t *testing.T, scripts map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, script := range scripts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// run verifies an image with the programs in dir.
func run(t *testing.T, cfg verify.Config) (log string, err error) {
	t.Helper()
	var text bytes.Buffer
	v := verify.New(cfg, slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err := v.Check(); err != nil {
		t.Fatal(err)
	}
	err = v.Verify(t.Context(), "r.test/a:1", descriptor, verify.Pod{Namespace: "team", Name: "web", UID: "u-1"})
	return text.String(), err
}

func TestProgramsAreCalledAsByContainerd(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	t.Setenv("NOTIFY_SOCKET", "/run/notify")
	t.Setenv("BERTH_POD_NAMESPACE", "that of berthd")
	dir := newDir(t, map[string]string{"a": `{ echo "$@"; cat; env; pwd; } >` + out + `; ls /proc/$$/fd | wc -l >>` + out})
	if _, err := run(t, verify.Config{Dir: dir, Timeout: time.Minute, Max: 10}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"-name r.test/a:1 -digest " + digest + " -stdin-media-type application/vnd.oci.descriptor.v1+json\n",
		`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + digest + `","size":7}`,
		"BERTH_POD_NAMESPACE=team\n", "BERTH_POD_NAME=web\n", "BERTH_POD_UID=u-1\n", "PATH=",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	if strings.Contains(string(text), "NOTIFY_SOCKET") || strings.Contains(string(text), "that of berthd") {
		t.Errorf("variables of berthd in %s", text)
	}
}

func TestVerdicts(t *testing.T) {
	for name, tt := range map[string]struct {
		scripts map[string]string
		max     int
		want    string // part of the error, "" for none
	}{
		"no program":           {nil, 10, ""},
		"all allow":            {map[string]string{"a": "exit 0", "b": "exit 0"}, 10, ""},
		"one refuses":          {map[string]string{"a": "exit 0", "b": "echo not signed; exit 3"}, 10, "image verifier b refuses the image (exit code 3): not signed"},
		"no reason":            {map[string]string{"a": "exit 1"}, 10, "it gives no reason"},
		"more than the limit":  {map[string]string{"a": "exit 0", "b": "exit 1"}, 1, ""},
		"no limit":             {map[string]string{"a": "exit 0", "b": "exit 1"}, -1, "b refuses"},
		"crash":                {map[string]string{"a": "kill -SEGV $$"}, 10, "image verifier a failed: signal: segmentation fault"},
		"hang":                 {map[string]string{"a": "sleep 600"}, 10, "image verifier a has not decided within"},
		"10 MB of reasons":     {map[string]string{"a": "yes | head -c 10000000; yes | head -c 10000000 >&2; exit 1"}, 10, "(truncated)"},
		"10 MB, allowed":       {map[string]string{"a": "yes | head -c 10000000"}, 10, ""},
		"input is not read":    {map[string]string{"a": "exec <&-; exit 0"}, 10, ""},
		"invalid UTF-8":        {map[string]string{"a": `printf 'bad \377 text'; exit 1`}, 10, "bad  text"},
		"interpreter is gone":  {map[string]string{"a": "#"}, 10, ""},
		"a file without order": {map[string]string{"README": "exit 0"}, 10, ""},
	} {
		t.Run(name, func(t *testing.T) {
			timeout := time.Minute
			if name == "hang" {
				timeout = 300 * time.Millisecond
			}
			_, err := run(t, verify.Config{Dir: newDir(t, tt.scripts), Timeout: timeout, Max: tt.max})
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want an error with %q", err, tt.want)
			case err != nil && len(err.Error()) > 40<<10:
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
}

func TestProgramsThatCannotBeRunRefuse(t *testing.T) {
	for name, change := range map[string]func(dir string) error{
		"not executable":       func(dir string) error { return os.WriteFile(filepath.Join(dir, "a"), []byte("#!/bin/sh\n"), 0o644) },
		"a directory":          func(dir string) error { return os.Mkdir(filepath.Join(dir, "a"), 0o755) },
		"no interpreter":       func(dir string) error { return os.WriteFile(filepath.Join(dir, "a"), []byte("#!/none\n"), 0o755) },
		"dangling link":        func(dir string) error { return os.Symlink("none", filepath.Join(dir, "a")) },
		"link to itself":       func(dir string) error { return os.Symlink("a", filepath.Join(dir, "a")) },
		"writable by others":   func(dir string) error { return writable(filepath.Join(dir, "a"), 0o757) },
		"writable by group":    func(dir string) error { return writable(filepath.Join(dir, "a"), 0o775) },
		"directory writable":   func(dir string) error { return os.Chmod(dir, 0o777) }, //nolint:gosec // what is tested
		"directory is gone":    os.RemoveAll,
		"link into a writable": linkIntoWritable,
	} {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t, nil)
			v := verify.New(verify.Config{Dir: dir, Timeout: time.Minute, Max: 10}, slog.New(slog.DiscardHandler))
			if err := change(dir); err != nil {
				t.Fatal(err)
			}
			if err := v.Verify(t.Context(), "r.test/a:1", descriptor, verify.Pod{}); err == nil {
				t.Error("allowed")
			}
		})
	}
}

// writable writes a script that others may change, whatever the umask is.
func writable(path string, mode os.FileMode) error {
	return errors.Join(os.WriteFile(path, []byte("#!/bin/sh\n"), 0o700), os.Chmod(path, mode)) //nolint:gosec // what is tested
}

// linkIntoWritable makes a link in dir that leads over another link, in a directory that others can write to, to
// a good program.
func linkIntoWritable(dir string) error {
	open := filepath.Join(filepath.Dir(dir), "open")
	return errors.Join(
		os.Mkdir(open, 0o700), os.Chmod(open, 0o777), //nolint:gosec // what is tested
		os.Symlink("/bin/true", filepath.Join(open, "link")),
		os.Symlink(filepath.Join(open, "link"), filepath.Join(dir, "a")),
	)
}

func TestLinksToTrustedProgramsAreFollowed(t *testing.T) {
	dir := newDir(t, nil)
	if err := os.Symlink("/bin/true", filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t, verify.Config{Dir: link, Timeout: time.Minute, Max: 10}); err != nil {
		t.Error(err)
	}
}

func TestCheckRefusesADirectoryThatOthersCanWriteTo(t *testing.T) {
	dir := newDir(t, nil)
	if err := os.Chmod(dir, 0o777); err != nil { //nolint:gosec // what is tested
		t.Fatal(err)
	}
	for path, want := range map[string]string{dir: "can be changed by others", filepath.Join(dir, "none"): "can be changed by others", "/none": "no such file"} {
		if err := verify.New(verify.Config{Dir: path}, slog.New(slog.DiscardHandler)).Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

// TestProcessesOfAProgramEndWithIt: neither those that hold its output open nor those that ignore signals delay the
// verdict or stay.
func TestProcessesOfAProgramEndWithIt(t *testing.T) {
	for name, script := range map[string]string{
		"in its process group": `sh -c 'trap "" TERM; echo $$ >"$0"; sleep 600' PIDFILE & while [ ! -s PIDFILE ]; do sleep 0.01; done; exit 0`,
		"at its timeout":       `sh -c 'trap "" TERM; echo $$ >"$0"; sleep 600' PIDFILE & while [ ! -s PIDFILE ]; do sleep 0.01; done; sleep 600`,
	} {
		t.Run(name, func(t *testing.T) {
			pidFile := filepath.Join(t.TempDir(), "pid")
			timeout := 20 * time.Second
			if name == "at its timeout" {
				timeout = 3 * time.Second
			}
			begin := time.Now()
			_, err := run(t, verify.Config{Dir: newDir(t, map[string]string{"a": strings.ReplaceAll(script, "PIDFILE", pidFile)}), Timeout: timeout, Max: 10})
			if (err != nil) != (name == "at its timeout") {
				t.Error(err)
			}
			if took := time.Since(begin); took > 15*time.Second {
				t.Errorf("the verdict took %v", took)
			}
			text, err := os.ReadFile(pidFile)
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			for begin := time.Now(); syscall.Kill(pid, 0) == nil && !isZombie(pid); time.Sleep(10 * time.Millisecond) {
				if time.Since(begin) > 10*time.Second {
					t.Fatalf("process %d of the program runs", pid)
				}
			}
		})
	}
}

// isZombie reports whether a process has ended and nobody has waited for it.
func isZombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

func TestProgramThatLeavesItsProcessGroupDoesNotDelayTheVerdict(t *testing.T) {
	begin := time.Now()
	_, err := run(t, verify.Config{Dir: newDir(t, map[string]string{"a": "setsid sleep 15 &\nsleep 0.3; exit 0"}), Timeout: time.Minute, Max: 10})
	if took := time.Since(begin); err != nil || took > 12*time.Second {
		t.Errorf("%v after %v", err, took)
	}
}

func TestCallerCanGiveUp(t *testing.T) {
	v := verify.New(verify.Config{Dir: newDir(t, map[string]string{"a": "sleep 600"}), Timeout: time.Hour, Max: 10}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	var all sync.WaitGroup
	for range 20 { // most of them wait for others to end
		all.Go(func() {
			if err := v.Verify(ctx, "r.test/a:1", descriptor, verify.Pod{}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v, want DeadlineExceeded", err)
			}
		})
	}
	all.Wait()
}

func TestAFewProgramsRunAtOnce(t *testing.T) {
	count := t.TempDir()
	script := fmt.Sprintf(`: >%[1]s/$$; ls %[1]s | wc -l; n=$(ls %[1]s | wc -l); sleep 0.2; rm %[1]s/$$; [ "$n" -le 8 ]`, count)
	v := verify.New(verify.Config{Dir: newDir(t, map[string]string{"a": script}), Timeout: time.Minute, Max: 10}, slog.New(slog.DiscardHandler))
	var all sync.WaitGroup
	for range 24 {
		all.Go(func() {
			if err := v.Verify(t.Context(), "r.test/a:1", descriptor, verify.Pod{}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func TestEmptyDirectoryIsWarnedOf(t *testing.T) {
	if log, err := run(t, verify.Config{Dir: newDir(t, nil), Timeout: time.Minute, Max: 10}); err != nil || !strings.Contains(log, "level=WARN") {
		t.Errorf("%v, log %s", err, log)
	}
}

func TestOutputIsLogged(t *testing.T) {
	log, err := run(t, verify.Config{Dir: newDir(t, map[string]string{"a": "echo why; echo details >&2; exit 1"}), Timeout: time.Minute, Max: 10})
	if err == nil || !strings.Contains(log, "stderr=details") || !strings.Contains(log, "namespace=team") {
		t.Errorf("%v, log %s", err, log)
	}
}
