package sandbox_test

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine/enginetest"
	"berth/core/sandbox"
	"berth/core/todocker"
)

// fakeTmpfs mounts nothing. It empties directories, as a mount would hide their files.
type fakeTmpfs struct {
	mu    sync.Mutex // guards following
	sizes map[string]int64
	err   error // of Mount
}

func newFakeTmpfs() *fakeTmpfs { return &fakeTmpfs{sizes: map[string]int64{}} }

func (f *fakeTmpfs) Mount(dir string, size int64, _ string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	f.sizes[dir] = size
	return errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755))
}

func (f *fakeTmpfs) Remove(dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.sizes, dir)
	return os.RemoveAll(dir)
}

func (f *fakeTmpfs) mounted() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.sizes))
}

// filesOf returns the files that are mounted into containers of the sandbox id.
func (e *env) filesOf(id string) []todocker.File {
	e.Helper()
	files := sandbox.Files(filepath.Join(e.dir, "run")).FilesOf(id)
	if len(files) != 3 {
		e.Fatalf("files %v, want hosts, hostname and resolv.conf", files)
	}
	return files
}

// The files of a pod that its containers can write to are on a small file system of their own,
// not on that of the run directory.
func TestFilesOfPodsAreBoundedOrReadOnly(t *testing.T) {
	const maxSize = 1 << 20
	for name, tt := range map[string]struct {
		prepare  func(*env)
		readOnly bool
	}{
		"tmpfs is mounted": {func(*env) {}, false},
		"mount fails":      {func(e *env) { e.tmpfs.err = errors.New("operation not permitted") }, true},
		// The mount namespace of the process that starts containers cannot be read, which is
		// handled as if Docker had another one.
		"Docker has another mount namespace": {func(e *env) { e.engine.PID = func(string) int { return 1 << 30 } }, true},
	} {
		for _, network := range []runtimeapi.NamespaceMode{runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_NODE} {
			t.Run(name+", network "+network.String(), func(t *testing.T) {
				e := newEnv(t)
				tt.prepare(e)
				config := pod()
				config.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
					NamespaceOptions: &runtimeapi.NamespaceOption{Network: network},
				}}
				id, err := e.Run(t.Context(), config, "")
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range e.filesOf(id) {
					if f.ReadOnly != tt.readOnly {
						t.Errorf("%s: read-only %v, want %v", f.Target, f.ReadOnly, tt.readOnly)
					}
					if text, err := os.ReadFile(f.Source); err != nil || len(text) == 0 && f.Target != "/etc/resolv.conf" {
						t.Errorf("%s: %q, %v", f.Target, text, err)
					}
					if size := e.tmpfs.sizes[filepath.Dir(f.Source)]; !f.ReadOnly && (size <= 0 || size > maxSize) {
						t.Errorf("%s can grow to %d bytes, want at most %d", f.Target, size, maxSize)
					}
				}
				if err := e.Remove(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				e.requireClean("removal")
			})
		}
	}
}

// The pods of berth 1.0 have their files in the run directory, where their containers can
// write to them.
func TestFilesOfPodsOfEarlierReleasesStayWritable(t *testing.T) {
	e := newEnv(t)
	id := e.run()
	dir := filepath.Join(e.dir, "run", "pods", id)
	if err := e.tmpfs.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range e.filesOf(id) {
		if f.ReadOnly {
			t.Errorf("%s is read-only", f.Target)
		}
	}
	if err := e.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	e.requireClean("removal")
}

// The next daemon unmounts the file system of a sandbox that was removed between.
func TestGCUnmountsFileSystemsOfMissingSandboxes(t *testing.T) {
	e := newEnv(t)
	id := e.run()
	if len(e.tmpfs.mounted()) != 1 {
		t.Fatalf("mounted %v", e.tmpfs.mounted())
	}
	if err := e.client.ContainerRemove(t.Context(), id, container.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	e.cache.Forget(id) // as after a restart of the daemon
	e.start(false)
	enginetest.Background(t, e.RunGC)
	enginetest.Until(t, "the file system is still mounted", func() bool { return len(e.tmpfs.mounted()) == 0 })
}

// Annotations are checked before the first step.
func TestRunRefusesInvalidBandwidthAndLeavesNothing(t *testing.T) {
	e := newEnv(t)
	config := pod()
	config.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": "NaN"}
	if id, err := e.Run(t.Context(), config, ""); err == nil || !strings.Contains(err.Error(), "kubernetes.io/egress-bandwidth") {
		t.Errorf("%s, %v; want an error that names the annotation", id, err)
	}
	e.requireClean("an invalid bandwidth")
}
