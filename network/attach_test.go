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
)

var addrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// dual is a result as bridge gives it.
const dual = `{"cniVersion": "1.0.0", "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/x"}],
	"ips": [{"interface": 2, "address": "fd00::2/64"}, {"interface": 2, "address": "10.1.0.2/24"}, {"interface": 0, "address": "10.1.0.1/24"}]}`

// with returns a network named a of one fake plugin with more settings.
func with(more string) string {
	return `{"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "fake", "notes": "NOTES"` + more + `}]}`
}

// planned plans for the pod id and has its network namespace bound.
func (d *node) planned(n *CNI, id string) Plan {
	d.t.Helper()
	plan, err := n.Plan(Pod{ID: id, Name: "web-0", Namespace: "default", UID: "u-1"})
	if err != nil {
		d.t.Fatal(err)
	}
	d.netns(id)
	return plan
}

func TestAttach(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		conf string
		want []string
		err  string
	}{
		"dual stack, in the order of the result": {conf: with(`, "result": ` + dual), want: []string{"fd00::2", "10.1.0.2"}},
		"addresses of no interface": {
			conf: with(`, "result": {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}]}`), want: []string{"10.1.0.2"},
		},
		"an interface by another name": {
			conf: with(`, "result": {"cniVersion": "1.0.0", "interfaces": [{"name": "br0"}, {"name": "net1", "sandbox": "/x"}],
				"ips": [{"interface": 0, "address": "10.1.0.1/24"}, {"interface": 1, "address": "10.1.0.2/24"}]}`),
			want: []string{"10.1.0.2"},
		},
		"an interface by another name in no namespace": {
			conf: with(`, "result": {"cniVersion": "1.0.0", "interfaces": [{"name": "net1"}], "ips": [{"interface": 0, "address": "10.1.0.2/24"}]}`),
			want: []string{"10.1.0.2"},
		},
		"an interface that is not there": {
			conf: with(`, "result": {"cniVersion": "1.0.0", "ips": [{"interface": 7, "address": "10.1.0.2/24"}]}`), want: []string{"10.1.0.2"},
		},
		"CNI 0.2": {
			conf: `{"cniVersion": "0.2.0", "name": "a", "plugins": [{"type": "fake", "notes": "NOTES",
				"result": {"ip4": {"ip": "10.1.0.2/24"}, "ip6": {"ip": "fd00::2/64"}}}]}`,
			want: []string{"10.1.0.2", "fd00::2"},
		},
		"no address":   {conf: with(``), err: `attach to network "a": its plugins gave no address`},
		"it fails":     {conf: with(`, "fail": ["ADD"]`), err: `attach to network "a": plugin type="fake" failed (add): ADD is not my day`},
		"not a result": {conf: with(`, "result": "?"`), err: `attach to network "a": plugin type="fake" failed (add): `},
	} {
		t.Run(name, func(t *testing.T) {
			d := newNode(t, "fake")
			d.conf("10-a.conflist", tt.conf)
			n := d.new()
			plan := d.planned(n, "pod")
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
			if diff := cmp.Diff(want, got, addrs); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
			// Told by the one that attached it and by one that starts later.
			for name, n := range map[string]*CNI{"same": n, "next": d.new()} {
				got, attached := n.Addresses("pod")
				if diff := cmp.Diff(want, got, addrs); diff != "" || !attached {
					t.Errorf("%s daemon: attached %v, addresses (-want +got):\n%s", name, attached, diff)
				}
				if got, want := n.Attached(), []string{"pod"}; !slices.Equal(got, want) {
					t.Errorf("%s daemon: attached %q, want %q", name, got, want)
				}
			}
		})
	}
}

func TestWhatIsCalled(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake", "second")
	d.conf("10-a.conflist", `{"cniVersion": "1.0.0", "name": "a", "plugins": [
		{"type": "fake", "notes": "NOTES", "result": `+dual+`}, {"type": "second", "notes": "NOTES"}]}`)
	n := d.new()
	plan := d.planned(n, "pod")
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
	netns := filepath.Join(d.cfg.RunDir, "netns", prefix+"pod")
	args := "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=pod;K8S_POD_UID=u-1"
	want := []part{
		{"ADD", "fake", "pod", netns, "eth0", args}, {"ADD", "second", "pod", netns, "eth0", args},
		{"DEL", "second", "pod", netns, "eth0", args}, {"DEL", "fake", "pod", netns, "eth0", args},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if bound(netns) || len(d.handles()) > 0 {
		t.Error("the network namespace is still bound")
	}
	if got := d.cached(); got != nil {
		t.Errorf("libcni's cache still has %q", got)
	}
}

func TestAttachWithoutANamespace(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.conf("10-a.conflist", with(``))
	n := d.new()
	plan, err := n.Plan(Pod{ID: "pod"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Attach(t.Context(), plan); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v, want an error of kind FailedPrecondition", err)
	}
}

// A plugin that hangs ends with the caller's patience, and so does what it has
// started.
func TestAttachThatHangs(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.conf("10-a.conflist", with(`, "hang": ["ADD"]`))
	n := d.new()
	plan := d.planned(n, "pod")
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := n.Attach(ctx, plan)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want that the deadline was exceeded", err)
	}
	if took := time.Since(start); took > 500*time.Millisecond+pipeWait {
		t.Errorf("it took %v: what the plugin started was waited for", took)
	}
}

// Pods do not wait for each other; operations on one pod do.
func TestTurns(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	gate := filepath.Join(d.dir, "gate")
	d.conf("10-a.conflist", with(`, "hangUntil": "`+gate+`", "result": `+dual))
	slow := d.new()
	first := d.planned(slow, "first")
	d.conf("10-a.conflist", with(`, "result": `+dual))
	quick, err := d.new().Plan(Pod{ID: "second"})
	if err != nil {
		t.Fatal(err)
	}
	d.netns("second")

	attached := make(chan error, 1)
	go func() {
		_, err := slow.Attach(t.Context(), first)
		attached <- err
	}()
	eventually(t, "the first pod's plugin runs", func() bool {
		data, _ := os.ReadFile(d.notes())
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
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-attached; err != nil {
		t.Error(err)
	}
	if err := slow.Detach(t.Context(), nil, "first"); err != nil {
		t.Error(err)
	}
}

// cachedBy is a file of libcni's cache as another daemon wrote it.
func cachedBy(id, network, netns, config string) string {
	encoded := base64.StdEncoding.EncodeToString([]byte(config))
	return fmt.Sprintf(`{"kind": "cniCacheV1", "containerId": %q, "config": %q, "ifName": "eth0", "networkName": %q, "netns": %q,
		"cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAME", "old"]], "capabilityArgs": {"portMappings": []},
		"result": {"cniVersion": "0.4.0", "interfaces": [{"name": "eth0"}], "ips": [
			{"version": "4", "interface": 0, "address": "10.9.0.2/24"}, {"version": "6", "interface": 0, "address": "fd09::2/64"}]}}`,
		id, encoded, network, netns)
}

func TestDetach(t *testing.T) {
	t.Parallel()
	const id = "0123abcd"
	old := `{"cniVersion": "0.4.0", "name": "old", "plugins": [{"type": "fake", "notes": "NOTES"}]}`
	for name, tt := range map[string]struct {
		conf   string            // in the configuration directory
		cache  map[string]string // file name to network, content "" is a torn file
		config string            // what the cache remembers
		plan   bool              // a plan for the network a is given
		bare   bool              // a plan without a network is given
		bound  bool
		want   []string
	}{
		"as remembered, though the configuration is gone": {
			cache: map[string]string{"old-" + id + "-eth0": "old"}, config: old, bound: true,
			want: []string{"DEL fake old " + id + " berth-" + id},
		},
		"as remembered, though the configuration has changed": {
			conf: with(``), cache: map[string]string{"old-" + id + "-eth0": "old"}, config: old, bound: true,
			want: []string{"DEL fake old " + id + " berth-" + id},
		},
		"without a namespace, after a reboot or from cri-dockerd": {
			cache: map[string]string{"old-" + id + "-eth0": "old"}, config: old,
			want: []string{"DEL fake old " + id + " -"},
		},
		"cri-dockerd's loopback goes along": {
			cache:  map[string]string{"old-" + id + "-eth0": "old", "cni-loopback-" + id + "-eth0": "cni-loopback"},
			config: old, want: []string{"DEL fake old " + id + " -"},
		},
		"as planned, if libcni never came to remember": {
			plan: true, bound: true, want: []string{"DEL fake a " + id + " berth-" + id},
		},
		"as planned, if what libcni remembers is torn": {
			plan: true, cache: map[string]string{"a-" + id + "-eth0": ""}, want: []string{"DEL fake a " + id + " -"},
		},
		"as remembered and as planned, if these differ": {
			plan: true, cache: map[string]string{"old-" + id + "-eth0": "old"}, config: old,
			want: []string{"DEL fake old " + id + " -", "DEL fake a " + id + " -"},
		},
		"once, if these are the same": {
			plan: true, cache: map[string]string{"a-" + id + "-eth0": "a"}, config: with(``),
			want: []string{"DEL fake a " + id + " -"},
		},
		"from the current network, if nobody knows": {
			conf: with(``), bound: true, want: []string{"DEL fake a " + id + " berth-" + id},
		},
		"from the current network, with what is known of the pod": {
			conf: with(``), bare: true, want: []string{"DEL fake a " + id + " -"},
		},
		"from nothing, if there is nothing": {bound: true},
		"from nothing, if the network is useless": {
			conf: `{"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "nowhere"}]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newNode(t, "fake")
			var plan *Plan
			if tt.plan {
				file := d.conf("10-a.conflist", with(``))
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
					config := strings.ReplaceAll(tt.config, "NOTES", d.notes())
					text = cachedBy(id, network, "/proc/4711/ns/net", config)
				}
				d.cache(file, text)
			}
			d.cache("old-ffff-eth0", cachedBy("ffff", "old", "/proc/1/ns/net", old))
			if tt.bound {
				d.netns(id)
			}
			n := d.new()
			if err := n.Detach(t.Context(), plan, id); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, d.summary(), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
			if got := d.handles(); len(got) > 0 {
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

// A failed DEL leaves everything for the next try; Forget gives up.
func TestDetachThatFails(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.conf("10-a.conflist", with(`, "fail": ["DEL"], "result": `+dual))
	n := d.new()
	plan := d.planned(n, "pod")
	if _, err := n.Attach(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := n.Detach(t.Context(), nil, "pod")
		want := `detach from network "a": plugin type="fake" failed (delete): DEL is not my day`
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		if _, attached := n.Addresses("pod"); !attached || len(d.handles()) != 1 || len(d.cached()) != 1 {
			t.Error("something has been let go of")
		}
	}
	if err := n.Forget(t.Context(), "pod"); err != nil {
		t.Fatal(err)
	}
	if _, attached := n.Addresses("pod"); attached || len(d.handles()) != 0 || len(d.cached()) != 0 {
		t.Error("something is left")
	}
}

// A plugin in no directory is an error as long as somebody remembers.
func TestDetachWithoutThePlugin(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.conf("10-a.conflist", with(`, "result": `+dual))
	n := d.new()
	plan := d.planned(n, "pod")
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

func TestNamesThatAreNoIDs(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.conf("10-a.conflist", with(``))
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

func TestPodsOfCRIDockerd(t *testing.T) {
	t.Parallel()
	d := newNode(t)
	d.cache("old-0123-eth0", cachedBy("0123", "old", "/proc/4711/ns/net", with(``)))
	d.cache("cni-loopback-0123-eth0", cachedBy("0123", "cni-loopback", "/proc/4711/ns/net", `{}`))
	d.cache("cni-loopback-4567-eth0", cachedBy("4567", "cni-loopback", "/proc/4712/ns/net", `{}`))
	d.cache("podman-89ab-eth0", cachedBy("89ab", "podman", "/run/netns/netns-1", with(``)))
	d.cache("torn-cdef-eth0", ``)
	n := d.new()
	if got, want := n.Attached(), []string{"0123"}; !slices.Equal(got, want) {
		t.Errorf("attached: got %q, want %q", got, want)
	}
	for id, want := range map[string]int{"0123": 2, "4567": 0, "cdef": 0, "none": 0} {
		got, attached := n.Addresses(id)
		if len(got) != want || attached != (want > 0) {
			t.Errorf("pod %s: got %v, attached %v, want %d addresses", id, got, attached, want)
		}
	}
	if !n.InNetNS("0123", os.Getpid()) {
		t.Error("a pod without a bind is not in its namespace")
	}
	if got, want := n.NetNS("0123", 42), "/proc/42/ns/net"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestGC(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			d := newNode(t, "fake")
			conf := `{"cniVersion": "` + version + `", "name": "a", "plugins": [{"type": "fake", "notes": "NOTES", "result": ` + dual + `}]}`
			d.conf("10-a.conflist", conf)
			conf = strings.ReplaceAll(conf, "NOTES", d.notes())
			d.cache("a-0001-eth0", cachedBy("0001", "a", "/proc/1/ns/net", conf)) // still a pod
			d.cache("a-0002-eth0", cachedBy("0002", "a", "/proc/1/ns/net", conf)) // no more
			d.cache("a-0003-eth0", cachedBy("0003", "a", "/run/netns/cni-1", conf))
			d.cache("b-0004-eth0", cachedBy("0004", "b", "/proc/1/ns/net", conf))
			n := d.new()
			plan := d.planned(n, "0005") // since the start
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
			// The namespaces others remember are never entered.
			if diff := cmp.Diff([]string{"a-0001-eth0", "a-0003-eth0", "a-0005-eth0", "b-0004-eth0"}, d.cached()); diff != "" {
				t.Errorf("libcni's cache (-want +got):\n%s", diff)
			}
		})
	}
}

// A pod that comes while the plugins collect is not on their list, and so has
// to wait.
func TestAttachWaitsForGC(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.conf("10-a.conflist", with(`, "result": `+dual))
	n := d.new()
	plan := d.planned(n, "pod")
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

// A plugin that hangs in a GC does not keep new pods from their network.
func TestAttachStopsAGCThatHangs(t *testing.T) {
	d := newNode(t, "fake")
	d.conf("10-a.conflist", with(`, "result": `+dual))
	n := d.new()
	plan := d.planned(n, "pod")
	gc, _, done, err := n.beginGC(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() { <-gc.Done(); done() }() // as a plugin that is killed
	if _, err := n.Attach(t.Context(), plan); err != nil {
		t.Error(err)
	}
	if cause := context.Cause(gc); !errors.Is(cause, errPreempted) {
		t.Errorf("the GC ended with %v", cause)
	}
}

func TestRecent(t *testing.T) {
	var r recent
	for i := range 3 * recentSize {
		r.add(fmt.Sprint(i % (recentSize + 1)))
	}
	r.remove("5")
	r.add("7")
	if len(r.set) > recentSize || r.has("5") || !r.has("7") {
		t.Errorf("it has %d ids, 5: %v, 7: %v", len(r.set), r.has("5"), r.has("7"))
	}
}

// What a plugin has started must not survive it.
func TestKilledPluginsLeaveNobodyBehind(t *testing.T) {
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
	p := &plugins{log: (&logs{}).logger()}
	done := make(chan error, 1)
	go func() {
		_, err := p.ExecPlugin(ctx, script, nil, os.Environ())
		done <- err
	}()
	var pid string
	eventually(t, "the plugin has a child", func() bool {
		data, _ := os.ReadFile(pidFile)
		pid = strings.TrimSpace(string(data))
		return pid != ""
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was canceled", err)
	}
	eventually(t, "the child ends", func() bool {
		state, err := os.ReadFile("/proc/" + pid + "/stat")
		return err != nil || strings.Contains(string(state), ") Z ")
	})
}

func TestWhatAFailedPluginSays(t *testing.T) {
	for name, tt := range map[string]struct{ script, want string }{
		"an error of CNI":  {`echo '{"code": 7, "msg": "no", "details": "way"}'; exit 1`, "no; way"},
		"something else":   {`echo hello; echo there >&2; exit 3`, "hello; there: exit status 3"},
		"nothing":          {`exit 3`, "it said nothing: exit status 3"},
		"a signal":         {`kill -9 $$`, "it said nothing: signal: killed"},
		"JSON but no word": {`echo '{"code": 7}'; exit 1`, `{"code": 7}: exit status 1`},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "plugin")
			if err := os.WriteFile(path, []byte("#!/bin/sh\n"+tt.script+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			_, err := (&plugins{log: (&logs{}).logger()}).ExecPlugin(t.Context(), path, nil, nil)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

// Whatever a plugin prints, of it no more is kept than a result can be long.
func TestOutputOfAPluginIsBounded(t *testing.T) {
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
			out, err := (&plugins{log: (&logs{}).logger()}).ExecPlugin(t.Context(), path, nil, os.Environ())
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
