package network

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"berth/network/cnitemplate"
	"berth/network/networktest"
)

// list returns a .conflist of the network name with one plugin.
func list(name, plugin string) string {
	return `{"cniVersion": "1.0.0", "name": "` + name + `", "plugins": [{"type": "` + plugin + `", "callLog": "CALLS"}]}`
}

func TestFirstCompleteNetworkIsSelected(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		files map[string]string
		want  string // network
		why   string // without any; DIR and BIN stand for directories
	}{
		"no file": {
			why: "no CNI network: there is no .conflist, .conf or .json file in DIR",
		},
		"other files": {
			files: map[string]string{"README": "x", "10-a.conflist.bak": list("a", "fake")},
			why:   "no CNI network: there is no .conflist, .conf or .json file in DIR",
		},
		"a list": {
			files: map[string]string{"10-a.conflist": list("a", "fake")},
			want:  "a",
		},
		"a single plugin": {
			files: map[string]string{"10-a.conf": `{"cniVersion": "0.4.0", "name": "single", "type": "fake"}`},
			want:  "single",
		},
		"a single plugin in .json": {
			files: map[string]string{"10-a.json": `{"name": "single", "type": "fake"}`},
			want:  "single",
		},
		"the first by file name": {
			files: map[string]string{"20-b.conflist": list("b", "fake"), "10-c.conflist": list("c", "fake")},
			want:  "c",
		},
		"the first that is valid": {
			files: map[string]string{
				"10-a.conflist": `{"name": "a", `, "11-b.conf": `{"name": "b"}`, "12-c.conflist": `{"name": "c/d", "plugins": [{"type": "fake"}]}`,
				"13-d.conflist": `{"name": "d", "plugins": []}`, "14-e.conflist": list("e", "fake"),
			},
			want: "e",
		},
		"the first that is complete": {
			files: map[string]string{"10-a.conflist": list("a", "nowhere"), "20-b.conflist": list("b", "fake")},
			want:  "b",
		},
		"a broken file": {
			files: map[string]string{"10-a.conflist": `{"name": "a", `},
			why:   "no CNI network: DIR/10-a.conflist is not valid: error parsing configuration list: unexpected end of JSON input",
		},
		"a list in a .conf": {
			files: map[string]string{"10-a.conf": list("a", "fake")},
			why: "no CNI network: DIR/10-a.conf is not valid: error parsing configuration: missing 'type'" +
				" (a list of plugins belongs into a .conflist file)",
		},
		"no plugins": {
			files: map[string]string{"10-a.conflist": `{"name": "a"}`},
			why:   "no CNI network: DIR/10-a.conflist is not valid: it names no plugins",
		},
		"a newer CNI version": {
			files: map[string]string{"10-a.conflist": `{"cniVersion": "2.0.0", "name": "a", "plugins": [{"type": "fake"}]}`},
			why:   "no CNI network: DIR/10-a.conflist is not valid: cniVersion 2.0.0 is newer than 1.1.0, the newest known here",
		},
		"a plugin is missing": {
			files: map[string]string{"10-a.conflist": list("a", "nowhere")},
			why:   `CNI network "a" of DIR/10-a.conflist: there is no plugin "nowhere" in BIN/bin or BIN/more`,
		},
		"a plugin is a path": {
			files: map[string]string{"10-a.conflist": list("a", "../fake")},
			why:   `CNI network "a" of DIR/10-a.conflist: there is no plugin "../fake" in BIN/bin or BIN/more`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newNode(t, "fake")
			for file, text := range tt.files {
				d.conf(file, text)
			}
			n := d.new()
			plan, planErr := n.Plan(Pod{ID: "pod"})
			statusErr := n.Status(t.Context())
			for what, err := range map[string]error{"Plan": planErr, "Status": statusErr} {
				got := ""
				if err != nil {
					got = strings.NewReplacer(d.cfg.ConfDir, "DIR", d.dir, "BIN").Replace(err.Error())
					if !errdefs.IsUnavailable(err) {
						t.Errorf("%s: the error %v is not of kind Unavailable", what, err)
					}
				}
				if got != tt.why {
					t.Errorf("%s says\n got %s\nwant %s", what, got, tt.why)
				}
			}
			if plan.Network != tt.want {
				t.Errorf("got network %q, want %q", plan.Network, tt.want)
			}
		})
	}
}

func TestStatusNamesMissingDirectory(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	if err := os.Remove(d.cfg.ConfDir); err != nil {
		t.Fatal(err)
	}
	err := d.new().Status(t.Context())
	want := "no CNI network: the directory " + d.cfg.ConfDir + " does not exist"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestPluginThatIsNotExecutableIsMissing(t *testing.T) {
	t.Parallel()
	d := newNode(t)
	if err := os.WriteFile(filepath.Join(d.dir, "bin", "fake"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d.conf("10-a.conflist", list("a", "fake"))
	if err := d.new().Status(t.Context()); err == nil || !strings.Contains(err.Error(), `no plugin "fake"`) {
		t.Errorf("got %v, want that the plugin is missing", err)
	}
}

func TestPluginInstalledLaterIsFoundWithoutEvent(t *testing.T) {
	t.Parallel()
	d := newNode(t)
	d.conf("10-a.conflist", list("a", "fake"))
	n := d.new()
	if err := n.Status(t.Context()); err == nil {
		t.Fatal("ready without its plugin")
	}
	d.install("fake")
	if err := n.Status(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := n.Plan(Pod{ID: "pod"}); err != nil {
		t.Error(err)
	}
}

// While a plugin is being replaced, no pod must get the next network.
func TestNetworkStaysSelectedWhilePluginIsReplaced(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake", "other")
	d.conf("10-a.conflist", list("a", "fake"))
	d.conf("20-b.conflist", list("b", "other"))
	n := d.new()
	if _, err := n.Plan(Pod{ID: "pod"}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(d.dir, "bin", "fake")); err != nil {
		t.Fatal(err)
	}
	n.conf.Reload()
	plan, err := n.Plan(Pod{ID: "pod"})
	if err != nil || plan.Network != "a" {
		t.Errorf("got network %q, %v, want a", plan.Network, err)
	}
	if err := n.Status(t.Context()); err == nil {
		t.Error("ready without its plugin")
	}
}

// Plugins in a directory named after the network become part of the plan.
func TestPluginsInSubdirectoryAreInPlan(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake", "extra")
	d.conf("10-a.conflist", list("a", "fake"))
	d.conf("a/10-extra.conf", `{"type": "extra", "capabilities": {"dns": true}}`)
	d.conf("20-b.conflist", list("b", "fake"))
	plan, err := d.new().Plan(Pod{ID: "pod"})
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Plugins []struct{ Type string }
	}
	if err := json.Unmarshal(plan.Config, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]struct{ Type string }{{"fake"}, {"extra"}}, got.Plugins); diff != "" {
		t.Errorf("plugins of the plan (-want +got):\n%s", diff)
	}
}

// The network with the name is used, whichever file it is in, and follows the files.
func TestDefaultNetworkIsSelectedByName(t *testing.T) {
	t.Parallel()
	d := newNode(t, "fake")
	d.cfg.DefaultNetwork = "b"
	d.conf("10-a.conflist", list("a", "fake"))
	d.conf("20-c.conflist", list("c", "fake"))
	n := d.new()
	const want = `no CNI network "b" (cni-default-network), there are: "a" of DIR/10-a.conflist, "c" of DIR/20-c.conflist`
	if err := n.Status(t.Context()); !errdefs.IsUnavailable(err) || err.Error() != strings.ReplaceAll(want, "DIR", d.cfg.ConfDir) {
		t.Errorf("without the network: %v", err)
	}
	if _, err := n.Plan(Pod{ID: "aaaa"}); !errdefs.IsUnavailable(err) {
		t.Errorf("plan without the network: %v", err)
	}
	d.conf("30-b.conflist", `{"name": "b", `)
	n.conf.Reload()
	if err := n.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "30-b.conflist is not valid") {
		t.Errorf("with an invalid file: %v", err)
	}
	d.conf("30-b.conflist", list("b", "nowhere"))
	d.conf("40-b.conflist", list("b", "fake"))
	n.conf.Reload()
	if err := n.Status(t.Context()); err != nil {
		t.Error(err)
	}
	plan, err := n.Plan(Pod{ID: "aaaa"})
	if err != nil || plan.Network != "b" || !strings.Contains(string(plan.Config), `"fake"`) {
		t.Errorf("plan %s of %s, %v", plan.Config, plan.Network, err)
	}
	// Pods are detached with the configuration that they were attached with.
	n.conf.Reload()
	d.cfg.DefaultNetwork = "none"
	if err := d.new().Detach(t.Context(), &plan, "aaaa"); err != nil {
		t.Error(err)
	}
	if calls := d.calls(); len(calls) != 1 || calls[0].Command != "DEL" || calls[0].Config["name"] != "b" {
		t.Errorf("calls %+v", calls)
	}
}

// memory is a cnitemplate.Record.
type memory struct{ text string }

func (m *memory) Get() string           { return m.text }
func (m *memory) Put(text string) error { m.text = text; return nil }

// The file appears with the pod CIDR, follows it, and gives way to another configuration.
func TestConfigurationIsMadeOfThePodCIDR(t *testing.T) {
	t.Parallel()
	d := newNode(t, "bridge", "portmap", "firewall")
	template, err := cnitemplate.Load(cnitemplate.Bridge)
	if err != nil {
		t.Fatal(err)
	}
	d.cfg.Template, d.cfg.Generated = template, &memory{}
	n := d.new()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- n.Run(ctx) }()
	defer func() { cancel(); <-done }()
	status := func() string {
		if err := n.Status(t.Context()); err != nil {
			return err.Error()
		}
		return ""
	}
	if got := status(); !strings.Contains(got, "waits for the pod CIDR") {
		t.Errorf("without a pod CIDR: %s", got)
	}
	if err := n.SetPodCIDR("10.1.0.0/24,fd00::/64"); err != nil {
		t.Fatal(err)
	}
	becomes := func(want string) {
		t.Helper()
		networktest.Eventually(t, "the status is "+want, func() bool { return strings.HasSuffix(status(), want) })
	}
	// The plugin for addresses is needed too, although the list does not name it.
	becomes(`CNI network "berth" of ` + filepath.Join(d.cfg.ConfDir, cnitemplate.FileName) + `: there is no plugin "host-local" in ` + strings.Join(d.cfg.BinDirs, " or "))
	d.install("host-local")
	becomes("")
	plan, err := n.Plan(Pod{ID: "aaaa"})
	if err != nil || !strings.Contains(string(plan.Config), "10.1.0.0/24") || !strings.Contains(string(plan.Config), "fd00::/64") {
		t.Errorf("plan %s, %v", plan.Config, err)
	}
	d.install("fake")
	d.conf("50-cluster.conflist", list("cluster", "fake"))
	networktest.Eventually(t, "the network of the cluster is used", func() bool {
		plan, err := n.Plan(Pod{ID: "aaaa"})
		return err == nil && plan.Network == "cluster"
	})
	networktest.Eventually(t, "the made file is removed", func() bool {
		_, err := os.Stat(filepath.Join(d.cfg.ConfDir, cnitemplate.FileName))
		return errors.Is(err, fs.ErrNotExist)
	})
}
