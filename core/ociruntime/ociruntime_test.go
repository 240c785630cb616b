package ociruntime

import (
	"bufio"
	"bytes"
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
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"berth/core/engine"
	"berth/core/engine/enginetest"
	"berth/core/names"
	"berth/core/ociedit"
)

var edit = &ociedit.UserNamespace{
	UIDMappings: []ociedit.IDMapping{{HostID: 131072, Size: 65536}}, GIDMappings: []ociedit.IDMapping{{HostID: 131072, Size: 65536}}, IDMapOthers: true,
}

var instructions = ociedit.Instructions{UserNamespace: edit}

func id(digit string) string { return strings.Repeat(digit, 64) }

func TestInstructionsLiveAsLongAsTheirContainer(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "oci")
	s := New(dir, nil)
	if err := s.Write(id("a"), 0, instructions); err != nil {
		t.Fatal(err)
	}
	if err := s.Write(id("b"), os.Getpid(), instructions); err != nil {
		t.Fatal(err)
	}
	if err := s.Write(id("c"), os.Getpid(), ociedit.Instructions{Unified: map[string]string{"memory.high": "1"}}); err != nil {
		t.Fatal(err)
	}
	if got, err := ociedit.Read(dir, id("c")); err != nil || got.Sandbox != nil || got.Unified["memory.high"] != "1" {
		t.Errorf("without namespaces of the sandbox: %+v, %v", got, err)
	}
	if err := s.Remove(id("c")); err != nil {
		t.Error(err)
	}
	self, err := ociedit.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for container, sandbox := range map[string]*ociedit.Process{id("a"): nil, id("b"): &self} {
		got, err := ociedit.Read(dir, container)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&ociedit.Instructions{Version: 1, ContainerID: container, Sandbox: sandbox, UserNamespace: edit}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	for range 2 {
		if err := errors.Join(s.Remove(id("a")), s.Remove(id("b"))); err != nil {
			t.Error(err)
		}
	}
	if left, err := ociedit.List(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %v, %v", info.Mode(), err)
	}
}

func TestNothingIsWrittenWithoutAnEdit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "oci")
	if err := New(dir, nil).Write(id("a"), 0, ociedit.Instructions{}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory exists: %v", err)
	}
	var none *Store
	if err := errors.Join(none.Write(id("a"), 0, ociedit.Instructions{}), none.Remove(id("a")), none.GC(t.Context(), nil, nil, nil)); err != nil {
		t.Error(err)
	}
	if err := none.Write(id("a"), 0, instructions); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without a directory: %v", err)
	}
}

func TestInstructionsGetTheIDOfTheirContainer(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "oci")
	hooks := ociedit.Instructions{Hooks: &ociedit.Hooks{Poststop: []ociedit.Hook{{Path: "/hook", Args: []string{"hook", "/srv/" + names.UnknownID}}}}}
	if err := New(dir, nil).Write(id("a"), 0, hooks); err != nil {
		t.Fatal(err)
	}
	got, err := ociedit.Read(dir, id("a"))
	if err != nil || got.Hooks.Poststop[0].Args[1] != "/srv/"+id("a") {
		t.Errorf("%v, %v", got.Hooks, err)
	}
	if hooks.Hooks.Poststop[0].Args[1] != "/srv/"+names.UnknownID {
		t.Error("the instructions of the next container have changed")
	}
}

// A sandbox that has exited is no reason to join the user namespace of another process.
func TestWriteNeedsTheProcessOfTheSandbox(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "oci")
	const noProcess = 1 << 22 // above pid_max
	if err := New(dir, nil).Write(id("a"), noProcess, instructions); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("%v, want a failed precondition", err)
	}
	if ids, err := ociedit.List(dir); err != nil || len(ids) > 0 {
		t.Errorf("instructions were written: %v, %v", ids, err)
	}
}

func TestGCRemovesInstructionsOfMissingContainers(t *testing.T) {
	e := enginetest.New(t)
	e.AddImage(enginetest.Image{}, "server")
	conn, err := e.Connect(t).Conn()
	if err != nil {
		t.Fatal(err)
	}
	created, err := e.Client(t).ContainerCreate(t.Context(), &container.Config{Image: "server", Cmd: []string{"serve"}}, nil, nil, nil, "creating")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "oci")
	s := New(dir, nil)
	for _, container := range []string{id("a"), id("b"), created.ID} {
		if err := s.Write(container, 0, instructions); err != nil {
			t.Fatal(err)
		}
	}
	// What a berthd that was killed leaves.
	if err := os.WriteFile(filepath.Join(dir, "."+id("c")+".json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	known := func(container string) bool { return container == id("a") }
	if err := s.GC(t.Context(), conn, known, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
		t.Fatal(err)
	}
	left, err := ociedit.List(dir)
	if err != nil || len(left) != 2 || strings.Contains(strings.Join(left, " "), id("b")) || strings.Contains(strings.Join(left, " "), id("c")) {
		t.Errorf("left: %v, %v; want those of the known container and of the one that Docker has", left, err)
	}
	if !strings.Contains(log.String(), "container that does not exist") {
		t.Errorf("log: %s", log.String())
	}
	e.Fail("GET /containers/{id}/json", 500)
	if err := s.GC(t.Context(), conn, func(string) bool { return false }, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a Docker that fails is not reported")
	}
}

func TestProbeSaysWhatTheNodeLacks(t *testing.T) {
	good := engine.Features{Kernel: "6.12.1-amd64", StorageDriver: "overlay2", RootDir: "/var/lib/docker"}
	tries := 0
	p := NewProber()
	p.idmap = func(_ int, dir string) error {
		tries++
		switch dir {
		case "/zfs":
			return fmt.Errorf("mount_setattr: %w: %w", unix.EINVAL, errdefs.ErrFailedPrecondition)
		case "/busy":
			return unix.EAGAIN
		}
		return nil
	}
	for range 3 {
		if err := p.Probe(good); err != nil {
			t.Error(err)
		}
	}
	if tries != 1 {
		t.Errorf("the file system was tried %d times", tries)
	}
	for text, change := range map[string]func(*engine.Features){
		"need Linux 6.3 or newer, which can map the IDs of tmpfs, this is 6.1.0": func(f *engine.Features) { f.Kernel = "6.1.0" },
		"Docker has btrfs": func(f *engine.Features) { f.StorageDriver = "btrfs" },
		"/zfs, cannot be mounted with mapped IDs: mount_setattr: invalid argument": func(f *engine.Features) { f.RootDir = "/zfs" },
	} {
		features := good
		change(&features)
		if err := p.Probe(features); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want %q", err, text)
		}
	}
	busy := good
	busy.RootDir = "/busy"
	tries = 0
	for range 2 {
		if err := p.Probe(busy); err == nil || errdefs.IsFailedPrecondition(err) {
			t.Errorf("without memory: %v", err)
		}
	}
	if tries != 2 {
		t.Errorf("a failure that may pass was tried %d times, want 2", tries)
	}
}

// The probe works on this machine or says why it does not, and leaves no process and no mount behind.
func TestProbeOfADirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	mounts := func() string { // those of other tests come and go
		text, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(slices.DeleteFunc(strings.Split(string(text), "\n"), func(line string) bool {
			return strings.Contains(line, os.TempDir()+"/") && !strings.Contains(line, dir)
		}), "\n")
	}
	before := mounts()
	err := idmapDir(dir)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSYS) {
		t.Error(err)
	}
	t.Logf("id-mapped mount of a temporary directory: %v", err)
	if err := idmapDir("/proc"); err == nil {
		t.Error("/proc can be mounted with mapped IDs, which no kernel does")
	}
	if diff := cmp.Diff(before, mounts()); diff != "" {
		t.Errorf("mounts (-before +after):\n%s", diff)
	}
	if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
		t.Errorf("a process is left: %v", err)
	}
}

// The probe of an Engine in a mount namespace of its own is of what the Engine sees.
func TestProbeInAnotherMountNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	hidden := filepath.Join(dir, "hidden")
	engine := exec.CommandContext(t.Context(), "sh", "-c", `mount -t tmpfs berth-test "$1" && mkdir "$2" && echo ready && exec sleep 1000`, "sh", dir, hidden)
	engine.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	out, err := engine.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := engine.Start(); err != nil {
		t.Skipf("no mount namespace can be created: %v", err)
	}
	t.Cleanup(func() {
		if err := engine.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = engine.Wait() // killed
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Skipf("no tmpfs can be mounted: %q, %v", line, err)
	}
	before, err := os.Readlink("/proc/thread-self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	if err := idmapDirOf(0, hidden); !errors.Is(err, unix.ENOENT) {
		t.Errorf("berthd sees the directory: %v", err)
	}
	for range 50 { // any thread may be chosen
		if err := idmapDirOf(engine.Process.Pid, hidden); errors.Is(err, unix.ENOENT) {
			t.Error(err)
		}
		if err := onThreadOfItsOwn(func() error {
			if unix.Gettid() == os.Getpid() {
				return errors.New("is called on the main thread")
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	if now, err := os.Readlink("/proc/self/ns/mnt"); err != nil || now != before {
		t.Errorf("the main thread is in the mount namespace %s, %v; want %s", now, err, before)
	}
	for range 100 { // no thread of another mount namespace runs other goroutines
		if now, err := os.Readlink("/proc/thread-self/ns/mnt"); err != nil || now != before {
			t.Fatalf("this thread is in the mount namespace %s, %v; want %s", now, err, before)
		}
		runtime.Gosched()
	}
}
