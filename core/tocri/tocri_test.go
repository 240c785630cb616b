package tocri

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/labels"
)

func TestContainerState(t *testing.T) {
	const finished, started = "2026-11-23T07:00:00.5Z", "2026-11-23T06:00:00Z"
	const (
		created = runtimeapi.ContainerState_CONTAINER_CREATED
		running = runtimeapi.ContainerState_CONTAINER_RUNNING
		exited  = runtimeapi.ContainerState_CONTAINER_EXITED
	)
	for name, tt := range map[string]struct {
		docker container.State
		state  runtimeapi.ContainerState
		reason string
	}{
		"not started":                    {container.State{StartedAt: unsetTimestamp, FinishedAt: unsetTimestamp}, created, ""},
		"start failed":                   {container.State{StartedAt: unsetTimestamp, FinishedAt: unsetTimestamp, ExitCode: 127}, exited, "StartError"},
		"start failed, no exit code":     {container.State{StartedAt: unsetTimestamp, FinishedAt: unsetTimestamp, Error: "x"}, exited, "StartError"},
		"start did not reach containerd": {container.State{StartedAt: unsetTimestamp, FinishedAt: unsetTimestamp, ExitCode: 128, Error: "transport is closing: unavailable"}, created, ""},
		"running":                        {container.State{Running: true, StartedAt: started}, running, ""},
		"paused":                         {container.State{Running: true, Paused: true, StartedAt: started}, running, ""},
		"succeeded":                      {container.State{StartedAt: started, FinishedAt: finished}, exited, "Completed"},
		"failed":                         {container.State{StartedAt: started, FinishedAt: finished, ExitCode: 3}, exited, "Error"},
		"OOM-killed":                     {container.State{StartedAt: started, FinishedAt: finished, ExitCode: 137, OOMKilled: true}, exited, "OOMKilled"},
		"a child OOM-killed":             {container.State{StartedAt: started, FinishedAt: finished, OOMKilled: true}, exited, "Completed"},
		"killed":                         {container.State{StartedAt: started, FinishedAt: finished, ExitCode: 137}, exited, "Error"},
	} {
		t.Run(name, func(t *testing.T) {
			if state, reason := containerState(&tt.docker); state != tt.state || reason != tt.reason {
				t.Errorf("got %v %q, want %v %q", state, reason, tt.state, tt.reason)
			}
		})
	}
}

func inspected(state container.State, set labels.Set, name string) container.InspectResponse {
	return container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{
			ID: "c1", Name: name, Image: "sha256:1", Created: "2026-11-23T05:00:00.123456789Z", State: &state,
			HostConfig: &container.HostConfig{Resources: container.Resources{CPUShares: 2}, Init: new(bool), Runtime: set.Handler},
		},
		Config: &container.Config{Image: "sha256:1", Labels: set.Encode()},
	}
}

// containerOf reads the labels of c and translates it.
func containerOf(c container.InspectResponse, failed FailedStart) (*runtimeapi.Container, *runtimeapi.ContainerStatus, error) {
	set, err := labels.Read(c)
	if err != nil {
		return nil, nil, err
	}
	return Container(c, set, failed)
}

// sandboxOf is containerOf for a sandbox.
func sandboxOf(c container.InspectResponse, network Network) (*runtimeapi.PodSandbox, *runtimeapi.PodSandboxStatus, error) {
	set, err := labels.Read(c)
	if err != nil {
		return nil, nil, err
	}
	config, err := SandboxConfig(c, set)
	if err != nil {
		return nil, nil, err
	}
	return Sandbox(c, set, config, network)
}

func TestFailedStartFinishesWhenItFailed(t *testing.T) {
	c := inspected(container.State{StartedAt: unsetTimestamp, FinishedAt: unsetTimestamp, Error: "no"}, labels.Set{
		Kind: labels.Container, Config: `{"metadata":{"name":"c"}}`, Image: "busybox",
	}, "/k8s_c_p_n_u_0")
	at := time.Unix(1_800_000_000, 5)
	_, s, err := containerOf(c, FailedStart{At: at})
	if err != nil {
		t.Fatal(err)
	}
	if s.GetFinishedAt() != at.UnixNano() || s.GetExitCode() != 128 || s.GetStartedAt() != 0 || s.GetCreatedAt()%1e9 != 123456789 {
		t.Errorf("got %v", s)
	}
	if _, s, _ = containerOf(c, FailedStart{}); s.GetFinishedAt() != s.GetCreatedAt() {
		t.Errorf("without a record: finished %d, created %d", s.GetFinishedAt(), s.GetCreatedAt())
	}
	if s.GetImage().GetImage() != "busybox" || s.GetImageId() != "sha256:1" || s.GetImageRef() == "" {
		t.Errorf("image %v, %s, %s", s.GetImage(), s.GetImageId(), s.GetImageRef())
	}
}

func TestContainerOfCRIDockerd(t *testing.T) {
	c := inspected(container.State{Running: true, StartedAt: "2026-11-23T06:00:00Z"}, labels.Set{
		Kind: labels.Container, SandboxID: "s1", Labels: map[string]string{"a": "b"},
	}, "/k8s_nginx_web-0_default_u1_3")
	row, s, err := containerOf(c, FailedStart{})
	if err != nil {
		t.Fatal(err)
	}
	if row.GetMetadata().GetName() != "nginx" || row.GetMetadata().GetAttempt() != 3 || row.GetPodSandboxId() != "s1" || s.GetResources().GetLinux().GetCpuShares() != 2 {
		t.Errorf("row %v\nstatus %v", row, s)
	}
	c.Name = "/other"
	if _, _, err := containerOf(c, FailedStart{}); err == nil {
		t.Error("no error for a name that is not of cri-dockerd's form")
	}
}

func TestSandbox(t *testing.T) {
	set := labels.Set{Kind: labels.Sandbox, Handler: "runsc", Config: `{"metadata":{"name":"web","namespace":"d","uid":"u","attempt":2},"newer":1}`}
	running := container.State{Running: true, StartedAt: "2026-11-23T06:00:00Z"}
	addrs := []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}
	for name, tt := range map[string]struct {
		state   container.State
		network Network
		want    runtimeapi.PodSandboxState
		ip      string
	}{
		"running and attached": {running, Network{true, addrs}, runtimeapi.PodSandboxState_SANDBOX_READY, "10.0.0.2"},
		"not attached":         {running, Network{}, runtimeapi.PodSandboxState_SANDBOX_NOTREADY, ""},
		"exited":               {container.State{StartedAt: "2026-11-23T06:00:00Z"}, Network{true, addrs}, runtimeapi.PodSandboxState_SANDBOX_NOTREADY, ""},
		"paused":               {container.State{Running: true, Paused: true}, Network{true, addrs}, runtimeapi.PodSandboxState_SANDBOX_NOTREADY, ""},
		"the node's network":   {running, Network{Ready: true}, runtimeapi.PodSandboxState_SANDBOX_READY, ""},
	} {
		t.Run(name, func(t *testing.T) {
			row, s, err := sandboxOf(inspected(tt.state, set, "/k8s_POD_web_d_u_2"), tt.network)
			if err != nil {
				t.Fatal(err)
			}
			if row.GetState() != tt.want || s.GetState() != tt.want || s.GetNetwork().GetIp() != tt.ip || s.GetRuntimeHandler() != "runsc" ||
				s.GetMetadata().GetAttempt() != 2 || s.GetLinux().GetNamespaces().GetOptions() == nil {
				t.Errorf("row %v\nstatus %v", row, s)
			}
		})
	}
}

func TestImage(t *testing.T) {
	got := Image(ImageInfo{
		ID: "sha256:1", Tags: []string{"<none>:<none>", "a:1", "a@sha256:2"}, Digests: []string{"<none>@<none>", "a@sha256:2"}, User: "1000:1000",
	})
	want := []string{"a:1"}
	if diff := cmp.Diff(want, got.GetRepoTags()); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"a@sha256:2"}, got.GetRepoDigests()); diff != "" {
		t.Errorf("digests (-want +got):\n%s", diff)
	}
	if got.GetUid().GetValue() != 1000 || got.GetUsername() != "" || got.GetSize() != 1 {
		t.Errorf("got %v", got)
	}
	if got := Image(ImageInfo{User: "www:www"}); got.GetUsername() != "www" || got.GetUid() != nil {
		t.Errorf("got %v", got)
	}
}

// With runAsNonRoot the kubelet accepts each UID but 0, and Docker may truncate a larger number
// to 0; names are refused.
func TestImageUserOutOfRangeIsAName(t *testing.T) {
	for user, want := range map[string]*runtimeapi.Image{
		"0":                         {Uid: &runtimeapi.Int64Value{}},
		"-0":                        {Uid: &runtimeapi.Int64Value{}},
		"2147483647:9":              {Uid: &runtimeapi.Int64Value{Value: 2147483647}},
		"2147483648":                {Username: "2147483648"},
		"4294967296:1":              {Username: "4294967296"},
		"18446744073709551616":      {Username: "18446744073709551616"},
		"-1":                        {Username: "-1"},
		"-4294967296":               {Username: "-4294967296"},
		"-9223372036854775808:1000": {Username: "-9223372036854775808"},
		"1000 ":                     {Username: "1000 "},
		"":                          {},
		":1000":                     {},
	} {
		got := Image(ImageInfo{User: user})
		if got.GetUsername() != want.GetUsername() || !proto.Equal(got.GetUid(), want.GetUid()) {
			t.Errorf("%q: UID %v, username %q; want %v, %q", user, got.GetUid(), got.GetUsername(), want.GetUid(), want.GetUsername())
		}
	}
}

func TestStopSignal(t *testing.T) {
	for name, want := range map[string]runtimeapi.Signal{
		"": runtimeapi.Signal_SIGNAL_SIGTERM, "SIGQUIT": runtimeapi.Signal_SIGNAL_SIGQUIT, "int": runtimeapi.Signal_SIGNAL_SIGINT,
		"SIGRTMIN+3": runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3, "RTMIN+3": runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3,
		// By number, as in STOPSIGNAL 37.
		"37": runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3, "34": runtimeapi.Signal_SIGNAL_SIGRTMIN, "49": runtimeapi.Signal_SIGNAL_SIGRTMINPLUS15,
		"50": runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS14, "63": runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS1, "64": runtimeapi.Signal_SIGNAL_SIGRTMAX,
		"3": runtimeapi.Signal_SIGNAL_SIGQUIT, "6": runtimeapi.Signal_SIGNAL_SIGABRT, "9": runtimeapi.Signal_SIGNAL_SIGKILL,
		"10": runtimeapi.Signal_SIGNAL_SIGUSR1, "15": runtimeapi.Signal_SIGNAL_SIGTERM, "17": runtimeapi.Signal_SIGNAL_SIGCHLD,
		"28": runtimeapi.Signal_SIGNAL_SIGWINCH, "29": runtimeapi.Signal_SIGNAL_SIGIO, "31": runtimeapi.Signal_SIGNAL_SIGSYS, "015": runtimeapi.Signal_SIGNAL_SIGTERM,
		// Not a signal, or reserved for glibc.
		"0": runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, "32": runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, "33": runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT,
		"65": runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, "-1": runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, "SIG": runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT,
	} {
		if got := stopSignal(name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}

func TestEverySignalNumberHasAName(t *testing.T) {
	for n := 1; n <= 64; n++ {
		if n == 32 || n == 33 {
			continue
		}
		if got := stopSignal(strconv.Itoa(n)); got == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
			t.Errorf("%d: %v", n, got)
		}
	}
}

func TestContainerImage(t *testing.T) {
	c := inspected(container.State{Running: true, StartedAt: "2026-11-23T06:00:00Z"}, labels.Set{
		Kind: labels.Container, Image: "registry.test/web:1", ImageRef: "registry.test/web@sha256:2",
		Config: `{"metadata":{"name":"c"},"image":{"image":"sha256:1","annotations":{"a":"b"},"runtimeHandler":"runc"}}`,
	}, "/k8s_c_p_n_u_0")
	row, s, err := containerOf(c, FailedStart{})
	if err != nil {
		t.Fatal(err)
	}
	want := &runtimeapi.ImageSpec{
		Image: "registry.test/web:1", UserSpecifiedImage: "registry.test/web:1", Annotations: map[string]string{"a": "b"}, RuntimeHandler: "runc",
	}
	for _, got := range []*runtimeapi.ImageSpec{row.GetImage(), s.GetImage()} {
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	if row.GetImageRef() != "registry.test/web@sha256:2" || s.GetImageRef() != row.GetImageRef() || row.GetImageId() != "sha256:1" {
		t.Errorf("row %v\nstatus %v", row, s)
	}
}

// A mount of an NRI plugin can have the ID of the container in its path, which its label cannot have.
func TestMountNamedByTheContainer(t *testing.T) {
	set := labels.Set{Kind: labels.Container, Config: `{"metadata":{"name":"c"},"mounts":[{"containerPath":"/a","hostPath":"/srv/\u0000/a"}]}`}
	c := inspected(container.State{}, set, "/k8s_c_p_n_u_0")
	_, s, err := containerOf(c, FailedStart{})
	if err != nil || s.GetMounts()[0].GetHostPath() != "/srv/"+c.ID+"/a" {
		t.Errorf("%v, %v", s.GetMounts(), err)
	}
}

// berth records a start that fails after Docker has started the container.
func TestRecordedFailedStartIsAStartError(t *testing.T) {
	var failed FailedStart
	if err := json.Unmarshal([]byte(`{"At":"2026-11-23T06:00:01Z","Message":"set memory.limit_in_bytes to 100000: device or resource busy"}`), &failed); err != nil {
		t.Fatal(err)
	}
	set := labels.Set{Kind: labels.Container, Config: `{"metadata":{"name":"c"}}`, Image: "busybox"}
	c := inspected(container.State{StartedAt: "2026-11-23T06:00:00Z", FinishedAt: "2026-11-23T06:00:01Z", ExitCode: 137}, set, "/k8s_c_p_n_u_0")
	_, s, err := containerOf(c, failed)
	if err != nil {
		t.Fatal(err)
	}
	if s.GetReason() != "StartError" || s.GetMessage() != failed.Message || s.GetExitCode() != 128 {
		t.Errorf("%v", s)
	}
	c.State.Running = true
	if _, s, err := containerOf(c, failed); err != nil || s.GetReason() != "" || s.GetMessage() != "" {
		t.Errorf("while it runs: %v, %v", s, err)
	}
	// As recorded by berth 1.0.
	if err := json.Unmarshal([]byte(`"2026-11-23T06:00:00Z"`), &failed); err != nil || failed.At.Unix() != 1795413600 {
		t.Errorf("%v, %v", failed, err)
	}
}
