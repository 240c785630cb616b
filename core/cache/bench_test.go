package cache

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/docker/docker/api/types/container"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine/enginetest"
	"berth/core/labels"
	"berth/core/names"
)

// noNetwork is a Network to which no pod is attached, and Logs that are not kept.
type noNetwork struct{}

func (noNetwork) Addresses(string) ([]netip.Addr, bool, error) { return nil, false, nil }
func (noNetwork) InNetNS(string, int) bool                     { return false }

// BenchmarkInspectResult measures what a result of an inspect costs, without the call: for the pause container and for a
// container of a pod with the labels, annotations and mounts that a kubelet gives it.
func BenchmarkInspectResult(b *testing.B) {
	metadata := map[string]string{}
	for i := range 8 {
		metadata[fmt.Sprintf("io.kubernetes.key%d", i)] = "a value of some length"
	}
	label := func(m proto.Message) string {
		text, err := protojson.Marshal(m)
		if err != nil {
			b.Fatal(err)
		}
		return string(text)
	}
	mounts := make([]*runtimeapi.Mount, 6)
	for i := range mounts {
		mounts[i] = &runtimeapi.Mount{ContainerPath: fmt.Sprintf("/var/run/volume%d", i), HostPath: fmt.Sprintf("/var/lib/kubelet/pods/u/volumes/%d", i), Readonly: true}
	}
	sandbox := labels.Set{Kind: labels.Sandbox, Labels: metadata, Annotations: metadata, Config: label(&runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"},
		Hostname:     "p",
		LogDirectory: "/var/log/pods/n_p_u",
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"n.svc.cluster.local", "svc.cluster.local", "cluster.local"}},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    "/kubepods/besteffort/podu",
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}},
		},
	})}
	app := labels.Set{Kind: labels.Container, SandboxID: "s", Labels: metadata, Annotations: metadata, Image: "app:1", LogPath: "c/0.log", Config: label(&runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"},
		Mounts:   mounts,
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 1 << 28},
		},
	})}
	docker := enginetest.New(b).Connect(b)
	if _, err := docker.WaitConn(b.Context()); err != nil {
		b.Fatal(err)
	}
	for name, set := range map[names.Name]labels.Set{
		{Container: names.Pod, Pod: "p", Namespace: "n", UID: "u"}: sandbox,
		{Container: "c", Pod: "p", Namespace: "n", UID: "u"}:       app,
	} {
		b.Run(string(set.Kind), func(b *testing.B) {
			c := New(Config{Network: noNetwork{}}, docker, slog.New(slog.DiscardHandler))
			result := container.InspectResponse{
				ContainerJSONBase: &container.ContainerJSONBase{
					ID: "c1", Name: name.String(), Image: "sha256:1", Created: "2026-11-23T05:00:00.123456789Z",
					State:      &container.State{Status: "running", Running: true, Pid: 1, StartedAt: "2026-11-23T05:00:01.123456789Z"},
					HostConfig: &container.HostConfig{Init: new(bool)},
				},
				Config: &container.Config{Image: "sha256:1", Labels: set.Encode()},
			}
			observe := func(*Container) {}
			generation := uint64(0)
			b.ReportAllocs()
			for b.Loop() {
				generation++
				set, err := c.readLabels(result)
				if err == nil {
					err = c.apply(result, set, generation, observe)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			if len(c.sandboxes)+len(c.containers) != 1 {
				b.Fatal("the result is not in the cache")
			}
		})
	}
}
