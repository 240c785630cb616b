package userns

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/ociedit"
)

const (
	inPod  = runtimeapi.NamespaceMode_POD
	onNode = runtimeapi.NamespaceMode_NODE
)

// mapped is one mapping of the CRI.
func mapped(container, host, length uint32) []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{{ContainerId: container, HostId: host, Length: length}}
}

// options returns the namespaces of a pod as a kubelet sends them.
func options(change ...func(*runtimeapi.NamespaceOption)) *runtimeapi.NamespaceOption {
	ns := &runtimeapi.NamespaceOption{
		Pid:           runtimeapi.NamespaceMode_CONTAINER,
		UsernsOptions: &runtimeapi.UserNamespace{Mode: inPod, Uids: mapped(0, 131072, 65536), Gids: mapped(0, 196608, 65536)},
	}
	for _, c := range change {
		c(ns)
	}
	return ns
}

var want = Mappings{
	UIDs: []ociedit.IDMapping{{ContainerID: 0, HostID: 131072, Size: 65536}},
	GIDs: []ociedit.IDMapping{{ContainerID: 0, HostID: 196608, Size: 65536}},
}

func TestMappingsOfPods(t *testing.T) {
	got, err := OfPod(options())
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	inNetwork := func(ns *runtimeapi.NamespaceOption) { ns.Network = onNode }
	for what, of := range map[string]func() (Mappings, error){
		"pod":       func() (Mappings, error) { return OfPod(options(inNetwork)) },
		"container": func() (Mappings, error) { return OfContainer(options(inNetwork), want) },
	} {
		if got, err := of(); err != nil || !cmp.Equal(got, want) {
			t.Errorf("%s in the node's network: %v, %v", what, got, err)
		}
	}
	for name, ns := range map[string]*runtimeapi.NamespaceOption{
		"no options":        {},
		"nil":               nil,
		"of the node":       {UsernsOptions: &runtimeapi.UserNamespace{Mode: onNode}},
		"all from the node": {UsernsOptions: &runtimeapi.UserNamespace{Mode: onNode}, Network: onNode, Pid: onNode, Ipc: onNode},
	} {
		if got, err := OfPod(ns); err != nil || !got.IsZero() || got.Edit(nil) != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestUserNamespacesThatAreRefused(t *testing.T) {
	for text, change := range map[string]func(*runtimeapi.NamespaceOption){
		"mode CONTAINER: must be POD or NODE":         func(ns *runtimeapi.NamespaceOption) { ns.UsernsOptions.Mode = runtimeapi.NamespaceMode_CONTAINER },
		"mode TARGET: must be POD or NODE":            func(ns *runtimeapi.NamespaceOption) { ns.UsernsOptions.Mode = runtimeapi.NamespaceMode_TARGET },
		"not allowed in the node's user namespace":    func(ns *runtimeapi.NamespaceOption) { ns.UsernsOptions.Mode = onNode },
		"uids of the user namespace: must be exactly": func(ns *runtimeapi.NamespaceOption) { ns.UsernsOptions.Uids = nil },
		"exactly one mapping, not 2": func(ns *runtimeapi.NamespaceOption) {
			ns.UsernsOptions.Gids = append(mapped(0, 1, 1), mapped(1, 2, 1)...)
		},
		"gids of the user namespace: must be exactly": func(ns *runtimeapi.NamespaceOption) { ns.UsernsOptions.Gids = nil },
		"container_id 1: must be 0":                   func(ns *runtimeapi.NamespaceOption) { ns.UsernsOptions.Uids = mapped(1, 131072, 65536) },
		"length 0":                                    func(ns *runtimeapi.NamespaceOption) { ns.UsernsOptions.Gids = mapped(0, 131072, 0) },
		"must be within 32 bits":                      func(ns *runtimeapi.NamespaceOption) { ns.UsernsOptions.Uids = mapped(0, 1<<32-65536, 65536) },
		"pid namespace mode NODE: not supported in":   func(ns *runtimeapi.NamespaceOption) { ns.Pid = onNode },
		"ipc namespace mode NODE: not supported in":   func(ns *runtimeapi.NamespaceOption) { ns.Ipc = onNode },
	} {
		for what, of := range map[string]func(*runtimeapi.NamespaceOption) (Mappings, error){
			"pod":       OfPod,
			"container": func(ns *runtimeapi.NamespaceOption) (Mappings, error) { return OfContainer(ns, want) },
		} {
			if _, err := of(options(change)); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v, want %q", what, err, text)
			}
		}
	}
}

func TestContainersHaveTheUserNamespaceOfTheirPod(t *testing.T) {
	for name, c := range map[string]struct {
		ns  *runtimeapi.NamespaceOption
		pod Mappings
		ok  bool
	}{
		"the same":            {options(), want, true},
		"none":                {&runtimeapi.NamespaceOption{}, Mappings{}, true},
		"only the pod":        {&runtimeapi.NamespaceOption{}, want, false},
		"only the container":  {options(), Mappings{}, false},
		"other IDs":           {options(func(ns *runtimeapi.NamespaceOption) { ns.UsernsOptions.Uids = mapped(0, 262144, 65536) }), want, false},
		"fewer IDs":           {options(func(ns *runtimeapi.NamespaceOption) { ns.UsernsOptions.Gids = mapped(0, 196608, 65535) }), want, false},
		"the node's explicit": {&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: onNode}}, want, false},
	} {
		if _, err := OfContainer(c.ns, c.pod); (err == nil) != c.ok || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMountsOfAContainer(t *testing.T) {
	mounts := []*runtimeapi.Mount{
		{ContainerPath: "/data/", HostPath: "/a", UidMappings: mapped(0, 131072, 65536), GidMappings: mapped(0, 196608, 65536)},
		{ContainerPath: "host", HostPath: "/b"},
		{ContainerPath: "/twice", HostPath: "/c", UidMappings: mapped(0, 1, 1), GidMappings: mapped(0, 1, 1)},
		{ContainerPath: "/twice", HostPath: "/d"},
	}
	got, err := Mounts(mounts, want)
	wantMounts := []ociedit.MountMapping{
		{Destination: "/data", UIDMappings: want.UIDs, GIDMappings: want.GIDs}, {Destination: "/host"}, {Destination: "/twice"},
	}
	if diff := cmp.Diff(wantMounts, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	edit := want.Edit(got)
	if diff := cmp.Diff(&ociedit.UserNamespace{UIDMappings: want.UIDs, GIDMappings: want.GIDs, Mounts: wantMounts, IDMapOthers: true}, edit); diff != "" {
		t.Errorf("edit (-want +got):\n%s", diff)
	}
	if got, err := Mounts(mounts[1:2], Mappings{}); err != nil || got != nil {
		t.Errorf("in the node's user namespace: %v, %v", got, err)
	}
	for name, c := range map[string]struct {
		mount *runtimeapi.Mount
		pod   Mappings
	}{
		"in the node's user namespace": {mounts[0], Mappings{}},
		"without GIDs":                 {&runtimeapi.Mount{ContainerPath: "/a", UidMappings: mapped(0, 1, 1)}, want},
		"two mappings":                 {&runtimeapi.Mount{ContainerPath: "/a", UidMappings: append(mapped(0, 1, 1), mapped(1, 2, 1)...), GidMappings: mapped(0, 1, 1)}, want},
	} {
		if _, err := Mounts([]*runtimeapi.Mount{c.mount}, c.pod); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.mount.GetContainerPath()) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestGroupsThatMayPing(t *testing.T) {
	for name, c := range map[string]struct {
		m           Mappings
		pod, want   map[string]string
		hostNetwork bool
	}{
		"of the node":    {Mappings{}, map[string]string{"a": "b"}, map[string]string{"a": "b"}, false},
		"of the pod":     {want, map[string]string{"net.core.somaxconn": "1"}, map[string]string{"net.core.somaxconn": "1", "net.ipv4.ping_group_range": "0 65535"}, false},
		"set by the pod": {want, map[string]string{"net.ipv4.ping_group_range": "1 0"}, map[string]string{"net.ipv4.ping_group_range": "1 0"}, false},
		"host's network": {want, map[string]string{"kernel.shm_rmid_forced": "1"}, map[string]string{"kernel.shm_rmid_forced": "1"}, true},
	} {
		if diff := cmp.Diff(c.want, c.m.Sysctls(c.pod, c.hostNetwork)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestRuntimeOfPodsWithUserNamespaces(t *testing.T) {
	features := engine.Features{DefaultRuntime: "runc", Runtimes: map[string]engine.Runtime{
		"runc": {RuncShim: true}, "io.containerd.runc.v2": {RuncShim: true}, "crun": {RuncShim: true}, "nvidia": {RuncShim: true}, "kata": {},
		"berth": {RuncShim: true, Instructions: "/run/berth/oci"}, "berth-crun": {RuncShim: true, Instructions: "/run/berth/oci"},
		"berth-nvidia": {RuncShim: true, Instructions: "/run/other/oci"},
	}}
	works := func(engine.Features) error { return nil }
	support := Support{Dir: "/run/berth/oci", Probe: works}
	for below, want := range map[string]string{"": "berth", "runc": "berth", "io.containerd.runc.v2": "berth", "crun": "berth-crun"} {
		if got, err := support.Runtime(below, features); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", below, got, err, want)
		}
	}
	without, remapped := features, features
	without.Runtimes = map[string]engine.Runtime{"runc": {RuncShim: true}, "berth": {RuncShim: true}} // another program of that name
	remapped.UserNSRemap = true
	for name, c := range map[string]struct {
		support  Support
		features engine.Features
		below    string
		text     string
	}{
		"not installed":         {support, without, "", "which Docker does not have: run berthd runtime install"},
		"not for that runtime":  {support, without, "crun", "a containerd shim of its own"},
		"a shim":                {support, features, "kata", "the runtime kata has a containerd shim of its own"},
		"another run directory": {support, features, "nvidia", "reads instructions in /run/other/oci, and this berthd writes them to /run/berth/oci"},
		"userns-remap":          {support, remapped, "", "userns-remap"},
		"the kernel":            {Support{Dir: support.Dir, Probe: func(engine.Features) error { return failed("Linux 6.3") }}, features, "", "Linux 6.3"},
		"no directory":          {Support{}, features, "", "run berthd runtime install"},
	} {
		if _, err := c.support.Runtime(c.below, c.features); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, want %q", name, err, c.text)
		}
	}
}
