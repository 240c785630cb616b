package podcheckpoint_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/container"
	"berth/core/criu"
	"berth/core/engine/enginetest"
	"berth/core/ociedit"
	"berth/core/podcheckpoint"
	"berth/core/podpolicy"
)

// request is one to restore the pod web with the containers a and b.
func request(dir string) *runtimeapi.RestorePodRequest {
	return &runtimeapi.RestorePodRequest{CheckpointPath: dir, Config: pod("web"), ContainerConfigs: []*runtimeapi.ContainerConfig{ctr("b"), ctr("a")}}
}

func (e *env) restore(ctx context.Context, r *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return e.Restore(ctx, r)
}

func both() map[string]map[string]string {
	return map[string]map[string]string{"a": files(), "b": files()}
}

func TestRestoredContainersAreCreatedAndNotStarted(t *testing.T) {
	e := newEnv(t)
	dir := e.write(both())
	before := e.treeOf(dir)
	made, err := e.restore(t.Context(), request(dir))
	e.must(err)
	id := made.GetPodSandboxId()
	if s, err := e.sandboxes.Status(t.Context(), id); err != nil || s.Row.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY || s.Row.GetMetadata().GetUid() != "u-web" {
		t.Errorf("sandbox: %v, %v", s, err)
	}
	list := made.GetRestoredContainers()
	if len(list) != 2 || list[0].GetName() != "b" || list[1].GetName() != "a" || list[0].GetContainerId() == list[1].GetContainerId() {
		t.Fatal(list)
	}
	for _, c := range list {
		s, err := e.containers.Status(t.Context(), c.GetContainerId())
		e.must(err)
		if s.Row.GetState() != runtimeapi.ContainerState_CONTAINER_CREATED || s.Row.GetMetadata().GetName() != c.GetName() || s.Row.GetPodSandboxId() != id || s.Status.GetImage().GetImage() != "server:1" {
			t.Errorf("%v", s.Status)
		}
		if i, err := ociedit.Read(e.oci, c.GetContainerId()); err != nil || i.Restore == nil || !i.Restore.Seccomp {
			t.Errorf("instructions: %+v, %v", i, err)
		}
	}
	if n := e.engine.Calls("POST /containers/{id}/start"); n != 1 {
		t.Errorf("%d containers were started, want the pause container", n)
	}
	if after := e.treeOf(dir); after != before {
		t.Errorf("the checkpoint was changed:\n%s%s", before, after)
	}
	if log := e.log.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, `msg="pod restored" pod=web namespace=ns sandbox=`+id+" containers=2") {
		t.Errorf("log: %s", log)
	}
	if _, err := e.restore(t.Context(), request(dir)); !errdefs.IsAlreadyExists(err) {
		t.Errorf("again: %v, want AlreadyExists", err)
	}
	if s, err := e.sandboxes.Status(t.Context(), id); err != nil || s.Row.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("after a call for the same pod: %v, %v", s, err)
	}
	for _, c := range list {
		e.must(e.containers.Start(t.Context(), c.GetContainerId()))
	}
	e.must(e.sandboxes.Remove(t.Context(), id))
	e.requireClean("RemovePodSandbox")
}

func TestRestoreRefusesRequests(t *testing.T) {
	e := newEnv(t)
	dir := e.write(both())
	set := func(change func(c *runtimeapi.ContainerConfig)) func(r *runtimeapi.RestorePodRequest) {
		return func(r *runtimeapi.RestorePodRequest) { change(r.ContainerConfigs[1]) }
	}
	for name, c := range map[string]struct {
		change func(r *runtimeapi.RestorePodRequest)
		is     func(error) bool
		want   string
	}{
		"options":          {func(r *runtimeapi.RestorePodRequest) { r.Options = map[string]string{"k": ""} }, errdefs.IsInvalidArgument, `options ["k"]`},
		"no path":          {func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath = "" }, errdefs.IsInvalidArgument, "must be a path below"},
		"elsewhere":        {func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath = e.dir }, errdefs.IsInvalidArgument, "must be a path below"},
		"the directory":    {func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath = e.archives }, errdefs.IsInvalidArgument, "must be a path below"},
		"not clean":        {func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath += "/../pod" }, errdefs.IsInvalidArgument, "must be a path below"},
		"not there":        {func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath += "x" }, errdefs.IsNotFound, "no such file"},
		"no config":        {func(r *runtimeapi.RestorePodRequest) { r.Config = nil }, errdefs.IsInvalidArgument, "metadata"},
		"no pod name":      {func(r *runtimeapi.RestorePodRequest) { r.Config.Metadata.Name = "" }, errdefs.IsInvalidArgument, "name"},
		"handler":          {func(r *runtimeapi.RestorePodRequest) { r.RuntimeHandler = "x" }, errdefs.IsFailedPrecondition, `runtime_handler "x": must be that of the checkpoint, ""`},
		"no containers":    {func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs = nil }, errdefs.IsInvalidArgument, "must not be empty"},
		"one is missing":   {func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs = r.ContainerConfigs[1:] }, errdefs.IsInvalidArgument, `container "b" of the checkpoint is missing`},
		"one more":         {func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs = append(r.ContainerConfigs, ctr("c")) }, errdefs.IsInvalidArgument, `has no container "c"`},
		"twice":            {func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs = append(r.ContainerConfigs, ctr("a")) }, errdefs.IsInvalidArgument, "must be unique"},
		"no name":          {set(func(c *runtimeapi.ContainerConfig) { c.Metadata = nil }), errdefs.IsInvalidArgument, "not empty"},
		"no image":         {set(func(c *runtimeapi.ContainerConfig) { c.Image = nil }), errdefs.IsInvalidArgument, "without an image"},
		"unknown image":    {set(func(c *runtimeapi.ContainerConfig) { c.Image.Image = "none" }), errdefs.IsNotFound, "none"},
		"another image":    {set(func(c *runtimeapi.ContainerConfig) { c.Image.Image = "other" }), errdefs.IsFailedPrecondition, "is other on the node, and that of the checkpoint server"},
		"command":          {set(func(c *runtimeapi.ContainerConfig) { c.Command = []string{"run"} }), errdefs.IsFailedPrecondition, "command and args"},
		"args":             {set(func(c *runtimeapi.ContainerConfig) { c.Args = []string{"down"} }), errdefs.IsFailedPrecondition, "command and args"},
		"too many args":    {set(func(c *runtimeapi.ContainerConfig) { c.Args = []string{"x", "count", "up"} }), errdefs.IsFailedPrecondition, "command and args"},
		"a part of it":     {set(func(c *runtimeapi.ContainerConfig) { c.Command, c.Args = []string{"up"}, nil }), errdefs.IsFailedPrecondition, "command and args"},
		"directory":        {set(func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/" }), errdefs.IsFailedPrecondition, "working_dir"},
		"variable":         {set(func(c *runtimeapi.ContainerConfig) { c.Envs[0].Value = []byte("secret") }), errdefs.IsFailedPrecondition, `environment variable "A"`},
		"one more of them": {set(func(c *runtimeapi.ContainerConfig) { c.Envs[0].Key = "B" }), errdefs.IsFailedPrecondition, `environment variable "B"`},
		"user":             {set(func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.RunAsUser.Value = 0 }), errdefs.IsFailedPrecondition, "run_as_user 0: the checkpoint has 1000"},
		"group":            {set(func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.RunAsGroup.Value = 0 }), errdefs.IsFailedPrecondition, "run_as_group 0"},
		"groups":           {set(func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.SupplementalGroups = []int64{0} }), errdefs.IsFailedPrecondition, "supplemental_groups"},
	} {
		r := request(dir)
		c.change(r)
		if _, err := e.restore(t.Context(), r); !c.is(err) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, err := e.Restore(t.Context(), request(dir)); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "deadline") {
		t.Errorf("without a deadline: %v", err)
	}
	if n := e.engine.Calls("POST /containers/create"); n > 0 {
		t.Errorf("%d containers were created", n)
	}
	off := e.config
	off.Restores = nil
	e.Service = podcheckpoint.New(off)
	if _, err := e.restore(t.Context(), request(dir)); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "restore-archive-dir") {
		t.Errorf("without the option: %v", err)
	}
}

func TestRestoreRefusesCheckpoints(t *testing.T) {
	e := newEnv(t)
	for name, c := range map[string]struct {
		change func(dir string, m *criu.Manifest)
		is     func(error) bool
		want   string
	}{
		"version":          {func(_ string, m *criu.Manifest) { m.Version = 2 }, errdefs.IsFailedPrecondition, "version 2: this berthd restores version 1"},
		"no containers":    {func(_ string, m *criu.Manifest) { m.Containers = nil }, errdefs.IsInvalidArgument, "no containers"},
		"same name":        {func(_ string, m *criu.Manifest) { m.Containers[1].Name = "a" }, errdefs.IsInvalidArgument, "must be unique"},
		"another place":    {func(_ string, m *criu.Manifest) { m.Containers[1].Archive = "../pod/a.tar" }, errdefs.IsInvalidArgument, "beside the manifest"},
		"its parent":       {func(_ string, m *criu.Manifest) { m.Containers[1].Archive = ".." }, errdefs.IsInvalidArgument, "beside the manifest"},
		"size":             {func(_ string, m *criu.Manifest) { m.Containers[1].Bytes++ }, errdefs.IsInvalidArgument, "is not that of this checkpoint"},
		"missing":          {func(_ string, m *criu.Manifest) { m.Containers[1].Archive = "c.tar" }, errdefs.IsNotFound, "c.tar"},
		"the handler":      {func(_ string, m *criu.Manifest) { m.RuntimeHandler = "kata" }, errdefs.IsFailedPrecondition, `must be that of the checkpoint, "kata"`},
		"others can write": {func(dir string, _ *criu.Manifest) { e.must(os.Chmod(dir, 0o777)) }, errdefs.IsFailedPrecondition, "chmod go-w"},
		"a link": {func(dir string, _ *criu.Manifest) {
			e.must(os.Rename(filepath.Join(dir, "a.tar"), filepath.Join(e.archives, "a.tar")))
			e.must(os.Symlink("../a.tar", filepath.Join(dir, "a.tar")))
		}, errdefs.IsInvalidArgument, "links are not followed"},
	} {
		dir := e.write(both())
		size := fileSize(e, filepath.Join(dir, "a.tar"))
		m := criu.Manifest{Version: 1, Containers: []criu.ManifestContainer{{Name: "a", Archive: "a.tar", Bytes: size}, {Name: "b", Archive: "b.tar", Bytes: size}}}
		c.change(dir, &m)
		e.manifest(dir, m)
		if _, err := e.restore(t.Context(), request(dir)); !c.is(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	dir := e.write(both())
	e.must(os.WriteFile(filepath.Join(dir, criu.ManifestFile), []byte(`{"version":1`), 0o600))
	if _, err := e.restore(t.Context(), request(dir)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("truncated: %v", err)
	}
	if n := e.engine.Calls("POST /containers/create"); n > 0 {
		t.Errorf("%d containers were created", n)
	}
}

func fileSize(e *env, path string) int64 {
	e.Helper()
	info, err := os.Stat(path)
	e.must(err)
	return info.Size()
}

// A restore is undone whichever call of the Engine fails.
func TestFailedRestoreLeavesNothing(t *testing.T) {
	e := newEnv(t)
	dir := e.write(both())
	for nth := 1; ; nth++ {
		e.engine.ResetCalls()
		e.engine.FailOnce("", http.StatusInternalServerError, nth)
		made, err := e.restore(t.Context(), request(dir))
		failed := e.engine.Calls() >= nth
		e.engine.ClearFaults("")
		if err != nil {
			e.requireClean(fmt.Sprintf("a failure of call %d: %v", nth, err))
			if t.Failed() {
				return
			}
			continue
		}
		e.must(e.sandboxes.Remove(t.Context(), made.GetPodSandboxId()))
		e.requireClean("RemovePodSandbox")
		if !failed {
			if nth < 5 {
				t.Errorf("only %d calls", nth)
			}
			return
		}
	}
}

func TestRestoreThatCannotBeIsUndone(t *testing.T) {
	for name, c := range map[string]struct {
		files  func(map[string]map[string]string)
		change func(e *env, r *runtimeapi.RestorePodRequest)
		is     func(error) bool
		want   string
	}{
		"no CRIU": {nil, func(e *env, _ *runtimeapi.RestorePodRequest) {
			e.probe = fmt.Errorf("install the package criu: %w", errdefs.ErrFailedPrecondition)
		}, errdefs.IsFailedPrecondition, `container "b": install the package criu`},
		"a broken archive": {func(f map[string]map[string]string) { f["a"]["checkpoint/descriptors.json"] = "x" }, nil, errdefs.IsInvalidArgument, `container "a": checkpoint`},
		"an invalid setting": {nil, func(_ *env, r *runtimeapi.RestorePodRequest) {
			r.ContainerConfigs[1].Mounts = []*runtimeapi.Mount{{HostPath: "relative", ContainerPath: "/data"}}
		}, errdefs.IsInvalidArgument, `container "a": `},
	} {
		e := newEnv(t)
		written := both()
		if c.files != nil {
			c.files(written)
		}
		r := request(e.write(written))
		if c.change != nil {
			c.change(e, r)
		}
		if _, err := e.restore(t.Context(), r); !c.is(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if e.engine.Calls("POST /containers/create") == 0 {
			t.Errorf("%s: nothing was begun", name)
		}
		e.requireClean(name)
	}
}

// A pod that was made after the deadline is not kept for a retry, and neither is a part of it.
func TestRestoreIsUndoneWhenTheDeadlinePasses(t *testing.T) {
	for _, route := range []string{"POST /containers/create", "POST /containers/{id}/start", "GET /containers/{id}/json"} {
		for _, cause := range []error{context.DeadlineExceeded, context.Canceled} {
			e := newEnv(t)
			dir := e.write(both())
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if errors.Is(cause, context.DeadlineExceeded) {
				cancel()
				ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
				e.engine.On(route, func() { time.Sleep(120 * time.Millisecond) })
			} else {
				e.engine.On(route, cancel)
			}
			_, err := e.Restore(ctx, request(dir))
			cancel()
			if !errors.Is(err, cause) {
				t.Errorf("%s: %v, want %v", route, err, cause)
			}
			e.requireClean(fmt.Sprintf("%v in %s", cause, route))
		}
	}
}

// crashingContainers stands for those of a berthd that is killed when it has created the last container.
type crashingContainers struct {
	*container.Service
	left    int
	crashed func()
}

func (c *crashingContainers) Create(ctx context.Context, id string, config *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) (string, error) {
	made, err := c.Service.Create(ctx, id, config, pod)
	if c.left--; c.left == 0 {
		c.crashed()
		return "", io.ErrUnexpectedEOF
	}
	return made, err
}

func TestNextDaemonRemovesAnInterruptedRestore(t *testing.T) {
	for _, created := range []int{1, 2} {
		e := newEnv(t)
		dir := e.write(both())
		cfg := e.config
		cfg.Containers = &crashingContainers{e.containers, created, func() {
			policy, err := podpolicy.New(podpolicy.Options{})
			e.must(err)
			if n := len(e.engine.Leftovers()); n != created+1 {
				t.Errorf("%d containers", n)
			}
			enginetest.Background(t, e.newSandboxes(nil, policy).RunGC) // that of the next berthd
			enginetest.Until(t, "the pod stays", func() bool {
				return !slices.ContainsFunc(e.leftovers(), func(what string) bool { return !strings.Contains(what, "/oci/") })
			})
		}}
		if _, err := podcheckpoint.New(cfg).Restore(withDeadline(t), request(dir)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
	}
}

func withDeadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}
