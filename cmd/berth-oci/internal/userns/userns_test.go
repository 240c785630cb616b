package userns

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"berth/cmd/berth-oci/internal/spec"
	"berth/core/ociedit"
)

var pod = []ociedit.IDMapping{{HostID: 200000, Size: 65536}}

// The test binary calls Apply in processes of its own, which end at the step of the environment variable.
const stepVariable, configVariable = "BERTH_TEST_STEP", "BERTH_TEST_CONFIG"

func TestMain(m *testing.M) {
	if os.Args[0] == HolderName {
		Hold()
		return
	}
	if step := os.Getenv(stepVariable); step != "" {
		runtime.LockOSThread()
		if err := applyInChild(step, os.Getenv(configVariable)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// applyInChild calls Apply and prints the owners of files in the mounts that it made.
func applyInChild(step, config string) error {
	last, steps := step, 0
	reached = func(string) {
		steps++
		if strconv.Itoa(steps) == last {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	s, err := spec.Parse([]byte(config))
	if err != nil {
		return err
	}
	if err := Apply(s, &ociedit.UserNamespace{UIDMappings: pod, GIDMappings: pod, IDMapOthers: true}, nil); err != nil {
		return err
	}
	after, err := s.Marshal()
	if err != nil {
		return err
	}
	var c struct {
		Root   struct{ Path string }
		Mounts []struct{ Source string }
	}
	if err := json.Unmarshal(after, &c); err != nil {
		return err
	}
	for _, path := range []string{"web", "suid", "upper", "upper-suid", ".", "foreign", "link"} {
		printOwner(filepath.Join(c.Root.Path, path), path)
	}
	for _, m := range c.Mounts {
		printOwner(filepath.Join(m.Source, "file"), "volume")
	}
	_, err = os.Stat("config-was-here") // relative to the working directory of the caller
	return err
}

func printOwner(path, name string) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		fmt.Fprintln(os.Stdout, name, err)
		return
	}
	fmt.Fprintf(os.Stdout, "%s %d:%d %o\n", name, st.Uid, st.Gid, st.Mode&0o7777)
}

// inMountNS calls f on a thread with a mount namespace of its own.
func inMountNS(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // it ends with the goroutine
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")
		}
		if err == nil {
			err = unix.Mount("test", "/run", "tmpfs", 0, "")
		}
		if err == nil {
			defer close(done)
			f()
			return
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Skipf("needs root, for mounts of its own: %v", err)
	}
}

// engine is what Docker has of a container, at a directory.
type engine struct {
	t    *testing.T
	home string
}

func newEngine(t *testing.T, shared bool) *engine {
	t.Helper()
	e := &engine{t, "/run/overlay2"}
	check(t, os.MkdirAll(e.home, 0o755))
	check(t, unix.Mount("test", e.home, "tmpfs", 0, ""))
	if shared {
		check(t, unix.Mount("", e.home, "", unix.MS_SHARED, ""))
	}
	for _, dir := range []string{"a/diff", "b/diff", "c/diff", "c/work", "c/merged", "l", "volume"} {
		check(t, os.MkdirAll(e.path(dir), 0o755))
	}
	check(t, os.Symlink("../a/diff", e.path("l/AAA")))
	check(t, os.Symlink("../b/diff", e.path("l/BBB")))
	e.file("a/diff/web", 33, 0o644)
	e.file("b/diff/suid", 0, 0o4755)
	e.file("c/diff/upper", 1000, 0o644)
	e.file("c/diff/upper-suid", 0, 0o6755)
	e.file("c/diff/foreign", 70000, 0o644)
	e.file("volume/file", 7, 0o600)
	check(t, os.Symlink("/etc", e.path("c/diff/link")))
	return e
}

func (e *engine) path(name string) string { return filepath.Join(e.home, name) }

func (e *engine) file(name string, owner int, mode uint32) {
	e.t.Helper()
	check(e.t, os.WriteFile(e.path(name), nil, 0o600))
	check(e.t, os.Chown(e.path(name), owner, owner))
	check(e.t, unix.Chmod(e.path(name), mode))
}

// mount mounts the root file system as Docker does, if it is not mounted.
func (e *engine) mount() {
	e.t.Helper()
	if m, err := mountAt(e.path("c/merged")); err != nil || m != nil {
		e.t.Errorf("before the start: %v, %v", m, err)
	}
	options := fmt.Sprintf("index=off,lowerdir=%s:%s,upperdir=%s,workdir=%s", e.path("l/AAA"), e.path("l/BBB"), e.path("c/diff"), e.path("c/work"))
	check(e.t, unix.Mount("overlay", e.path("c/merged"), "overlay", 0, options))
}

// unmount unmounts it as Docker does, once, and expects that nothing is left.
func (e *engine) unmount() {
	e.t.Helper()
	if err := unix.Unmount(e.path("c/merged"), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		e.t.Error(err)
	}
	if m, err := mountAt(e.path("c/merged")); err != nil || m != nil {
		e.t.Errorf("after the end: %v, %v", m, err)
	}
}

// apply calls Apply in a process that kills itself at a step.
func (e *engine) apply(step int) (output string, err error) {
	e.t.Helper()
	cwd := e.path("c")
	check(e.t, os.WriteFile(filepath.Join(cwd, "config-was-here"), nil, 0o600))
	cmd := exec.CommandContext(e.t.Context(), "/proc/self/exe")
	cmd.Dir = cwd
	cmd.Env = []string{stepVariable + "=" + strconv.Itoa(step), configVariable + "=" + fmt.Sprintf(
		`{"root":{"path":%q},"mounts":[{"destination":"/data","type":"bind","source":%q,"options":["rbind"]}]}`, e.path("c/merged"), e.path("volume"))}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var wantOwners = []string{
	"web 200033:200033 644", "suid 200000:200000 4755", "upper 201000:201000 644", "upper-suid 200000:200000 6755", ". 200000:200000 755",
	"foreign 70000:70000 644", "link 200000:200000 777", "volume 200007:200007 600",
}

// TestApplyIsRepeatable calls Apply for a container that starts, restarts and starts again.
func TestApplyIsRepeatable(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared mounts %v", shared), func(t *testing.T) {
			inMountNS(t, func() {
				e := newEngine(t, shared)
				for n, mounted := range []bool{false, true, false} { // a start, a restart that keeps the mount, another start
					if !mounted {
						e.mount()
					}
					out, err := e.apply(0)
					if diff := cmp.Diff(wantOwners, strings.Split(out, "\n")); err != nil || diff != "" {
						t.Errorf("call %d: %v (-want +got):\n%s", n+1, err, diff)
					}
					if m, err := mountAt(e.path("c/merged")); err != nil || m == nil || m.Source != source {
						t.Errorf("call %d: mounted: %+v, %v", n+1, m, err)
					}
					if n > 0 {
						e.unmount()
					}
				}
			})
		})
	}
}

// TestApplyKilledAtEachStep kills the process at each step. The Engine then cleans up as after any failed start, and the next start
// must give the files the right owners.
func TestApplyKilledAtEachStep(t *testing.T) {
	for step := 1; ; step++ {
		finished := true
		inMountNS(t, func() {
			e := newEngine(t, step%2 == 0)
			e.mount()
			_, err := e.apply(step)
			finished = err == nil
			e.unmount()
			e.mount()
			out, err := e.apply(0)
			if diff := cmp.Diff(wantOwners, strings.Split(out, "\n")); err != nil || diff != "" {
				t.Errorf("after a kill at step %d: %v (-want +got):\n%s", step, err, diff)
			}
			e.unmount()
			entries, _ := os.ReadDir(rootDir)
			if len(entries) > 0 {
				t.Errorf("left on the host: %v", entries)
			}
		})
		if t.Failed() || t.Skipped() {
			return
		}
		if finished {
			if step < 10 {
				t.Errorf("only %d steps", step)
			}
			return
		}
	}
}

func TestApplyRefuses(t *testing.T) {
	inMountNS(t, func() {
		e := newEngine(t, false)
		if out, err := e.apply(0); err == nil || !strings.Contains(out, "nothing is mounted at /run/overlay2/c/merged: only overlay can have a user namespace") {
			t.Errorf("a directory: %q, %v", out, err)
		}
		check(t, unix.Mount("test", e.path("c/merged"), "tmpfs", 0, ""))
		if out, err := e.apply(0); err == nil || !strings.Contains(out, "c/merged is tmpfs: only overlay") {
			t.Errorf("tmpfs: %q, %v", out, err)
		}
		e.unmount()
		check(t, unix.Mount("test", e.path("volume"), "proc", 0, ""))
		e.mount()
		if out, err := e.apply(0); err == nil || !strings.Contains(out, "mount /data: /run/overlay2/volume cannot be id-mapped: the kernel refuses it for proc at /run/overlay2/volume") {
			t.Errorf("proc: %q, %v", out, err)
		}
		if m, err := mountAt(e.path("c/merged")); err != nil || m == nil || m.Source != "overlay" {
			t.Errorf("a refused mount has changed the root file system: %v, %v", m, err)
		}
		check(t, unix.Unmount(e.path("volume"), 0))
		other := note{UIDMappings: pod, GIDMappings: []ociedit.IDMapping{{HostID: 1, Size: 1}}, Done: true}
		check(t, other.write(e.path("c/diff")))
		if out, err := e.apply(0); err == nil || !strings.Contains(out, "belongs to another user namespace: the container must be created anew") {
			t.Errorf("another namespace: %q, %v", out, err)
		}
		check(t, os.WriteFile(notePath(e.path("c/diff")), []byte("{"), 0o600))
		if out, err := e.apply(0); err == nil || !strings.Contains(out, "berth-idmap is damaged") {
			t.Errorf("a damaged note: %q, %v", out, err)
		}
	})
}

func TestParseOverlay(t *testing.T) {
	for options, want := range map[string]overlay{
		"rw,lowerdir=/a:/b,upperdir=/u,workdir=/w,index=off,nouserxattr":                        {[]string{"/a", "/b"}, "/u", "/w", []string{"index=off"}},
		"rw,lowerdir=l/A:l/B,upperdir=c/diff,workdir=c/work":                                    {[]string{"/base/l/A", "/base/l/B"}, "/base/c/diff", "/base/c/work", nil},
		"rw,lowerdir+=/a,lowerdir+=/b,upperdir=/u,workdir=/w,xino=off,volatile":                 {[]string{"/a", "/b"}, "/u", "/w", []string{"xino=off", "volatile"}},
		`rw,seclabel,context="system_u:object_r:t:s0:c1,c2",lowerdir=/a,upperdir=/u,workdir=/w`: {[]string{"/a"}, "/u", "/w", []string{`context="system_u:object_r:t:s0:c1,c2"`}},
		`rw,lowerdir=/a\134:x:/b\134\134,upperdir=/u\040u,workdir=/w`:                           {[]string{"/a:x", `/b\`}, "/u u", "/w", nil},
	} {
		got, err := parseOverlay(options, "/base")
		if err != nil || !slices.Equal(got.lowers, want.lowers) || got.upper != want.upper || got.work != want.work || !slices.Equal(got.others, want.others) {
			t.Errorf("%s: %+v, %v, want %+v", options, got, err, want)
		}
	}
	for options, want := range map[string]string{
		"rw,lowerdir=/a":                               "without upper directory",
		"rw,upperdir=/u,workdir=/w":                    "without upper directory, work directory or layers",
		"rw,lowerdir=/a::/b,upperdir=/u,workdir=/w":    "with data-only layers",
		"rw,lowerdir=/a,datadir+=/b":                   "with data-only layers",
		`rw,lowerdir=/a,upperdir=/u\134,x,workdir=/w`:  "is not supported",
		`rw,lowerdir=/a,upperdir="/u,x",workdir="/w,"`: "is not supported",
	} {
		if got, err := parseOverlay(options, "/base"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v, want %q", options, got, err, want)
		}
	}
	o := overlay{[]string{"/a", "/b"}, "/u", "/w", []string{"index=off"}}
	if got := o.data(); got != "lowerdir=0:1,upperdir=/u,workdir=/w,index=off" {
		t.Errorf("data %q", got)
	}
}

func TestFileCapabilitiesGetTheRootOfTheNamespace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(path, nil, 0o755))
	if got := fileCapabilities(path, 200000); got != nil {
		t.Errorf("a file without capabilities: %x", got)
	}
	value := append([]byte{1, 0, 0, 2, 0, 4, 0, 0}, make([]byte, 12)...) // CAP_NET_BIND_SERVICE, effective
	if err := unix.Setxattr(path, "security.capability", value, 0); err != nil {
		t.Skip("needs root:", err)
	}
	want := append(slices.Clone(value), 0x40, 0x0d, 0x03, 0)
	want[3] = 3
	if got := fileCapabilities(path, 200000); !slices.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

func TestMappings(t *testing.T) {
	got, err := parseMappings([]byte("         0     200000      65536\n     70000          5          1\n"))
	want := []ociedit.IDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}, {ContainerID: 70000, HostID: 5, Size: 1}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	reversed := slices.Clone(want)
	slices.Reverse(reversed)
	if !sameMappings(want, reversed) || sameMappings(want, want[:1]) {
		t.Error("mappings are not compared in any order")
	}
	for id, host := range map[uint32]uint32{0: 200000, 65535: 265535, 65536: 65536, 70000: 5} {
		if got, changed := mapped(want, id); got != host || changed != (got != id) {
			t.Errorf("%d: %d, %v", id, got, changed)
		}
	}
	for _, text := range []string{"0 0", "0 0 x", "-1 0 1"} {
		if got, err := parseMappings([]byte(text)); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// A user namespace that a process joins must be that of the pod.
func TestJoinRefusesOtherNamespaces(t *testing.T) {
	s, err := spec.Parse([]byte(`{"linux":{"namespaces":[{"type":"network"}]}}`))
	check(t, err)
	self, err := ociedit.FindProcess(os.Getpid())
	check(t, err)
	x := &session{}
	defer x.close()
	_, _, err = x.join(s, &ociedit.UserNamespace{UIDMappings: pod, GIDMappings: pod}, &self)
	if err == nil || !strings.Contains(err.Error(), "and the instructions have [{0 200000 65536}]") {
		t.Errorf("the host's namespace: %v", err)
	}
}

// A runtime that has entered a user namespace cannot enter the host's network namespace, so the container must inherit it.
func TestHostsNetworkNamespaceIsInherited(t *testing.T) {
	for config, want := range map[string]struct {
		foreign bool
		after   string
	}{
		`{"linux":{"namespaces":[{"path":"/proc/self/ns/net","type":"network"},{"type":"ipc"}]}}`: {true, `{"linux":{"namespaces":[{"type":"ipc"}]}}`},
		`{"linux":{"namespaces":[{"type":"network"}]}}`:                                           {false, `{"linux":{"namespaces":[{"type":"network"}]}}`},
		`{"linux":{"namespaces":[{"type":"ipc"}]}}`:                                               {true, `{"linux":{"namespaces":[{"type":"ipc"}]}}`},
	} {
		s, err := spec.Parse([]byte(config))
		check(t, err)
		_, foreign, err := (&session{}).join(s, &ociedit.UserNamespace{UIDMappings: pod, GIDMappings: pod}, nil)
		check(t, err)
		after, err := s.Marshal()
		if err != nil || foreign != want.foreign || strings.TrimSpace(string(after)) != want.after {
			t.Errorf("%s: foreign %v, %s, %v", config, foreign, after, err)
		}
	}
}
