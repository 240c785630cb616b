package network

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"berth/network/netns"
	"berth/network/networktest"
)

var equalAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// dualStackResult is a result like that of bridge.
const dualStackResult = `{"cniVersion": "1.0.0", "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/x"}],
	"ips": [{"interface": 2, "address": "fd00::2/64"}, {"interface": 2, "address": "10.1.0.2/24"}, {"interface": 0, "address": "10.1.0.1/24"}]}`

// confWith returns a network named a of one fake plugin with more settings.
func confWith(more string) string {
	return `{"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "fake", "callLog": "CALLS"` + more + `}]}`
}

// planAndBind returns a Plan for the pod id, whose network namespace it binds.
func (n *node) planAndBind(c *CNI, id string) Plan {
	n.t.Helper()
	plan, err := c.Plan(Pod{ID: id, Name: "web-0", Namespace: "default", UID: "u-1"})
	if err != nil {
		n.t.Fatal(err)
	}
	n.bindNetNS(id)
	return plan
}

func TestAttachReturnsAddressesOfPodInterface(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		conf string
		want []string
		err  string
	}{
		"dual stack, in the order of the result": {conf: confWith(`, "result": ` + dualStackResult), want: []string{"fd00::2", "10.1.0.2"}},
		"addresses of no interface": {
			conf: confWith(`, "result": {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}]}`), want: []string{"10.1.0.2"},
		},
		"an interface by another name": {
			conf: confWith(`, "result": {"cniVersion": "1.0.0", "interfaces": [{"name": "br0"}, {"name": "net1", "sandbox": "/x"}],
				"ips": [{"interface": 0, "address": "10.1.0.1/24"}, {"interface": 1, "address": "10.1.0.2/24"}]}`),
			want: []string{"10.1.0.2"},
		},
		"an interface by another name in no namespace": {
			conf: confWith(`, "result": {"cniVersion": "1.0.0", "interfaces": [{"name": "net1"}], "ips": [{"interface": 0, "address": "10.1.0.2/24"}]}`),
			want: []string{"10.1.0.2"},
		},
		"an interface that is not there": {
			conf: confWith(`, "result": {"cniVersion": "1.0.0", "ips": [{"interface": 7, "address": "10.1.0.2/24"}]}`), want: []string{"10.1.0.2"},
		},
		"CNI 0.2": {
			conf: `{"cniVersion": "0.2.0", "name": "a", "plugins": [{"type": "fake", "callLog": "CALLS",
				"result": {"ip4": {"ip": "10.1.0.2/24"}, "ip6": {"ip": "fd00::2/64"}}}]}`,
			want: []string{"10.1.0.2", "fd00::2"},
		},
		"no address":   {conf: confWith(``), err: `attach to network "a": its plugins gave no address`},
		"it fails":     {conf: confWith(`, "fail": ["ADD"]`), err: `attach to network "a": plugin type="fake" failed (add): ADD failed as configured`},
		"not a result": {conf: confWith(`, "result": "?"`), err: `attach to network "a": plugin type="fake" failed (add): `},
	} {
		t.Run(name, func(t *testing.T) {
			d := newNode(t, "fake")
			d.conf("10-a.conflist", tt.conf)
			n := d.new()
			plan := d.planAndBind(n, "pod")
			got, err := n.Attach(t.Context(), plan)
			if tt.err != "" {
				if err == nil || !strings.HasPrefix(err.Error(), tt.err) {
					t.Errorf("got error %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var want []netip.Addr
			for _, text := range tt.want {
				want = append(want, netip.MustParseAddr(text))
			}
			if diff := cmp.Diff(want, got, equalAddrs); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
			// The daemon that attached the pod and one that starts later return the same.
			for name, n := range map[string]*CNI{"same": n, "next": d.new()} {
				got, attached, err := n.Addresses("pod")
				if diff := cmp.Diff(want, got, equalAddrs); err != nil || diff != "" || !attached {
					t.Errorf("%s daemon: attached %v, %v, addresses (-want +got):\n%s", name, attached, err, diff)
				}
				if got, err := n.Attached(); err != nil || !slices.Equal(got, []string{"pod"}) {
					t.Errorf("%s daemon: attached %q, %v, want pod", name, got, err)
				}
			}
		})
	}
}

func TestAttachAndDetachCallAllPluginsInOrder(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake", "second")
	d.conf("10-a.conflist", `{"cniVersion": "1.0.0", "name": "a", "plugins": [
		{"type": "fake", "callLog": "CALLS", "result": `+dualStackResult+`}, {"type": "second", "callLog": "CALLS"}]}`)
	n := d.new()
	plan := d.planAndBind(n, "pod")
	if _, err := n.Attach(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	if err := n.Detach(t.Context(), &plan, "pod"); err != nil {
		t.Fatal(err)
	}
	type part struct{ Command, Type, ID, NetNS, IfName, Args string }
	var got []part
	for _, c := range d.calls() {
		got = append(got, part{c.Command, c.Type, c.ID, c.NetNS, c.IfName, c.Args})
	}
	path := filepath.Join(d.cfg.RunDir, "netns", netns.FileName("pod"))
	args := "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=pod;K8S_POD_UID=u-1"
	want := []part{
		{"ADD", "fake", "pod", path, "eth0", args}, {"ADD", "second", "pod", path, "eth0", args},
		{"DEL", "second", "pod", path, "eth0", args}, {"DEL", "fake", "pod", path, "eth0", args},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if netns.IsNetNS(path) || len(d.boundFiles()) > 0 {
		t.Error("the network namespace is still bound")
	}
	if got := d.cached(); got != nil {
		t.Errorf("libcni's cache still has %q", got)
	}
}

func TestAttachFailsWithoutBoundNetNS(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.conf("10-a.conflist", confWith(``))
	n := d.new()
	plan, err := n.Plan(Pod{ID: "pod"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Attach(t.Context(), plan); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v, want an error of kind FailedPrecondition", err)
	}
}

// A plugin that hangs is killed at the caller's deadline, together with its children.
func TestAttachKillsPluginAtDeadline(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.conf("10-a.conflist", confWith(`, "hang": ["ADD"]`))
	n := d.new()
	plan := d.planAndBind(n, "pod")
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := n.Attach(ctx, plan)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want that the deadline was exceeded", err)
	}
	if took := time.Since(start); took > 500*time.Millisecond+pipeGrace {
		t.Errorf("it took %v: the plugin's children were waited for", took)
	}
}

// Pods do not wait for each other; operations on one pod do.
func TestOperationsOnOnePodAreSerialized(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	gateFile := filepath.Join(d.dir, "gate")
	d.conf("10-a.conflist", confWith(`, "hangUntil": "`+gateFile+`", "result": `+dualStackResult))
	slow := d.new()
	first := d.planAndBind(slow, "first")
	d.conf("10-a.conflist", confWith(`, "result": `+dualStackResult))
	quick, err := d.new().Plan(Pod{ID: "second"})
	if err != nil {
		t.Fatal(err)
	}
	d.bindNetNS("second")

	attached := make(chan error, 1)
	go func() {
		_, err := slow.Attach(t.Context(), first)
		attached <- err
	}()
	networktest.Eventually(t, "the first pod's plugin runs", func() bool {
		data, _ := os.ReadFile(d.callLog())
		return strings.Contains(string(data), "first")
	})
	if _, err := slow.Attach(t.Context(), quick); err != nil {
		t.Fatalf("the second pod waited for the first: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := slow.Detach(ctx, nil, "first"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Detach during Attach: got %v, want that the deadline was exceeded", err)
	}
	if err := os.WriteFile(gateFile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-attached; err != nil {
		t.Error(err)
	}
	if err := slow.Detach(t.Context(), nil, "first"); err != nil {
		t.Error(err)
	}
}

// cacheFile is a file of libcni's cache.
func cacheFile(id, network, netns, config string) string {
	encoded := base64.StdEncoding.EncodeToString([]byte(config))
	return fmt.Sprintf(`{"kind": "cniCacheV1", "containerId": %q, "config": %q, "ifName": "eth0", "networkName": %q, "netns": %q,
		"cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAME", "old"]], "capabilityArgs": {"portMappings": []},
		"result": {"cniVersion": "0.4.0", "interfaces": [{"name": "eth0"}], "ips": [
			{"version": "4", "interface": 0, "address": "10.9.0.2/24"}, {"version": "6", "interface": 0, "address": "fd09::2/64"}]}}`,
		id, encoded, network, netns)
}

func TestDetachUndoesCachedAndPlannedAttachments(t *testing.T) {
	t.Parallel()
	const id = "0123abcd"
	old := `{"cniVersion": "0.4.0", "name": "old", "plugins": [{"type": "fake", "callLog": "CALLS"}]}`
	for name, tt := range map[string]struct {
		conf   string            // in the configuration directory
		cache  map[string]string // file name to network, without config the file is empty
		config string            // in the files of the cache
		plan   bool              // a plan for the network a is given
		bare   bool              // a plan without a network is given
		bound  bool
		want   []string
	}{
		"as cached, though the configuration is gone": {
			cache: map[string]string{"old-" + id + "-eth0": "old"}, config: old, bound: true,
			want: []string{"DEL fake old " + id + " berth-" + id},
		},
		"as cached, though the configuration has changed": {
			conf: confWith(``), cache: map[string]string{"old-" + id + "-eth0": "old"}, config: old, bound: true,
			want: []string{"DEL fake old " + id + " berth-" + id},
		},
		"without a namespace, after a reboot or from cri-dockerd": {
			cache: map[string]string{"old-" + id + "-eth0": "old"}, config: old,
			want: []string{"DEL fake old " + id + " -"},
		},
		"cri-dockerd's loopback is deleted too": {
			cache:  map[string]string{"old-" + id + "-eth0": "old", "cni-loopback-" + id + "-eth0": "cni-loopback"},
			config: old, want: []string{"DEL fake old " + id + " -"},
		},
		"as planned, without a cache file": {
			plan: true, bound: true, want: []string{"DEL fake a " + id + " berth-" + id},
		},
		"as planned, if the cache file is incomplete": {
			plan: true, cache: map[string]string{"a-" + id + "-eth0": ""}, want: []string{"DEL fake a " + id + " -"},
		},
		"as cached and as planned, if these differ": {
			plan: true, cache: map[string]string{"old-" + id + "-eth0": "old"}, config: old,
			want: []string{"DEL fake old " + id + " -", "DEL fake a " + id + " -"},
		},
		"once, if these are the same": {
			plan: true, cache: map[string]string{"a-" + id + "-eth0": "a"}, config: confWith(``),
			want: []string{"DEL fake a " + id + " -"},
		},
		"from the current network, if no attachment is known": {
			conf: confWith(``), bound: true, want: []string{"DEL fake a " + id + " berth-" + id},
		},
		"from the current network, with the arguments of a plan without a network": {
			conf: confWith(``), bare: true, want: []string{"DEL fake a " + id + " -"},
		},
		"from nothing, without a network": {bound: true},
		"from nothing, if a plugin is not installed": {
			conf: `{"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "nowhere"}]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newNode(t, "fake")
			var plan *Plan
			if tt.plan {
				file := d.conf("10-a.conflist", confWith(``))
				made, err := d.new().Plan(Pod{ID: id})
				if err != nil {
					t.Fatal(err)
				}
				plan = &made
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
			}
			if tt.bare {
				plan = &Plan{Pod: Pod{ID: id, Name: "web-0"}}
			}
			if tt.conf != "" {
				d.conf("10-a.conflist", tt.conf)
			}
			for file, network := range tt.cache {
				text := ""
				if tt.config != "" {
					config := strings.ReplaceAll(tt.config, "CALLS", d.callLog())
					text = cacheFile(id, network, "/proc/4711/ns/net", config)
				}
				d.cache(file, text)
			}
			d.cache("old-ffff-eth0", cacheFile("ffff", "old", "/proc/1/ns/net", old))
			if tt.bound {
				d.bindNetNS(id)
			}
			n := d.new()
			if err := n.Detach(t.Context(), plan, id); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, d.callSummary(), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
			if got := d.boundFiles(); len(got) > 0 {
				t.Errorf("still bound: %q", got)
			}
			if diff := cmp.Diff([]string{"old-ffff-eth0"}, d.cached()); diff != "" {
				t.Errorf("libcni's cache (-want +got):\n%s", diff)
			}
			if err := n.Detach(t.Context(), nil, id); err != nil {
				t.Errorf("again: %v", err)
			}
			if got := d.calls(); len(got) > 0 {
				t.Errorf("again: %d calls of plugins, want none", len(got))
			}
		})
	}
}

// A failed DEL keeps everything for the retry; Forget releases it.
func TestFailedDetachKeepsStateUntilForget(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.conf("10-a.conflist", confWith(`, "fail": ["DEL"], "result": `+dualStackResult))
	n := d.new()
	plan := d.planAndBind(n, "pod")
	if _, err := n.Attach(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := n.Detach(t.Context(), nil, "pod")
		want := `detach from network "a": plugin type="fake" failed (delete): DEL failed as configured`
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		if _, attached, _ := n.Addresses("pod"); !attached || len(d.boundFiles()) != 1 || len(d.cached()) != 1 {
			t.Error("something has been released")
		}
	}
	if err := n.Forget(t.Context(), "pod"); err != nil {
		t.Fatal(err)
	}
	if _, attached, _ := n.Addresses("pod"); attached || len(d.boundFiles()) != 0 || len(d.cached()) != 0 {
		t.Error("something is left")
	}
}

// A plugin that is not installed is an error while an attachment is known.
func TestDetachFailsWithoutPlugin(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.conf("10-a.conflist", confWith(`, "result": `+dualStackResult))
	n := d.new()
	plan := d.planAndBind(n, "pod")
	if _, err := n.Attach(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(d.dir, "bin", "fake")); err != nil {
		t.Fatal(err)
	}
	if err := n.Detach(t.Context(), nil, "pod"); !errdefs.IsUnavailable(err) {
		t.Errorf("got %v, want an error of kind Unavailable", err)
	}
}

func TestInvalidPodIDsAreRefused(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.conf("10-a.conflist", confWith(``))
	n := d.new()
	for _, id := range []string{"", "../x", "a/b", "-x"} {
		if _, err := n.Plan(Pod{ID: id}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Plan %q: got %v, want an error of kind InvalidArgument", id, err)
		}
		if _, err := n.Bind(id, os.Getpid()); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Bind %q: got %v, want an error of kind InvalidArgument", id, err)
		}
		if err := n.Detach(t.Context(), nil, id); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Detach %q: got %v, want an error of kind InvalidArgument", id, err)
		}
	}
}

func TestPodsOfCRIDockerdAreAttachedAndHaveAddresses(t *testing.T) {
	t.Parallel()
	d := newNode(t)
	d.cache("old-0123-eth0", cacheFile("0123", "old", "/proc/4711/ns/net", confWith(``)))
	d.cache("cni-loopback-0123-eth0", cacheFile("0123", "cni-loopback", "/proc/4711/ns/net", `{}`))
	d.cache("cni-loopback-4567-eth0", cacheFile("4567", "cni-loopback", "/proc/4712/ns/net", `{}`))
	d.cache("podman-89ab-eth0", cacheFile("89ab", "podman", "/run/netns/netns-1", confWith(``)))
	d.cache("torn-cdef-eth0", ``)
	n := d.new()
	if got, err := n.Attached(); err != nil || !slices.Equal(got, []string{"0123"}) {
		t.Errorf("attached: got %q, %v, want 0123", got, err)
	}
	for id, want := range map[string]int{"0123": 2, "4567": 0, "cdef": 0, "none": 0} {
		got, attached, err := n.Addresses(id)
		if err != nil || len(got) != want || attached != (want > 0) {
			t.Errorf("pod %s: got %v, attached %v, %v, want %d addresses", id, got, attached, err, want)
		}
	}
	if !n.InNetNS("0123", os.Getpid()) {
		t.Error("InNetNS is false for a pod without a bind mount")
	}
	if got, want := n.NetNS("0123", 42), "/proc/42/ns/net"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestGCKeepsValidAttachmentsAndDetachesOrphans(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			d := newNode(t, "fake")
			conf := `{"cniVersion": "` + version + `", "name": "a", "plugins": [{"type": "fake", "callLog": "CALLS", "result": ` + dualStackResult + `}]}`
			d.conf("10-a.conflist", conf)
			conf = strings.ReplaceAll(conf, "CALLS", d.callLog())
			d.cache("a-0001-eth0", cacheFile("0001", "a", "/proc/1/ns/net", conf)) // in keep
			d.cache("a-0002-eth0", cacheFile("0002", "a", "/proc/1/ns/net", conf)) // an orphan
			d.cache("a-0003-eth0", cacheFile("0003", "a", "/run/netns/cni-1", conf))
			d.cache("b-0004-eth0", cacheFile("0004", "b", "/proc/1/ns/net", conf))
			n := d.new()
			plan := d.planAndBind(n, "0005") // attached since the start
			if _, err := n.Attach(t.Context(), plan); err != nil {
				t.Fatal(err)
			}
			d.calls()
			if err := n.GC(t.Context(), []string{"0001"}); err != nil {
				t.Fatal(err)
			}
			calls := d.calls()
			if version == "1.0.0" {
				if len(calls) > 0 {
					t.Errorf("got %d calls, want none", len(calls))
				}
				return
			}
			if len(calls) != 2 || calls[0].Command != "DEL" || calls[0].ID != "0002" || calls[0].NetNS != "" || calls[1].Command != "GC" {
				t.Fatalf("got calls %+v, want DEL of 0002 in no namespace, then GC", calls)
			}
			var valid []struct{ ContainerID, Ifname string }
			data, _ := json.Marshal(calls[1].Config["cni.dev/valid-attachments"])
			if err := json.Unmarshal(data, &valid); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, v := range valid {
				got = append(got, v.ContainerID+" "+v.Ifname)
			}
			slices.Sort(got)
			if diff := cmp.Diff([]string{"0001 eth0", "0003 eth0", "0005 eth0"}, got); diff != "" {
				t.Errorf("valid (-want +got):\n%s", diff)
			}
			// Attachments of other runtimes and networks are kept.
			if diff := cmp.Diff([]string{"a-0001-eth0", "a-0003-eth0", "a-0005-eth0", "b-0004-eth0"}, d.cached()); diff != "" {
				t.Errorf("libcni's cache (-want +got):\n%s", diff)
			}
		})
	}
}

// GC does not know a pod that is attached meanwhile, so Attach must wait.
func TestAttachWaitsForGC(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.conf("10-a.conflist", confWith(`, "result": `+dualStackResult))
	n := d.new()
	plan := d.planAndBind(n, "pod")
	_, _, done, err := n.beginGC(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := n.Attach(ctx, plan); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("during GC: got %v, want that the deadline was exceeded", err)
	}
	if len(d.calls()) > 0 {
		t.Error("a plugin was called")
	}
	done()
	if _, err := n.Attach(t.Context(), plan); err != nil {
		t.Error(err)
	}
}

// A plugin that hangs in GC must not block new pods.
func TestAttachCancelsHangingGC(t *testing.T) {
	d := newNode(t, "fake")
	d.conf("10-a.conflist", confWith(`, "result": `+dualStackResult))
	n := d.new()
	plan := d.planAndBind(n, "pod")
	gc, _, done, err := n.beginGC(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() { <-gc.Done(); done() }() // like a plugin that is killed
	if _, err := n.Attach(t.Context(), plan); err != nil {
		t.Error(err)
	}
	if cause := context.Cause(gc); !errors.Is(cause, errPreempted) {
		t.Errorf("the GC ended with %v", cause)
	}
}

func TestRecentIDsAreBounded(t *testing.T) {
	var r recentIDs
	for i := range 3 * maxRecentIDs {
		r.add(fmt.Sprint(i % (maxRecentIDs + 1)))
	}
	r.remove("5")
	r.add("7")
	if len(r.index) > maxRecentIDs || r.has("5") || !r.has("7") {
		t.Errorf("it has %d ids, 5: %v, 7: %v", len(r.index), r.has("5"), r.has("7"))
	}
}

func TestChildrenOfKilledPluginAreKilled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	script, pidFile := filepath.Join(dir, "plugin"), filepath.Join(dir, "pid")
	text := "#!/bin/sh\nsleep 3600 &\necho $! > " + pidFile + ".new\nmv " + pidFile + ".new " + pidFile + "\nwait\n"
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip("needs a shell")
	}
	p := &pluginExec{log: new(networktest.Log).Logger()}
	done := make(chan error, 1)
	go func() {
		_, err := p.ExecPlugin(ctx, script, nil, os.Environ())
		done <- err
	}()
	var pid string
	networktest.Eventually(t, "the plugin has a child", func() bool {
		data, _ := os.ReadFile(pidFile)
		pid = strings.TrimSpace(string(data))
		return pid != ""
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was canceled", err)
	}
	networktest.Eventually(t, "the child ends", func() bool {
		state, err := os.ReadFile("/proc/" + pid + "/stat")
		return err != nil || strings.Contains(string(state), ") Z ")
	})
}

func TestPluginErrorHasOutputOfPlugin(t *testing.T) {
	for name, tt := range map[string]struct{ script, want string }{
		"a CNI error":            {`echo '{"code": 7, "msg": "no", "details": "way"}'; exit 1`, "no; way"},
		"other output":           {`echo hello; echo there >&2; exit 3`, "hello; there: exit status 3"},
		"no output":              {`exit 3`, "the plugin printed no error: exit status 3"},
		"a signal":               {`kill -9 $$`, "the plugin printed no error: signal: killed"},
		"JSON without a message": {`echo '{"code": 7}'; exit 1`, `{"code": 7}: exit status 1`},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "plugin")
			if err := os.WriteFile(path, []byte("#!/bin/sh\n"+tt.script+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			_, err := (&pluginExec{log: new(networktest.Log).Logger()}).ExecPlugin(t.Context(), path, nil, nil)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

func TestPluginOutputIsBounded(t *testing.T) {
	for name, tt := range map[string]struct{ script, want string }{
		"on stdout":             {`head -c 30000000 /dev/zero`, "plugin printed more than 1048576 bytes, which is no CNI result"},
		"on stderr":             {`head -c 30000000 /dev/zero >&2; echo '{}'`, ""},
		"on both, and it fails": {`head -c 30000000 /dev/zero | tr '\0' x; head -c 30000000 /dev/zero >&2; exit 3`, "exit status 3"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "plugin")
			if err := os.WriteFile(path, []byte("#!/bin/sh\n"+tt.script+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			out, err := (&pluginExec{log: new(networktest.Log).Logger()}).ExecPlugin(t.Context(), path, nil, os.Environ())
			text := fmt.Sprint(err)
			if tt.want == "" && (err != nil || string(out) != "{}\n") || tt.want != "" && !strings.HasSuffix(text, tt.want) {
				t.Errorf("%q, %.200s; want %q", out, text, tt.want)
			}
			if len(text) > 5000 {
				t.Errorf("the error is %d bytes long", len(text))
			}
		})
	}
}

// For lack of file descriptors, for example. A pod that counts as not attached is created anew by the kubelet.
func TestCacheThatCannotBeReadIsNotEmpty(t *testing.T) {
	d := newNode(t)
	d.cache("net-0123-eth0", "")
	file := filepath.Join(d.cfg.CacheDir, "results", "net-0123-eth0")
	if err := errors.Join(os.Remove(file), os.Symlink(file, file)); err != nil {
		t.Fatal(err)
	}
	if addrs, attached, err := d.new().Addresses("0123"); err == nil {
		t.Errorf("got %v, %t, want an error", addrs, attached)
	}
}
