package server_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine/enginetest"
)

const (
	// hangTimeout is the timeout of short Engine calls in these tests.
	hangTimeout = 300 * time.Millisecond
	// callTimeout bounds a CRI call while Docker does not respond: a few times hangTimeout,
	// and the wait for the end of an exec.
	callTimeout = 20 * time.Second
)

// A subject holds the objects that calls are made for.
type subject struct {
	pod                *runtimeapi.PodSandboxConfig
	sandbox            string
	running, unstarted string
	image              *runtimeapi.ImageSpec
}

var subjects atomic.Int64

// subject creates objects that no call has used yet. It needs an Engine that responds,
// so tests call it before hurry.
func (h *testDaemon) subject() (s subject) {
	h.Helper()
	n := subjects.Add(1)
	s = subject{pod: h.pod(fmt.Sprintf("hang%d", n)), image: &runtimeapi.ImageSpec{Image: fmt.Sprintf("registry.test/hang:%d", n)}}
	h.engine.Registry(s.image.GetImage(), enginetest.Remote{})
	var err error
	s.sandbox, s.running, err = h.runPod(s.pod, command("c", "sleep", "1000"))
	h.must(err)
	made, err := h.runtime.CreateContainer(h.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: s.sandbox, Config: command("d", "sleep", "1000"), SandboxConfig: s.pod})
	h.must(err)
	s.unstarted = made.GetContainerId()
	return s
}

// hurry restarts the daemon with hangTimeout. On a busy machine a healthy Engine may
// exceed it as well, so tests create their objects before.
func (h *testDaemon) hurry() {
	h.Helper()
	h.stop()
	h.timeout = hangTimeout
	h.start()
}

// requests holds a request for each method that may depend on Docker.
var requests = map[string]func(h *testDaemon, s subject) any{
	"RunPodSandbox": func(h *testDaemon, s subject) any {
		return &runtimeapi.RunPodSandboxRequest{Config: h.pod(s.pod.GetMetadata().GetName() + "-more")}
	},
	"StopPodSandbox": func(_ *testDaemon, s subject) any { return &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.sandbox} },
	"RemovePodSandbox": func(_ *testDaemon, s subject) any {
		return &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.sandbox}
	},
	"PodSandboxStatus": func(_ *testDaemon, s subject) any {
		return &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.sandbox, Verbose: true}
	},
	"ListPodSandbox": func(*testDaemon, subject) any { return &runtimeapi.ListPodSandboxRequest{} },
	"CreateContainer": func(_ *testDaemon, s subject) any {
		return &runtimeapi.CreateContainerRequest{PodSandboxId: s.sandbox, Config: command("e", "sleep", "1000"), SandboxConfig: s.pod}
	},
	"StartContainer": func(_ *testDaemon, s subject) any { return &runtimeapi.StartContainerRequest{ContainerId: s.unstarted} },
	"StopContainer": func(_ *testDaemon, s subject) any {
		return &runtimeapi.StopContainerRequest{ContainerId: s.running, Timeout: 1}
	},
	"RemoveContainer": func(_ *testDaemon, s subject) any { return &runtimeapi.RemoveContainerRequest{ContainerId: s.running} },
	"ContainerStatus": func(_ *testDaemon, s subject) any {
		return &runtimeapi.ContainerStatusRequest{ContainerId: s.running, Verbose: true}
	},
	"ListContainers": func(*testDaemon, subject) any { return &runtimeapi.ListContainersRequest{} },
	"UpdateContainerResources": func(_ *testDaemon, s subject) any {
		return &runtimeapi.UpdateContainerResourcesRequest{ContainerId: s.unstarted, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 100}}
	},
	"UpdatePodSandboxResources": func(_ *testDaemon, s subject) any {
		return &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: s.sandbox}
	},
	"CheckpointContainer": func(h *testDaemon, s subject) any {
		return &runtimeapi.CheckpointContainerRequest{ContainerId: s.running, Location: filepath.Join(h.TempDir(), "checkpoint.tar")}
	},
	"CheckpointPod": func(h *testDaemon, s subject) any {
		return &runtimeapi.CheckpointPodRequest{PodSandboxId: s.sandbox, ContainerIds: []string{s.running}, OutputPath: h.TempDir()}
	},
	"RestorePod": func(h *testDaemon, s subject) any {
		return &runtimeapi.RestorePodRequest{CheckpointPath: h.podCheckpoint(), Config: h.pod(s.pod.GetMetadata().GetName() + "-restored"), ContainerConfigs: []*runtimeapi.ContainerConfig{command("c", "sleep", "1000")}}
	},
	"ReopenContainerLog": func(_ *testDaemon, s subject) any {
		return &runtimeapi.ReopenContainerLogRequest{ContainerId: s.running}
	},
	"ExecSync": func(_ *testDaemon, s subject) any {
		return &runtimeapi.ExecSyncRequest{ContainerId: s.running, Cmd: []string{"true"}, Timeout: 15}
	},
	"Exec": func(_ *testDaemon, s subject) any {
		return &runtimeapi.ExecRequest{ContainerId: s.running, Cmd: []string{"true"}, Stdout: true}
	},
	"Attach": func(_ *testDaemon, s subject) any {
		return &runtimeapi.AttachRequest{ContainerId: s.running, Stdout: true}
	},
	"PortForward":         func(_ *testDaemon, s subject) any { return &runtimeapi.PortForwardRequest{PodSandboxId: s.sandbox} },
	"ContainerStats":      func(_ *testDaemon, s subject) any { return &runtimeapi.ContainerStatsRequest{ContainerId: s.running} },
	"ListContainerStats":  func(*testDaemon, subject) any { return &runtimeapi.ListContainerStatsRequest{} },
	"PodSandboxStats":     func(_ *testDaemon, s subject) any { return &runtimeapi.PodSandboxStatsRequest{PodSandboxId: s.sandbox} },
	"ListPodSandboxStats": func(*testDaemon, subject) any { return &runtimeapi.ListPodSandboxStatsRequest{} },
	"ListPodSandboxMetrics": func(*testDaemon, subject) any {
		return &runtimeapi.ListPodSandboxMetricsRequest{}
	},
	"PullImage":  func(_ *testDaemon, s subject) any { return &runtimeapi.PullImageRequest{Image: s.image} },
	"ListImages": func(*testDaemon, subject) any { return &runtimeapi.ListImagesRequest{} },
	"ImageStatus": func(*testDaemon, subject) any {
		return &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: busybox}, Verbose: true}
	},
	"RemoveImage": func(_ *testDaemon, s subject) any { return &runtimeapi.RemoveImageRequest{Image: s.image} },
	"ImageFsInfo": func(*testDaemon, subject) any { return &runtimeapi.ImageFsInfoRequest{} },
}

// withRuntime are the calls that need the OCI runtime of a container, too.
var withRuntime = []string{"CheckpointContainer", "CheckpointPod", "RestorePod"}

// podCheckpoint writes a checkpoint of a pod, and returns its directory.
func (h *testDaemon) podCheckpoint() string {
	h.Helper()
	dir := filepath.Join(h.dir, "archives", "pod")
	h.must(os.MkdirAll(dir, 0o700))
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range map[string]string{"config.dump": `{"rootfsImage":"` + busybox + `"}`, "spec.dump": `{"process":{"args":["sleep","1000"]}}`} {
		h.must(w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(text))}))
		_, err := w.Write([]byte(text))
		h.must(err)
	}
	h.must(w.Close())
	h.must(os.WriteFile(filepath.Join(dir, "c.tar"), b.Bytes(), 0o600))
	h.must(os.WriteFile(filepath.Join(dir, "pod.json"), fmt.Appendf(nil, `{"version":1,"containers":[{"name":"c","archive":"c.tar","bytes":%d}]}`, b.Len()), 0o600))
	return dir
}

// alone are the calls for which Docker need not be there once it has been.
var alone = map[string]func(h *testDaemon, s subject) any{
	"Version":               func(*testDaemon, subject) any { return &runtimeapi.VersionRequest{} },
	"Status":                func(*testDaemon, subject) any { return &runtimeapi.StatusRequest{Verbose: true} },
	"RuntimeConfig":         func(*testDaemon, subject) any { return &runtimeapi.RuntimeConfigRequest{} },
	"UpdateRuntimeConfig":   func(*testDaemon, subject) any { return &runtimeapi.UpdateRuntimeConfigRequest{} },
	"ListMetricDescriptors": func(*testDaemon, subject) any { return &runtimeapi.ListMetricDescriptorsRequest{} },
}

// call makes a CRI call.
func (h *testDaemon) call(name string, request any) (code codes.Code, took time.Duration, err error) {
	h.Helper()
	return h.callWithin(2*callTimeout, name, request)
}

// mayOutlastCaller reports whether a call continues after its caller's deadline: a container
// that is created slowly is kept for the retry.
func mayOutlastCaller(name string, routes []string) bool {
	return name == "CreateContainer" && slices.Contains(routes, "POST /containers/create")
}

// callWithin makes a call that has a deadline.
func (h *testDaemon) callWithin(timeout time.Duration, name string, request any) (code codes.Code, took time.Duration, err error) {
	h.Helper()
	method := reflect.ValueOf(h.runtime).MethodByName(name)
	if !method.IsValid() {
		method = reflect.ValueOf(h.images).MethodByName(name)
	}
	ctx, cancel := context.WithTimeout(h.Context(), timeout)
	defer cancel()
	begin := time.Now()
	out := method.Call([]reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(request)})
	err, _ = out[1].Interface().(error)
	return status.Code(err), time.Since(begin), err
}

// While Docker does not respond to one call, or to any, CRI calls return Unavailable
// within a timeout of berth's own. The kubelet treats DeadlineExceeded as a failed probe,
// and Internal and Unknown as permanent errors.
func TestHungDockerIsUnavailable(t *testing.T) {
	t.Parallel()
	for _, name := range slices.Sorted(maps.Keys(requests)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newDaemon(t)
			if name == "ContainerStats" || name == "PodSandboxStats" { // which need a cgroup
				h.engine.PID = enginetest.InCgroups(t)
			}
			fresh := func() any {
				s := h.subject()
				if name == "RemoveImage" { // has to be there
					_, err := h.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: s.image})
					h.must(err)
				}
				return requests[name](h, s)
			}
			request := fresh()
			h.engine.ResetCalls()
			usual, _, err := h.call(name, request)
			if err != nil && !slices.Contains(withRuntime, name) { // the fake Engine's processes have no OCI runtime
				t.Fatalf("it fails while Docker answers: %v", err)
			}
			needed := slices.DeleteFunc(h.engine.Called(), func(route string) bool {
				return strings.HasSuffix(route, "/_ping") || route == "GET /info" || route == "GET /events"
			})
			requests := make([]any, len(needed)+1)
			for i := range requests {
				requests[i] = fresh()
			}
			h.hurry()
			check := func(what string, request any, routes ...string) {
				for _, route := range routes {
					defer h.engine.Hang(route)()
				}
				timeout := 2 * callTimeout
				if mayOutlastCaller(name, routes) {
					timeout = 2 * time.Second
				}
				code, took, err := h.callWithin(timeout, name, request)
				switch {
				case code == codes.OK && took < callTimeout, code == codes.Unavailable && took < callTimeout:
				case code == usual && took < callTimeout && len(routes) == 1: // this time it did not need the call: images may be in memory
				case code == codes.DeadlineExceeded && mayOutlastCaller(name, routes):
				case name == "PullImage" && strings.Contains(err.Error(), "RegistryUnavailable"): // for all that is known
				default:
					t.Errorf("%s: %v after %v, want Unavailable", what, err, took)
				}
			}
			for i, route := range needed {
				check(route+" hangs", requests[i], route)
			}
			check("all but pings hang", requests[len(needed)], slices.DeleteFunc(h.engine.Routes(), func(route string) bool {
				return strings.HasSuffix(route, "/_ping")
			})...)
		})
	}
}

// Once Docker is known to hang, every CRI call fails at once with Unavailable.
func TestEveryCallIsUnavailableWhileDockerHangs(t *testing.T) {
	t.Parallel()
	h := newDaemon(t)
	s := h.subject()
	h.hurry()
	h.call("ListImages", &runtimeapi.ListImagesRequest{})
	defer h.engine.Hang("")()
	h.until("not noticed", func() bool {
		code, _, _ := h.call("ListContainers", &runtimeapi.ListContainersRequest{})
		return code == codes.Unavailable
	})
	for name, request := range requests {
		if code, took, err := h.call(name, request(h, s)); code != codes.Unavailable && code != codes.OK || took > 10*time.Second {
			t.Errorf("%s: %v after %v, want Unavailable", name, err, took)
		}
	}
	for name, request := range alone {
		if code, took, err := h.call(name, request(h, s)); code != codes.OK || took > 3*time.Second {
			t.Errorf("%s: %v after %v", name, err, took)
		}
	}
	seen, err := h.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	h.must(err)
	if c := seen.GetStatus().GetConditions()[0]; c.GetStatus() || c.GetReason() != "DockerDaemonNotReady" || !strings.Contains(c.GetMessage(), "ping") {
		t.Errorf("status %v", c)
	}
	// Not one call has been forgotten.
	for _, service := range []any{h.runtime, h.images} {
		for i := range reflect.TypeOf(service).NumMethod() {
			method := reflect.TypeOf(service).Method(i)
			_, ok := requests[method.Name]
			_, sole := alone[method.Name]
			if stream := method.Type.Out(0).Kind() == reflect.Interface; !ok && !sole && !stream && !slices.Contains(unimplemented, method.Name) {
				t.Errorf("%s is not tested", method.Name)
			}
		}
	}
}

// Only a command that exceeds its timeout is DeadlineExceeded, which fails a probe.
func TestExecSyncDistinguishesCommandTimeoutFromHungDocker(t *testing.T) {
	t.Parallel()
	h := newDaemon(t)
	s := h.subject()
	probe := func(ctx context.Context, timeout int64, cmd ...string) codes.Code {
		_, err := h.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: s.running, Cmd: cmd, Timeout: timeout})
		return status.Code(err)
	}
	if code := probe(t.Context(), 1, "sleep", "1000"); code != codes.DeadlineExceeded {
		t.Errorf("a command that runs too long: %v", code)
	}
	release := h.engine.Hang("POST /containers/{id}/exec")
	if code := probe(t.Context(), 1, "true"); code != codes.Unavailable {
		t.Errorf("an exec that Docker does not make: %v", code)
	}
	release()
	// Docker uses up the kubelet's deadline.
	defer h.engine.Hang("GET /exec/{id}/json")()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	if code := probe(ctx, 1, "true"); code == codes.OK {
		t.Errorf("an exec that Docker does not report as ended: %v", code)
	}
}

// While Docker has no connection to containerd, calls return Unavailable and a container
// that could not be started is not recorded as failed. Status reports the reason.
func TestLostContainerdIsUnavailable(t *testing.T) {
	t.Parallel()
	h := newDaemon(t)
	s := h.subject()
	find := h.engine.LoseContainerd()
	for _, name := range []string{"ExecSync", "StartContainer", "RunPodSandbox", "RemoveContainer"} {
		if code, _, err := h.call(name, requests[name](h, s)); code != codes.Unavailable {
			t.Errorf("%s: %v, want Unavailable", name, err)
		}
	}
	if state := h.containerState(s.unstarted); state != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("state %v", state)
	}
	seen, err := h.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	h.must(err)
	if c := seen.GetStatus().GetConditions()[0]; c.GetStatus() || !strings.Contains(c.GetMessage(), "containerd.sock") {
		t.Errorf("status %v", c)
	}
	// What is known of it afterwards is the same.
	h.stop()
	h.start()
	if state := h.containerState(s.unstarted); state != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("state %v after a restart", state)
	}
	find()
	h.until("not ready", h.ready)
	if _, _, err := h.call("StartContainer", requests["StartContainer"](h, s)); err != nil {
		t.Errorf("started again: %v", err)
	}
	if state := h.containerState(s.unstarted); state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("state %v", state)
	}
	h.removeAllPods()
	h.nothingLeft()
}
