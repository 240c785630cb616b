package network

import (
	"encoding/json"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// fullPod has a value for every capability.
func fullPod() Pod {
	return Pod{
		ID: "pod", Name: "web-0", Namespace: "default", UID: "u-1",
		Ports: []PortMapping{
			{HostPort: 8080, ContainerPort: 80, Protocol: "TCP", HostIP: "127.0.0.1"},
			{ContainerPort: 81, Protocol: "tcp"},
			{HostPort: 5353, ContainerPort: 53},
			{HostPort: 99, ContainerPort: 9, Protocol: "SCTP"},
		},
		Ingress: 1e9, Egress: 5e6,
		DNS:         DNS{Servers: []string{"10.0.0.10"}, Searches: []string{"svc.cluster.local"}, Options: []string{"ndots:5"}},
		CgroupPath:  "/kubepods/pod1",
		Annotations: map[string]string{"a": "<b>"},
	}
}

const allCapabilities = `"portMappings": true, "bandwidth": true, "dns": true, "ipRanges": true, "cgroupPath": true,
	"io.kubernetes.cri.pod-annotations": true`

// allRuntimeConfig is in the form of https://www.cni.dev/docs/conventions/.
const allRuntimeConfig = `{
	"portMappings": [
		{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
		{"hostPort": 5353, "containerPort": 53, "protocol": "tcp"},
		{"hostPort": 99, "containerPort": 9, "protocol": "sctp"}
	],
	"bandwidth": {"ingressRate": 1000000000, "ingressBurst": 2147483647, "egressRate": 5000000, "egressBurst": 2147483647},
	"dns": {"servers": ["10.0.0.10"], "searches": ["svc.cluster.local"], "options": ["ndots:5"]},
	"ipRanges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]],
	"cgroupPath": "/kubepods/pod1",
	"io.kubernetes.cri.pod-annotations": {"a": "<b>"}
}`

func TestAttachPassesDeclaredCapabilities(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		capabilities string
		pod          Pod
		cidr         string
		want         string // runtimeConfig
		warned       []string
	}{
		"all capabilities":      {allCapabilities, fullPod(), "10.1.0.7/24, fd00:1::/64", allRuntimeConfig, nil},
		"none declared":         {``, fullPod(), "10.1.0.0/24", `null`, []string{"portMappings", "bandwidth"}},
		"no values":             {allCapabilities, Pod{ID: "pod"}, "", `null`, nil},
		"declared, but not set": {`"portMappings": false`, fullPod(), "", `null`, []string{"portMappings", "bandwidth"}},
		"bandwidth of one direction": {
			`"bandwidth": true`, Pod{ID: "pod", Egress: 10}, "", `{"bandwidth": {"egressRate": 10, "egressBurst": 2147483647}}`, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newNode(t, "fake")
			d.conf("10-a.conflist", `{"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "fake", "callLog": "CALLS",
				"result": {"ips": [{"address": "10.1.0.2/24"}]}, "capabilities": {`+tt.capabilities+`}}]}`)
			n := d.new()
			if err := n.SetPodCIDR(tt.cidr); err != nil {
				t.Fatal(err)
			}
			if err := n.SetPodCIDR("10.9.0.0/24,nonsense"); !errdefs.IsInvalidArgument(err) {
				t.Errorf("no CIDR: %v", err)
			}
			plan, err := n.Plan(tt.pod)
			if err != nil {
				t.Fatal(err)
			}
			if got := d.log.Count("level=WARN msg=\"no plugin of the network has a capability"); got != len(tt.warned) {
				t.Errorf("got %d warnings, want %d", got, len(tt.warned))
			}
			for _, name := range tt.warned {
				if d.log.Count("capability="+name) != 1 {
					t.Errorf("no warning about %s", name)
				}
			}
			d.bindNetNS("pod")
			if _, err := n.Attach(t.Context(), plan); err != nil {
				t.Fatal(err)
			}
			var want any
			if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, d.calls()[0].Config["runtimeConfig"]); diff != "" {
				t.Errorf("runtimeConfig (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlanFromJSONDetachesLikeOriginal(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.conf("10-a.conflist", `{"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "fake", "callLog": "CALLS",
		"capabilities": {`+allCapabilities+`}}]}`)
	n := d.new()
	if err := n.SetPodCIDR("10.1.0.0/24,fd00:1::/64"); err != nil {
		t.Fatal(err)
	}
	plan, err := n.Plan(fullPod())
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(plan)
	if err != nil {
		t.Fatal(err)
	}
	var again Plan
	if err := json.Unmarshal(data, &again); err != nil {
		t.Fatal(err)
	}
	compact := cmp.Transformer("compact", func(raw json.RawMessage) (v any) {
		_ = json.Unmarshal(raw, &v)
		return v
	})
	printed := cmp.Comparer(func(a, b interface{ String() string }) bool { return a.String() == b.String() })
	if diff := cmp.Diff(plan, again, compact, printed, cmpopts.IgnoreUnexported(Plan{})); diff != "" {
		t.Errorf("plan after JSON (-want +got):\n%s", diff)
	}
	for _, p := range []*Plan{&plan, &again} {
		if err := n.Detach(t.Context(), p, "pod"); err != nil {
			t.Fatal(err)
		}
	}
	calls := d.calls()
	if len(calls) != 2 {
		t.Fatalf("got %d calls, want 2", len(calls))
	}
	if diff := cmp.Diff(calls[0], calls[1]); diff != "" {
		t.Errorf("DEL after JSON (-before +after):\n%s", diff)
	}
}
