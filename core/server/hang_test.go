package server_test

import (
	"context"
	"fmt"
	"maps"
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
	// hangTimeout is the timeout of short calls of an Engine that hangs.
	hangTimeout = 300 * time.Millisecond
	// hangPatience is how long a call may take where Docker does not answer: a few such
	// timeouts, and the time that an exec is given to be seen to have ended.
	hangPatience = 20 * time.Second
)

// A subject is what calls are about.
type subject struct {
	pod                *runtimeapi.PodSandboxConfig
	sandbox            string
	running, unstarted string
	image              *runtimeapi.ImageSpec
}

var subjects atomic.Int64

// subject returns one that no call has been about yet. Docker must answer within
// Config.Timeout, so tests call it before hurry.
func (h *house) subject() (s subject) {
	h.Helper()
	n := subjects.Add(1)
	s = subject{pod: h.pod(fmt.Sprintf("hang%d", n)), image: &runtimeapi.ImageSpec{Image: fmt.Sprintf("registry.test/hang:%d", n)}}
	h.engine.Registry(s.image.GetImage(), enginetest.Remote{})
	var err error
	s.sandbox, s.running, err = h.begin(s.pod, command("c", "sleep", "1000"))
	h.must(err)
	made, err := h.runtime.CreateContainer(h.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: s.sandbox, Config: command("d", "sleep", "1000"), SandboxConfig: s.pod})
	h.must(err)
	s.unstarted = made.GetContainerId()
	return s
}

// hurry restarts the daemon with hangTimeout. On a busy machine an Engine that does not
// hang may run out of hangTimeout too, so what a test needs is made before.
func (h *house) hurry() {
	h.Helper()
	h.leave()
	h.timeout = hangTimeout
	h.enter()
}

// asked is a request of each call that depends on Docker at all, or might.
var asked = map[string]func(h *house, s subject) any{
	"RunPodSandbox": func(h *house, s subject) any {
		return &runtimeapi.RunPodSandboxRequest{Config: h.pod(s.pod.GetMetadata().GetName() + "-more")}
	},
	"StopPodSandbox":   func(_ *house, s subject) any { return &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.sandbox} },
	"RemovePodSandbox": func(_ *house, s subject) any { return &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.sandbox} },
	"PodSandboxStatus": func(_ *house, s subject) any {
		return &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.sandbox, Verbose: true}
	},
	"ListPodSandbox": func(*house, subject) any { return &runtimeapi.ListPodSandboxRequest{} },
	"CreateContainer": func(_ *house, s subject) any {
		return &runtimeapi.CreateContainerRequest{PodSandboxId: s.sandbox, Config: command("e", "sleep", "1000"), SandboxConfig: s.pod}
	},
	"StartContainer": func(_ *house, s subject) any { return &runtimeapi.StartContainerRequest{ContainerId: s.unstarted} },
	"StopContainer": func(_ *house, s subject) any {
		return &runtimeapi.StopContainerRequest{ContainerId: s.running, Timeout: 1}
	},
	"RemoveContainer": func(_ *house, s subject) any { return &runtimeapi.RemoveContainerRequest{ContainerId: s.running} },
	"ContainerStatus": func(_ *house, s subject) any {
		return &runtimeapi.ContainerStatusRequest{ContainerId: s.running, Verbose: true}
	},
	"ListContainers": func(*house, subject) any { return &runtimeapi.ListContainersRequest{} },
	"UpdateContainerResources": func(_ *house, s subject) any {
		return &runtimeapi.UpdateContainerResourcesRequest{ContainerId: s.unstarted, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 100}}
	},
	"UpdatePodSandboxResources": func(_ *house, s subject) any {
		return &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: s.sandbox}
	},
	"ReopenContainerLog": func(_ *house, s subject) any { return &runtimeapi.ReopenContainerLogRequest{ContainerId: s.running} },
	"ExecSync": func(_ *house, s subject) any {
		return &runtimeapi.ExecSyncRequest{ContainerId: s.running, Cmd: []string{"true"}, Timeout: 15}
	},
	"Exec": func(_ *house, s subject) any {
		return &runtimeapi.ExecRequest{ContainerId: s.running, Cmd: []string{"true"}, Stdout: true}
	},
	"Attach":              func(_ *house, s subject) any { return &runtimeapi.AttachRequest{ContainerId: s.running, Stdout: true} },
	"PortForward":         func(_ *house, s subject) any { return &runtimeapi.PortForwardRequest{PodSandboxId: s.sandbox} },
	"ContainerStats":      func(_ *house, s subject) any { return &runtimeapi.ContainerStatsRequest{ContainerId: s.running} },
	"ListContainerStats":  func(*house, subject) any { return &runtimeapi.ListContainerStatsRequest{} },
	"PodSandboxStats":     func(_ *house, s subject) any { return &runtimeapi.PodSandboxStatsRequest{PodSandboxId: s.sandbox} },
	"ListPodSandboxStats": func(*house, subject) any { return &runtimeapi.ListPodSandboxStatsRequest{} },
	"ListPodSandboxMetrics": func(*house, subject) any {
		return &runtimeapi.ListPodSandboxMetricsRequest{}
	},
	"PullImage":  func(_ *house, s subject) any { return &runtimeapi.PullImageRequest{Image: s.image} },
	"ListImages": func(*house, subject) any { return &runtimeapi.ListImagesRequest{} },
	"ImageStatus": func(*house, subject) any {
		return &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: busybox}, Verbose: true}
	},
	"RemoveImage": func(_ *house, s subject) any { return &runtimeapi.RemoveImageRequest{Image: s.image} },
	"ImageFsInfo": func(*house, subject) any { return &runtimeapi.ImageFsInfoRequest{} },
}

// alone are the calls for which Docker need not be there once it has been.
var alone = map[string]func(h *house, s subject) any{
	"Version":               func(*house, subject) any { return &runtimeapi.VersionRequest{} },
	"Status":                func(*house, subject) any { return &runtimeapi.StatusRequest{Verbose: true} },
	"RuntimeConfig":         func(*house, subject) any { return &runtimeapi.RuntimeConfigRequest{} },
	"UpdateRuntimeConfig":   func(*house, subject) any { return &runtimeapi.UpdateRuntimeConfigRequest{} },
	"ListMetricDescriptors": func(*house, subject) any { return &runtimeapi.ListMetricDescriptorsRequest{} },
}

// ask makes a call.
func (h *house) ask(name string, request any) (code codes.Code, took time.Duration, err error) {
	h.Helper()
	return h.askWithin(2*hangPatience, name, request)
}

// outlasts reports whether a call is to go on for longer than its caller waits: the
// container of a slow disk is there when it is asked for again.
func outlasts(name string, routes []string) bool {
	return name == "CreateContainer" && slices.Contains(routes, "POST /containers/create")
}

// askWithin makes a call that has a deadline.
func (h *house) askWithin(patience time.Duration, name string, request any) (code codes.Code, took time.Duration, err error) {
	h.Helper()
	method := reflect.ValueOf(h.runtime).MethodByName(name)
	if !method.IsValid() {
		method = reflect.ValueOf(h.images).MethodByName(name)
	}
	ctx, cancel := context.WithTimeout(h.Context(), patience)
	defer cancel()
	begin := time.Now()
	out := method.Call([]reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(request)})
	err, _ = out[1].Interface().(error)
	return status.Code(err), time.Since(begin), err
}

// Where one call of Docker, or each, is not answered, calls of the CRI are answered
// Unavailable within a time of their own. The kubelet takes DeadlineExceeded for a
// probe that has failed, and Internal and Unknown for what is broken for good.
func TestHungDockerIsUnavailable(t *testing.T) {
	t.Parallel()
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := furnish(t)
			if name == "ContainerStats" || name == "PodSandboxStats" { // there are none without a cgroup
				h.engine.PID = enginetest.InCgroups(t)
			}
			fresh := func() any {
				s := h.subject()
				if name == "RemoveImage" { // has to be there
					_, err := h.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: s.image})
					h.must(err)
				}
				return asked[name](h, s)
			}
			request := fresh()
			h.engine.ResetCalls()
			if _, _, err := h.ask(name, request); err != nil {
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
				patience := 2 * hangPatience
				if outlasts(name, routes) {
					patience = 2 * time.Second
				}
				code, took, err := h.askWithin(patience, name, request)
				switch {
				case code == codes.OK && took < hangPatience, code == codes.Unavailable && took < hangPatience:
				case code == codes.DeadlineExceeded && outlasts(name, routes):
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

// An Engine that hangs altogether is away, and so is every call, at once.
func TestHungDockerIsAwayForEveryCall(t *testing.T) {
	t.Parallel()
	h := furnish(t)
	s := h.subject()
	h.hurry()
	h.ask("ListImages", &runtimeapi.ListImagesRequest{})
	defer h.engine.Hang("")()
	h.until("not noticed", func() bool {
		code, _, _ := h.ask("ListContainers", &runtimeapi.ListContainersRequest{})
		return code == codes.Unavailable
	})
	for name, request := range asked {
		if code, took, err := h.ask(name, request(h, s)); code != codes.Unavailable && code != codes.OK || took > 10*time.Second {
			t.Errorf("%s: %v after %v, want Unavailable", name, err, took)
		}
	}
	for name, request := range alone {
		if code, took, err := h.ask(name, request(h, s)); code != codes.OK || took > 3*time.Second {
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
			_, ok := asked[method.Name]
			_, sole := alone[method.Name]
			if stream := method.Type.Out(0).Kind() == reflect.Interface; !ok && !sole && !stream && !slices.Contains(unimplemented, method.Name) {
				t.Errorf("%s is not asked", method.Name)
			}
		}
	}
}

// A command that runs too long, and no Docker that does not answer, is a failed probe.
func TestExecSyncTellsACommandFromDocker(t *testing.T) {
	t.Parallel()
	h := furnish(t)
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
		t.Errorf("an exec whose end Docker does not tell: %v", code)
	}
}

// Where Docker has lost its containerd what it could not pass on is tried again, and
// not taken for a container that cannot run. Status says why.
func TestLostContainerdIsUnavailable(t *testing.T) {
	t.Parallel()
	h := furnish(t)
	s := h.subject()
	find := h.engine.LoseContainerd()
	for _, name := range []string{"ExecSync", "StartContainer", "RunPodSandbox", "RemoveContainer"} {
		if code, _, err := h.ask(name, asked[name](h, s)); code != codes.Unavailable {
			t.Errorf("%s: %v, want Unavailable", name, err)
		}
	}
	if state := h.state(s.unstarted); state != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("state %v", state)
	}
	seen, err := h.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	h.must(err)
	if c := seen.GetStatus().GetConditions()[0]; c.GetStatus() || !strings.Contains(c.GetMessage(), "containerd.sock") {
		t.Errorf("status %v", c)
	}
	// What is known of it afterwards is the same.
	h.leave()
	h.enter()
	if state := h.state(s.unstarted); state != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("state %v after a restart", state)
	}
	find()
	h.until("not ready", h.ready)
	if _, _, err := h.ask("StartContainer", asked["StartContainer"](h, s)); err != nil {
		t.Errorf("started again: %v", err)
	}
	if state := h.state(s.unstarted); state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("state %v", state)
	}
	h.endAll()
	h.clean()
}
