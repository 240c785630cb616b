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

// fakeTmpfs mounts nothing: it empties directories, as a mount on them would look.
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

// filesOf returns the files that containers of the sandbox id find.
func (r *room) filesOf(id string) []todocker.File {
	r.Helper()
	files := sandbox.Files(filepath.Join(r.dir, "run")).Of(id)
	if len(files) != 3 {
		r.Fatalf("files %v, want hosts, hostname and resolv.conf", files)
	}
	return files
}

// A container that may write to a file of its pod can write no more than the file system
// of that pod takes, which is small and not that of the run directory.
func TestFilesOfPodsAreBoundedOrReadOnly(t *testing.T) {
	const most = 1 << 20
	for name, tt := range map[string]struct {
		prepare  func(*room)
		readOnly bool
	}{
		"as a rule":              {func(*room) {}, false},
		"nothing can be mounted": {func(r *room) { r.tmpfs.err = errors.New("operation not permitted") }, true},
		// The process that starts containers is in a mount namespace that cannot be read, as
		// if Docker were in another one.
		"Docker does not see our mounts": {func(r *room) { r.engine.PID = func(string) int { return 1 << 30 } }, true},
	} {
		for _, network := range []runtimeapi.NamespaceMode{runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_NODE} {
			t.Run(name+", network "+network.String(), func(t *testing.T) {
				r := newRoom(t)
				tt.prepare(r)
				config := pod()
				config.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
					NamespaceOptions: &runtimeapi.NamespaceOption{Network: network},
				}}
				id, err := r.Run(t.Context(), config, "")
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range r.filesOf(id) {
					if f.ReadOnly != tt.readOnly {
						t.Errorf("%s: read-only %v, want %v", f.Target, f.ReadOnly, tt.readOnly)
					}
					if text, err := os.ReadFile(f.Source); err != nil || len(text) == 0 && f.Target != "/etc/resolv.conf" {
						t.Errorf("%s: %q, %v", f.Target, text, err)
					}
					if size := r.tmpfs.sizes[filepath.Dir(f.Source)]; !f.ReadOnly && (size <= 0 || size > most) {
						t.Errorf("%s can be made %d bytes large, want at most %d", f.Target, size, most)
					}
				}
				if err := r.Remove(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				r.clean("removal")
			})
		}
	}
}

// A pod of an earlier version has its files in the run directory, and its containers may
// be made with the expectation that they can write them.
func TestFilesOfPodsFromEarlierVersionsStayAsTheyAre(t *testing.T) {
	r := newRoom(t)
	id := r.run()
	dir := filepath.Join(r.dir, "run", "pods", id)
	if err := r.tmpfs.Remove(dir); err != nil {
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
	for _, f := range r.filesOf(id) {
		if f.ReadOnly {
			t.Errorf("%s is read-only", f.Target)
		}
	}
	if err := r.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	r.clean("removal")
}

// What a daemon that was killed has mounted for a sandbox is unmounted by the next one.
func TestFileSystemsOfSandboxesThatAreGoneAreUnmounted(t *testing.T) {
	r := newRoom(t)
	id := r.run()
	if len(r.tmpfs.mounted()) != 1 {
		t.Fatalf("mounted %v", r.tmpfs.mounted())
	}
	if err := r.client.ContainerRemove(t.Context(), id, container.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	r.view.Forget(id) // as that of a new daemon, which has never seen it
	r.serve(false)
	enginetest.Background(t, r.RunGC)
	enginetest.Until(t, "the file system is still mounted", func() bool { return len(r.tmpfs.mounted()) == 0 })
}

// The annotations are checked before anything is made.
func TestABandwidthThatIsNoQuantityLeavesNothing(t *testing.T) {
	r := newRoom(t)
	config := pod()
	config.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": "NaN"}
	if id, err := r.Run(t.Context(), config, ""); err == nil || !strings.Contains(err.Error(), "kubernetes.io/egress-bandwidth") {
		t.Errorf("%s, %v; want an error that names the annotation", id, err)
	}
	r.clean("a bandwidth that is no quantity")
}
