package dockerconfig

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

func wantFile(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	got, err := os.ReadFile(path)
	info, statErr := os.Stat(path)
	if err := errors.Join(err, statErr); err != nil {
		t.Fatal(err)
	}
	if string(got) != text || info.Mode() != mode {
		t.Errorf("%s is %q, mode %v; want %q, mode %v", path, got, info.Mode(), text, mode)
	}
}

func lock(t *testing.T, path string) *File {
	t.Helper()
	f, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Unlock)
	return f
}

func TestReplaceKeepsModeAndBackup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.json")
	const before = `{"debug": true}`
	write(t, path, before, 0o640)
	hasAttribute := unix.Setxattr(path, "user.berth", []byte("kept"), 0) == nil
	f := lock(t, path)
	if _, err := Lock(path); !errors.Is(err, ErrBusy) {
		t.Errorf("a second lock: %v", err)
	}
	original := f.Copy()
	next, err := f.With([]Runtime{{Name: "berth", Path: "x"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Replace(next); err != nil {
		t.Fatal(err)
	}
	const after = `{"debug": true, "runtimes": {"berth": {"path":"x"}}}`
	wantFile(t, path, after, 0o640)
	wantFile(t, f.Backup(), before, 0o640)
	value := make([]byte, 10)
	if n, err := unix.Getxattr(path, "user.berth", value); hasAttribute && (err != nil || string(value[:n]) != "kept") {
		t.Errorf("its attribute is %q, %v", value[:n], err)
	}
	if err := f.Restore(original); err != nil {
		t.Fatal(err)
	}
	wantFile(t, path, before, 0o640)
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 2 {
		t.Errorf("there are %v, %v; want the file and its backup", entries, err)
	}
}

func TestReplaceRefusesAFileThatAnotherProgramHasChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.json")
	write(t, path, "{}", 0o644)
	f := lock(t, path)
	write(t, path, `{"debug": true}`, 0o644)
	if err := f.Replace(f.Document); err == nil || !strings.Contains(err.Error(), "changed by another program") {
		t.Errorf("got %v", err)
	}
	wantFile(t, path, `{"debug": true}`, 0o644)
}

func TestMissingFileIsCreatedAndRestoredAsMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "docker", "daemon.json")
	f := lock(t, path)
	original := f.Copy()
	next, err := f.With([]Runtime{{Name: "berth", Path: "x"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Replace(next); err != nil || f.Copy().Existed() != true || original.Existed() {
		t.Fatal(err)
	}
	wantFile(t, path, "{\n  \"runtimes\": {\n    \"berth\": {\n      \"path\": \"x\"\n    }\n  }\n}\n", 0o644)
	if err := f.Restore(original); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("after Restore: %v", err)
	}
}

func TestReadRefusesFilesThatOthersCanChange(t *testing.T) {
	dir := t.TempDir()
	for name, make := range map[string]func(path string) error{
		"is a link to":                 func(path string) error { return os.Symlink("/etc/hostname", path) },
		"is not a regular file":        func(path string) error { return unix.Mkfifo(path, 0o600) },
		"can be changed by others":     func(path string) error { write(t, path, "{}", 0o666); return nil },
		"is not changed: line 1":       func(path string) error { write(t, path, "{//", 0o600); return nil },
		"belongs to the user 1: it mu": func(path string) error { write(t, path, "{}", 0o600); return os.Chown(path, 1, 1) },
	} {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		if err := make(path); err != nil {
			if os.Geteuid() != 0 {
				continue // only root can give files away
			}
			t.Fatal(err)
		}
		before, _ := os.Lstat(path)
		if _, err := Lock(path); err == nil || !strings.Contains(err.Error(), name) || !strings.HasPrefix(err.Error(), path) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v, want one line with %q", err, name)
		}
		if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
			t.Errorf("%s was changed", name)
		}
	}
}

func TestFlagsThatConflictWithTheFile(t *testing.T) {
	for _, c := range []struct {
		args        []string
		reason, fix string
	}{
		{nil, "", ""},
		{[]string{"-H", "fd://", "--config-file=/etc/docker//daemon.json"}, "", ""},
		{[]string{"--add-runtime", "nvidia=/usr/bin/n", "--debug"}, "--add-runtime nvidia=/usr/bin/n", `set "runtimes": {"nvidia": {"path": "/usr/bin/n"}} in /etc/docker/daemon.json`},
		{[]string{"--default-runtime=clamp"}, "--default-runtime clamp", `"default-runtime": "clamp"`},
		{[]string{"--config-file", "/x.json"}, "--config-file /x.json", "give --docker-config /x.json"},
	} {
		reason, fix := ParseFlags(c.args).Conflict(DefaultFile)
		if !strings.Contains(reason, c.reason) || (reason == "") != (c.reason == "") || !strings.Contains(fix, c.fix) {
			t.Errorf("%q: %s -> %s", c.args, reason, fix)
		}
	}
	if reason, _ := ParseFlags([]string{"--config-file", "/x.json"}).Conflict("/x.json"); reason != "" {
		t.Errorf("with that file: %s", reason)
	}
}

func TestServiceFlagsAreThoseOfTheNextStart(t *testing.T) {
	root := t.TempDir()
	unitFile := func(path, text string) { write(t, filepath.Join(root, path), text, 0o644) }
	if _, ok := ServiceFlags(root); ok {
		t.Error("without a unit there are flags")
	}
	unitFile("usr/lib/systemd/system/docker.service", "[Service]\nEnvironmentFile=-/etc/default/docker\nExecStart=/usr/sbin/dockerd -H fd:// $DOCKER_OPTS\n")
	unitFile("etc/default/docker", "# mine\nDOCKER_OPTS=\"--default-runtime clamp --label a\"\n")
	if flags, ok := ServiceFlags(root); !ok || flags.DefaultRuntime != "clamp" || flags.ConfigFile != DefaultFile {
		t.Errorf("from the environment: %+v, %v", flags, ok)
	}
	unitFile("etc/systemd/system/docker.service.d/10.conf", "[Service]\nEnvironment=\"FILE=/x.json\"\nExecStart=\nExecStart=/usr/sbin/dockerd \\\n  --add-runtime 'n=/n' --config-file=${FILE}\n")
	unitFile("usr/lib/systemd/system/docker.service.d/10.conf", "[Service]\nExecStart=\nExecStart=/hidden\n")
	if flags, _ := ServiceFlags(root); len(flags.AddRuntime) != 1 || flags.AddRuntime[0] != "n=/n" || flags.DefaultRuntime != "" || flags.ConfigFile != "/x.json" {
		t.Errorf("from the drop-in: %+v", flags)
	}
}
