package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth/core/ociedit"
)

// TestMain lets the test binary be berth-oci.
func TestMain(m *testing.M) {
	if os.Getenv("BERTH_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// A bed has a bundle, a directory of instructions and a runtime below that prints its arguments.
type bed struct {
	t                            testing.TB
	dir, bundle, oci, below, log string
}

func newBed(t testing.TB) *bed {
	dir := t.TempDir()
	b := &bed{t, dir, filepath.Join(dir, "bundle"), filepath.Join(dir, "oci"), filepath.Join(dir, "below"), filepath.Join(dir, "log.json")}
	b.check(os.Mkdir(b.bundle, 0o700))
	b.config(`{"root":{"path":"/none"},"linux":{"cgroupsPath":"/docker/1"}}`)
	b.check(os.WriteFile(b.below, []byte("#!/bin/sh\necho \"$0 $*\"\n"), 0o755))
	return b
}

func (b *bed) check(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) config(text string) {
	b.t.Helper()
	b.check(os.WriteFile(filepath.Join(b.bundle, "config.json"), []byte(text), 0o600))
}

// call runs berth-oci in the bundle, with its own arguments before args.
func (b *bed) call(args ...string) (output string, err error) {
	return b.as("berth-oci", append([]string{"--berth-instructions", b.oci, "--berth-runtime=" + b.below}, args...)...)
}

func (b *bed) as(name string, args ...string) (output string, err error) {
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", args...)
	cmd.Args[0] = name
	cmd.Dir = b.bundle
	cmd.Env = []string{"BERTH_TEST_MAIN=1", "PATH=" + b.dir}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (b *bed) write(i ociedit.Instructions) {
	b.t.Helper()
	i.ContainerID = id
	b.check(ociedit.Write(b.oci, i))
}

// create calls create as containerd does.
func (b *bed) create() (output string, err error) {
	return b.call("--log", b.log, "--log-format", "json", "create", "--bundle", b.bundle, "--pid-file", "/p", id)
}

func TestCreateAppliesInstructions(t *testing.T) {
	b := newBed(t)
	b.write(ociedit.Instructions{Unified: map[string]string{"memory.high": "1"}})
	out, err := b.create()
	if want := b.below + " --log " + b.log + " --log-format json create --bundle " + b.bundle + " --pid-file /p " + id; err != nil || out != want {
		t.Errorf("%v, the runtime got %q, want %q", err, out, want)
	}
	text, err := os.ReadFile(filepath.Join(b.bundle, "config.json"))
	if err != nil || !strings.Contains(string(text), `"unified":{"memory.high":"1"}`) {
		t.Errorf("%s, %v", text, err)
	}
	if names, _ := filepath.Glob(filepath.Join(b.bundle, "*")); len(names) != 1 {
		t.Errorf("the bundle has %q", names)
	}
}

func TestSystemdCgroupIsAdded(t *testing.T) {
	b := newBed(t)
	b.write(ociedit.Instructions{})
	for args, want := range map[string]string{"create": " --systemd-cgroup create " + id, "--systemd-cgroup create": " --systemd-cgroup create " + id} {
		b.config(`{"linux":{"cgroupsPath":"system.slice:docker:1"}}`)
		if out, err := b.call(append(strings.Fields(args), id)...); err != nil || out != b.below+want {
			t.Errorf("%s: %q, %v", args, out, err)
		}
	}
}

// Whatever is refused is one line on stderr and in the log, and the runtime below is not called.
func TestCreateRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		change func(b *bed)
		want   string
	}{
		"no instructions": {func(*bed) {}, "berth-oci: container " + id + " has no instructions of berthd in "},
		"newer":           {func(b *bed) { b.write(ociedit.Instructions{}); b.instructions(`{"version":3}`) }, "upgrade berth-oci"},
		"bad config":      {func(b *bed) { b.write(ociedit.Instructions{}); b.config("{") }, "config.json: is not JSON"},
		"no config": {func(b *bed) {
			b.write(ociedit.Instructions{})
			b.check(os.Remove(filepath.Join(b.bundle, "config.json")))
		}, "no such file"},
		"big config": {func(b *bed) { b.write(ociedit.Instructions{}); b.config(strings.Repeat(" ", 4<<20+1)) }, "has more than 4194304 bytes"},
		"linked config": {func(b *bed) {
			b.write(ociedit.Instructions{})
			b.check(os.Remove(filepath.Join(b.bundle, "config.json")))
			b.check(os.Symlink("/dev/null", filepath.Join(b.bundle, "config.json")))
		}, "symbolic links"},
		"no such mount": {func(b *bed) { b.write(ociedit.Instructions{MountOptions: []ociedit.MountOptions{{Destination: "/x"}}}) }, "mount options of /x: the container has no such mount"},
		"another sandbox": {func(b *bed) {
			b.write(ociedit.Instructions{Sandbox: &ociedit.Process{PID: os.Getpid(), StartTime: 1}})
		}, "is not the one of the sandbox any more"},
		"no runtime": {func(b *bed) { b.write(ociedit.Instructions{}); b.check(os.Remove(b.below)) }, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			test.change(b)
			out, err := b.create()
			if err == nil || !strings.Contains(out, test.want) || strings.Contains(out, "\n") || strings.Contains(out, b.below+" --log") {
				t.Errorf("%v, %q, want %q", err, out, test.want)
			}
			text, err := os.ReadFile(b.log)
			b.check(err)
			var entry struct{ Level, Msg, Time string }
			if err := json.Unmarshal(text, &entry); err != nil || entry.Level != "error" || entry.Msg != out || entry.Time == "" {
				t.Errorf("log %s, %v", text, err)
			}
		})
	}
}

// instructions replaces the file of instructions.
func (b *bed) instructions(text string) {
	b.t.Helper()
	b.check(os.WriteFile(filepath.Join(b.oci, id+".json"), []byte(text), 0o600))
}

func TestOtherVerbsBecomeTheRuntimeBelow(t *testing.T) {
	b := newBed(t)
	for _, args := range []string{"--version", "--root /r kill " + id + " KILL", "features", "delete --force " + id, "start " + id, "--unknown flag", "create --help"} {
		if out, err := b.call(strings.Fields(args)...); err != nil || out != b.below+" "+args {
			t.Errorf("%s: %q, %v", args, out, err)
		}
	}
	if out, err := b.call("--log", b.log, "restore", id); err == nil || !strings.Contains(out, "restore is not supported") {
		t.Errorf("restore: %q, %v", out, err)
	}
	if text, err := os.ReadFile(b.log); err != nil || !strings.Contains(string(text), `level=error msg="berth-oci: restore is not supported`) {
		t.Errorf("log in text: %q, %v", text, err)
	}
}

func TestExecGetsAmbientCapabilities(t *testing.T) {
	b := newBed(t)
	process := filepath.Join(b.dir, "process")
	for _, test := range []struct {
		ambient []string
		want    bool
	}{{nil, false}, {[]string{"CAP_CHOWN"}, true}} {
		b.check(os.WriteFile(process, []byte(`{"args":["id"]}`), 0o600))
		b.write(ociedit.Instructions{AmbientCapabilities: test.ambient})
		if out, err := b.call("exec", "--process", process, "--detach", id); err != nil || out != b.below+" exec --process "+process+" --detach "+id {
			t.Errorf("%q, %v", out, err)
		}
		if text, err := os.ReadFile(process); err != nil || strings.Contains(string(text), `"ambient":["CAP_CHOWN"]`) != test.want {
			t.Errorf("%s, %v, want ambient %v", text, err, test.want)
		}
	}
	b.check(ociedit.Remove(b.oci, id))
	if out, err := b.call("exec", "--process", process, id); err != nil {
		t.Errorf("without instructions: %q, %v", out, err)
	}
}

func TestRuntimeBelowIsFound(t *testing.T) {
	b := newBed(t)
	b.check(os.Rename(b.below, filepath.Join(b.dir, "crun")))
	if out, err := b.as("/x/berth-oci-crun", "features"); err != nil || out != filepath.Join(b.dir, "crun")+" features" {
		t.Errorf("by the own name: %q, %v", out, err)
	}
	self, err := os.Executable()
	b.check(err)
	b.check(os.Symlink(self, filepath.Join(b.dir, "runc")))
	if out, err := b.as("runc", "features"); err == nil || out != "berth-oci: runtime runc is not in PATH" {
		t.Errorf("only itself in PATH: %q, %v", out, err)
	}
	for args, want := range map[string]string{
		"--berth-unknown x":      "flag --berth-unknown is not known: must be --berth-instructions, --berth-runtime or --berth-version",
		"--berth-runtime":        "flag --berth-runtime has no value",
		"--berth-instructions=":  "flag --berth-instructions has an empty value",
		"--berth-runtime /none ": "no such file",
	} {
		if out, err := b.as("berth-oci", strings.Fields(args)...); err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %q, %v, want %q", args, out, err, want)
		}
	}
	if out, err := b.as("berth-oci", "--berth-version"); err != nil || !strings.HasPrefix(out, "berth-oci ") {
		t.Errorf("version: %q, %v", out, err)
	}
}

// BenchmarkCall compares the runtime below (true) alone with calls through berth-oci. Subtract the first one. The program is built
// as it is released, because a test binary starts slower.
func BenchmarkCall(b *testing.B) {
	below, err := exec.LookPath("true")
	if err != nil {
		b.Skip(err)
	}
	bed := newBed(b)
	program := filepath.Join(bed.dir, "berth-oci")
	build := exec.CommandContext(b.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	config, err := os.ReadFile("internal/spec/testdata/28.5/container.json")
	bed.check(err)
	bed.write(ociedit.Instructions{Unified: map[string]string{"memory.high": "1"}, AmbientCapabilities: []string{"CAP_CHOWN"}})
	own := []string{program, "--berth-instructions", bed.oci, "--berth-runtime", below}
	for _, test := range []struct {
		name string
		args []string
	}{
		{"below", []string{below, "state", id}},
		{"state", append(own, "state", id)},
		{"create", append(own, "create", "--bundle", bed.bundle, id)},
	} {
		b.Run(test.name, func(b *testing.B) {
			bed.config(string(config))
			for b.Loop() {
				if out, err := exec.CommandContext(b.Context(), test.args[0], test.args[1:]...).CombinedOutput(); err != nil {
					b.Fatalf("%v\n%s", err, out)
				}
			}
		})
	}
}

// checkpoint writes the files of a checkpoint, and instructions to restore it.
func (b *bed) checkpoint() (dir, root string) {
	b.t.Helper()
	if os.Geteuid() != 0 {
		b.t.Skip("needs root, for a mount namespace")
	}
	ns, err := os.Readlink("/proc/self/ns/mnt")
	b.check(err)
	dir, root = filepath.Join(b.dir, "files"), filepath.Join(b.dir, "root")
	b.check(os.Mkdir(dir, 0o700))
	b.check(os.Mkdir(root, 0o755))
	b.check(os.WriteFile(filepath.Join(root, "old"), nil, 0o600))
	b.check(os.WriteFile(filepath.Join(dir, ociedit.RestoreDeleted), []byte(`["/old"]`), 0o600))
	f, err := os.Create(filepath.Join(dir, ociedit.RestoreFiles))
	b.check(err)
	w := tar.NewWriter(f)
	b.check(w.WriteHeader(&tar.Header{Name: "new", Typeflag: tar.TypeReg, Mode: 0o600, Uid: os.Getuid(), Gid: os.Getgid()}))
	b.check(w.Close())
	b.check(f.Close())
	b.check(os.WriteFile(b.below, []byte("#!/bin/sh\necho \"$0 $* $BERTH_RESTORE\"\n[ \"$(/usr/bin/readlink /proc/self/ns/mnt)\" != '"+ns+"' ] || echo the mount namespace of its caller\n"), 0o755))
	b.config(`{"root":{"path":"` + root + `"},"process":{"apparmorProfile":"docker-default"}}`)
	b.write(ociedit.Instructions{Restore: &ociedit.Restore{Dir: dir}})
	return dir, root
}

func TestCreateRestoresACheckpoint(t *testing.T) {
	b := newBed(t)
	dir, root := b.checkpoint()
	out, err := b.create()
	want := b.below + " --log " + b.log + " --log-format json restore --detach --no-subreaper --image-path " + dir + "/checkpoint --work-path " + dir + "/work --bundle " + b.bundle +
		" --pid-file /p --lsm-profile apparmor:docker-default " + id + " files"
	if err != nil || out != want {
		t.Errorf("%v, the runtime got\n%s, want\n%s", err, out, want)
	}
	if names, _ := filepath.Glob(filepath.Join(root, "*")); len(names) != 1 || filepath.Base(names[0]) != "new" {
		t.Errorf("the root file system has %q", names)
	}
	if out, err := b.call("start", id); err != nil || out != "" {
		t.Errorf("start: %q, %v", out, err)
	}
	if out, err := b.call("kill", id); err != nil || !strings.HasPrefix(out, b.below+" kill "+id) {
		t.Errorf("kill: %q, %v", out, err)
	}
	if out, err := b.create(); err == nil || !strings.Contains(out, "a checkpoint is restored once, and this one was: create a new container") {
		t.Errorf("second create: %q, %v", out, err)
	}
	b.write(ociedit.Instructions{})
	if out, err := b.call("start", id); err != nil || !strings.HasPrefix(out, b.below+" start "+id) {
		t.Errorf("start of a container that is not restored: %q, %v", out, err)
	}
}

func TestCreateRefusesACheckpoint(t *testing.T) {
	for name, test := range map[string]struct {
		change func(b *bed, dir, root string)
		args   []string
		want   string
		work   bool // it has begun
	}{
		"gone":          {func(b *bed, dir, _ string) { b.check(os.RemoveAll(dir)) }, nil, "are not there any more: create a new container", false},
		"open":          {func(b *bed, dir, _ string) { b.check(os.Chmod(dir, 0o755)) }, nil, "must have mode 0700", false},
		"writable":      {func(b *bed, dir, _ string) { b.check(os.Chmod(dir, 0o702)) }, nil, "can be changed by others than root", false},
		"linked":        {func(b *bed, dir, _ string) { b.check(os.Rename(dir, dir+"2")); b.check(os.Symlink(dir+"2", dir)) }, nil, "checkpoint: open", false},
		"killed before": {func(b *bed, dir, _ string) { b.check(os.Mkdir(filepath.Join(dir, "work"), 0o700)) }, nil, "a checkpoint is restored once", true},
		"does not fit": {func(b *bed, _, root string) {
			b.config(`{"root":{"path":"` + root + `"},"mounts":[{"destination":"/data"}]}`)
		}, nil, "only in the container: /data", false},
		"no root":        {func(b *bed, _, root string) { b.check(os.RemoveAll(root)) }, nil, "root file system: open", true},
		"root is a link": {func(b *bed, _, root string) { b.check(os.RemoveAll(root)); b.check(os.Symlink("/", root)) }, nil, "root file system: open", true},
		"bad files": {func(b *bed, dir, _ string) {
			b.check(os.WriteFile(filepath.Join(dir, ociedit.RestoreFiles), []byte("x"), 0o600))
		}, nil, "no tar archive", true},
		"bad deleted": {func(b *bed, dir, _ string) {
			b.check(os.WriteFile(filepath.Join(dir, ociedit.RestoreDeleted), []byte(`["/.."]`), 0o600))
		}, nil, "deleted files:", true},
		"files are a link": {func(b *bed, dir, _ string) {
			b.check(os.Remove(filepath.Join(dir, ociedit.RestoreFiles)))
			b.check(os.Symlink("/etc/passwd", filepath.Join(dir, ociedit.RestoreFiles)))
		}, nil, "too many levels of symbolic links", true},
		"console": {func(*bed, string, string) {}, []string{"create", "--console-socket", "/c", "--bundle", ".", id}, "with a terminal", false},
		"run":     {func(*bed, string, string) {}, []string{"run", "--bundle", ".", id}, "cannot be restored by run", false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			dir, root := b.checkpoint()
			test.change(b, dir, root)
			args := test.args
			if args == nil {
				args = []string{"create", "--bundle", b.bundle, id}
			}
			out, err := b.call(args...)
			if err == nil || !strings.Contains(out, test.want) || strings.Contains(out, b.below) {
				t.Errorf("%q, %v, want %q", out, err, test.want)
			}
			if _, err := os.Stat(filepath.Join(dir, "work")); (err == nil) != test.work {
				t.Errorf("directory for the log: %v", err)
			}
		})
	}
}
