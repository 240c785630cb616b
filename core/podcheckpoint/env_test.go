package podcheckpoint_test

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	dockercontainer "github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/system"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/checkpoint"
	"berth/core/container"
	"berth/core/criu"
	"berth/core/engine"
	"berth/core/engine/enginetest"
	"berth/core/identity"
	"berth/core/logs/dockerlog"
	"berth/core/nri"
	"berth/core/ociruntime"
	"berth/core/podcheckpoint"
	"berth/core/podpolicy"
	"berth/core/premount"
	"berth/core/restore"
	"berth/core/sandbox"
	"berth/core/state"
	"berth/core/todocker"
	"berth/network"
)

// fakeNetwork records which sandboxes are bound and attached.
type fakeNetwork struct {
	mu              sync.Mutex // guards following
	bound, attached map[string]bool
}

func (n *fakeNetwork) set(m map[string]bool, id string, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if m[id] = on; !on {
		delete(m, id)
	}
}

func (n *fakeNetwork) keys(m map[string]bool) ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(m)), nil
}

func (n *fakeNetwork) Plan(pod network.Pod) (network.Plan, error) { return network.Plan{Pod: pod}, nil }
func (n *fakeNetwork) Bind(id string, _ int) (string, error) {
	n.set(n.bound, id, true)
	return "/run/netns/" + id, nil
}
func (n *fakeNetwork) Attach(_ context.Context, plan network.Plan) ([]netip.Addr, error) {
	n.set(n.attached, plan.Pod.ID, true)
	return []netip.Addr{netip.MustParseAddr("10.0.0.7")}, nil
}
func (n *fakeNetwork) Detach(ctx context.Context, _ *network.Plan, id string) error {
	return n.Forget(ctx, id)
}
func (n *fakeNetwork) Forget(_ context.Context, id string) error {
	n.set(n.attached, id, false)
	n.set(n.bound, id, false)
	return nil
}
func (n *fakeNetwork) GC(context.Context, []string) error { return nil }
func (n *fakeNetwork) Attached() ([]string, error)        { return n.keys(n.attached) }
func (n *fakeNetwork) Bound() ([]string, error)           { return n.keys(n.bound) }
func (n *fakeNetwork) InNetNS(string, int) bool           { return true }
func (n *fakeNetwork) Addresses(string) ([]netip.Addr, bool, error) {
	return nil, true, nil
}

// fakeServices stands for images, logs, and the files of pods.
type fakeServices struct{}

func (fakeServices) Pause(context.Context) (string, error) { return "pause", nil }
func (fakeServices) ForgetPause()                          {}
func (fakeServices) Resolve(_ context.Context, ref, _ string) (todocker.Image, error) {
	switch ref {
	case "server", "server:1":
		return todocker.Image{ID: "server", Ref: "server", HasCommand: true, HasEntrypoint: true}, nil
	case "other":
		return todocker.Image{ID: "other", Ref: "other", HasCommand: true}, nil
	}
	return todocker.Image{}, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
}
func (fakeServices) PasswdFiles(context.Context, string) (identity.PasswdFiles, error) {
	return identity.PasswdFiles{}, nil
}
func (fakeServices) Walk(context.Context, string, []string, func(*tar.Header, io.Reader) error) error {
	return nil
}
func (fakeServices) Create(string, dockerlog.File, string, string) error          { return nil }
func (fakeServices) Remove(context.Context, string, string, string, string) error { return nil }
func (fakeServices) Reopen(context.Context, string) error                         { return nil }
func (fakeServices) Prune(func(string) bool) error                                { return nil }
func (fakeServices) LogConfig() dockercontainer.LogConfig                         { return dockercontainer.LogConfig{} }
func (fakeServices) Observe(context.Context, *cache.Container)                    {}
func (fakeServices) Discard(string)                                               {}
func (fakeServices) FilesOf(string) []todocker.File                               { return nil }

type fakeTmpfs struct{}

func (fakeTmpfs) Mount(dir string, _ int64, _ string) error { return os.MkdirAll(dir, 0o755) }
func (fakeTmpfs) Remove(dir string) error                   { return os.RemoveAll(dir) }

// fakeCheckpoints records what it is called with.
type fakeCheckpoints struct {
	mu       sync.Mutex // guards following
	running  int
	targets  []criu.Container
	manifest criu.Manifest
	path     string

	during func(ctx context.Context) error // may be nil
}

func (c *fakeCheckpoints) CheckpointPod(ctx context.Context, targets []criu.Container, m criu.Manifest, path string, _ criu.Inspector) (criu.Manifest, error) {
	c.mu.Lock()
	c.targets, c.manifest, c.path = targets, m, path
	c.running++
	alone := c.running == 1
	c.mu.Unlock()
	defer func() { c.mu.Lock(); c.running--; c.mu.Unlock() }()
	if !alone {
		return m, errors.New("two checkpoints of a pod at a time")
	}
	if c.during != nil {
		return m, c.during(ctx)
	}
	return m, nil
}

// env is a Service with everything that it uses, on a fake Engine that has berth's OCI runtime.
type env struct {
	*testing.T
	engine      *enginetest.Engine
	docker      *engine.Engine
	cache       *cache.Cache
	network     *fakeNetwork
	state       sandbox.State
	sandboxes   *sandbox.Service
	containers  *container.Service
	checkpoints *fakeCheckpoints
	probe       error // of a restore
	log         strings.Builder
	config      podcheckpoint.Config
	*podcheckpoint.Service

	dir, archives, restores, oci string
}

func newEnv(t *testing.T) *env {
	dir := t.TempDir()
	e := &env{
		T: t, engine: enginetest.New(t), network: &fakeNetwork{bound: map[string]bool{}, attached: map[string]bool{}}, checkpoints: &fakeCheckpoints{},
		dir: dir, archives: filepath.Join(dir, "archives"), restores: filepath.Join(dir, "restores"), oci: filepath.Join(dir, "oci"),
	}
	e.must(os.Mkdir(e.archives, 0o700))
	for _, name := range []string{"server", "other"} {
		e.engine.AddImage(enginetest.Image{}, name)
	}
	e.engine.AddImage(enginetest.Image{Config: dockercontainer.Config{Entrypoint: []string{"pause"}}}, "pause")
	e.engine.SetInfo(func(i *system.Info) {
		i.Runtimes["berth"] = system.RuntimeWithStatus{Runtime: system.Runtime{Path: "/usr/lib/berth/berth-oci", Args: []string{"--berth-instructions=" + e.oci}}}
	})
	e.docker = e.engine.Connect(t)
	store, err := state.Open(filepath.Join(dir, "state"))
	e.must(err)
	e.state, err = sandbox.OpenState(store)
	e.must(err)
	failures, err := container.OpenFailedStarts(store)
	e.must(err)
	updates, err := container.OpenUpdates(store)
	e.must(err)
	changes, err := nri.OpenRecords(store)
	e.must(err)
	policy, err := podpolicy.New(podpolicy.Options{})
	e.must(err)
	log := slog.New(slog.DiscardHandler)
	e.cache = cache.New(cache.Config{Network: e.network, FailedStarts: failures, ContainerUpdates: updates, SandboxUpdates: e.state.Updates, Logs: fakeServices{}}, e.docker, log)
	enginetest.Background(t, e.cache.Run)
	oci := ociruntime.New(e.oci, func(engine.Features) error { return nil })
	restores := restore.New(restore.Config{ArchiveDir: e.archives, Probe: func(context.Context, int, string, string) error { return e.probe }}, e.restores, log)
	e.containers = container.New(container.Config{
		Engine: e.docker, Cache: e.cache, Images: fakeServices{}, Logs: fakeServices{}, Files: fakeServices{}, Policy: policy, OCI: oci, Failures: failures, Updates: updates, NRIRecords: changes,
		Premounts: premount.New(filepath.Join(dir, "mounts")), Checkpoints: criu.New(filepath.Join(dir, "checkpoints"), log), Restores: restores, Log: log,
	})
	e.sandboxes = e.newSandboxes(oci, policy)
	e.config = podcheckpoint.Config{
		Version: "1.2.3", Cache: e.cache, Sandboxes: e.sandboxes, Containers: e.containers, Images: fakeServices{}, Checkpoints: e.checkpoints, Restores: restores, Log: slog.New(slog.NewTextHandler(&e.log, nil)),
	}
	e.Service = podcheckpoint.New(e.config)
	enginetest.Until(t, "the cache is not in sync", func() bool { return e.cache.Ready(t.Context()) == nil })
	return e
}

// newSandboxes returns a sandbox.Service on the state of the others, as a restart of the daemon does.
func (e *env) newSandboxes(oci *ociruntime.Store, policy podpolicy.Policy) *sandbox.Service {
	return sandbox.New(sandbox.Config{
		Docker: e.docker, Cache: e.cache, Images: fakeServices{}, Containers: e.containers, Network: e.network, State: e.state, Log: slog.New(slog.DiscardHandler),
		RunDir: filepath.Join(e.dir, "run"), Checkpoints: checkpoint.Dir(filepath.Join(e.dir, "sandbox")), Tmpfs: fakeTmpfs{}, Policy: policy, OCI: oci,
	})
}

func (e *env) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

func pod(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "ns", Uid: "u-" + name}, Hostname: name}
}

func ctr(name string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: "server"}, Args: []string{"up"}, WorkingDir: "/srv/",
		Envs: []*runtimeapi.KeyValue{{Key: "A", Value: []byte("1")}}, Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}, RunAsUser: &runtimeapi.Int64Value{Value: 1000}, RunAsGroup: &runtimeapi.Int64Value{Value: 1001}, SupplementalGroups: []int64{1002},
		}},
	}
}

// run runs a pod with containers, and returns their IDs.
func (e *env) run(name string, containers ...string) (id string, ids []string) {
	e.Helper()
	id, err := e.sandboxes.Run(e.Context(), pod(name), "")
	e.must(err)
	for _, c := range containers {
		created, err := e.containers.Create(e.Context(), id, ctr(c), pod(name))
		e.must(err)
		e.must(e.containers.Start(e.Context(), created))
		ids = append(ids, created)
	}
	return id, ids
}

// spec is that of a container that ctr describes.
const spec = `{"process":{"args":["count","up"],"cwd":"/srv","env":["PATH=/bin","A=1"],"user":{"uid":1000,"gid":1001,"additionalGids":[1001,1002]}},"linux":{"namespaces":[{"type":"mount"}]}}`

// files are those of an archive, of one process without capabilities.
func files() map[string]string {
	return map[string]string{
		"config.dump": `{"rootfsImage":"server:1"}`, "spec.dump": spec, "checkpoint/inventory.img": "i", "checkpoint/descriptors.json": "[]",
		"checkpoint/core-1.img": "\x19\x43\x56\x54\x47\x38\x05\x55\x0a\x00\x00\x00\x1a\x02\x08\x01\x2a\x04\x52\x00\x58\x02",
	}
}

// write writes the checkpoint of a pod with the containers, and returns its directory.
func (e *env) write(containers map[string]map[string]string) string {
	e.Helper()
	dir := filepath.Join(e.archives, "pod")
	e.must(os.RemoveAll(dir))
	e.must(os.Mkdir(dir, 0o700))
	m := criu.Manifest{Version: criu.ManifestVersion}
	for _, name := range slices.Sorted(maps.Keys(containers)) {
		path := filepath.Join(dir, name+".tar")
		out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
		e.must(err)
		w := tar.NewWriter(out)
		for file, text := range containers[name] {
			_, err = io.WriteString(headed{w, file, int64(len(text))}, text)
			e.must(err)
		}
		e.must(errors.Join(w.Close(), out.Close()))
		info, err := os.Stat(path)
		e.must(err)
		m.Containers = append(m.Containers, criu.ManifestContainer{Name: name, ID: "old-" + name, Archive: name + ".tar", Bytes: info.Size()})
	}
	e.manifest(dir, m)
	return dir
}

// headed writes a file with its header.
type headed struct {
	*tar.Writer
	name string
	size int64
}

func (h headed) WriteString(text string) (int, error) {
	if err := h.WriteHeader(&tar.Header{Name: h.name, Typeflag: tar.TypeReg, Mode: 0o600, Size: h.size}); err != nil {
		return 0, err
	}
	return h.Write([]byte(text))
}

// manifest writes a manifest.
func (e *env) manifest(dir string, m criu.Manifest) {
	e.Helper()
	text, err := json.Marshal(m)
	e.must(err)
	e.must(os.WriteFile(filepath.Join(dir, criu.ManifestFile), text, 0o600))
}

// leftovers lists everything that a pod can leave.
func (e *env) leftovers() []string {
	left := e.engine.Leftovers()
	for what, m := range map[string]map[string]bool{"namespace of ": e.network.bound, "attachment of ": e.network.attached} {
		ids, _ := e.network.keys(m)
		for _, id := range ids {
			left = append(left, what+id)
		}
	}
	for _, pattern := range []string{"run/pods/*", "state/*/*/*", "sandbox/*", "oci/*", "restores/*"} {
		found, err := filepath.Glob(filepath.Join(e.dir, pattern))
		e.must(err)
		left = append(left, found...)
	}
	return left
}

func (e *env) requireClean(after string) {
	e.Helper()
	if left := e.leftovers(); len(left) > 0 {
		e.Errorf("left after %s: %v", after, left)
	}
}

// treeOf describes the files in a directory.
func (e *env) treeOf(dir string) (all string) {
	e.Helper()
	e.must(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		all += fmt.Sprintln(path, info.Mode(), info.Size(), info.ModTime())
		return err
	}))
	return all
}
