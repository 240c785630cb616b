package cnitemplate

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// containerdTemplate is like those that are in use with containerd.
const containerdTemplate = `{"name": "k8s-pod-network", "cniVersion": "1.0.0", "plugins": [
	{"type": "ptp", "mtu": 1460, "ipam": {"type": "host-local", "subnet": "{{.PodCIDR}}",
	 "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
	 "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]}}]}`

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

func load(t *testing.T, text string) (*Template, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "net.tmpl")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(file)
}

func TestRenderHasRangesAndRoutesOfEachFamily(t *testing.T) {
	own, err := load(t, containerdTemplate)
	if err != nil {
		t.Fatal(err)
	}
	builtIn, err := Load(Bridge)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		subnets        []netip.Prefix
		ranges, routes string
	}{
		"IPv4": {prefixes("10.244.0.0/24"), `[[{"subnet":"10.244.0.0/24"}]]`, `[{"dst":"0.0.0.0/0"}]`},
		"IPv6": {prefixes("fd00:1::/64"), `[[{"subnet":"fd00:1::/64"}]]`, `[{"dst":"::/0"}]`},
		"both": {
			prefixes("10.244.0.0/24", "fd00:1::/64"), `[[{"subnet":"10.244.0.0/24"}],[{"subnet":"fd00:1::/64"}]]`,
			`[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]`,
		},
	} {
		for _, template := range []*Template{own, builtIn} {
			data, network, err := template.Render(tt.subnets)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			var got struct {
				Name    string
				Plugins []struct {
					Type string
					IPAM struct {
						Type, Subnet   string
						Ranges, Routes json.RawMessage
					}
				}
			}
			if err := json.Unmarshal(data, &got); err != nil {
				t.Fatal(err)
			}
			ipam := got.Plugins[0].IPAM
			if compact(t, ipam.Ranges) != tt.ranges || compact(t, ipam.Routes) != tt.routes || got.Name != network {
				t.Errorf("%s: network %s with %+v", name, network, got)
			}
			if template == own && ipam.Subnet != tt.subnets[0].String() {
				t.Errorf("%s: PodCIDR %s", name, ipam.Subnet)
			}
			var types []string
			for _, plugin := range got.Plugins {
				types = append(types, plugin.Type)
			}
			if template == builtIn && !slices.Equal(types, []string{"bridge", "portmap", "firewall"}) {
				t.Errorf("the built-in template has the plugins %v", types)
			}
		}
	}
}

func compact(t *testing.T, text json.RawMessage) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestLoadRefusesTemplatesWithoutValidConfiguration(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"syntax":        {`{"name": "{{.PodCIDR`, "unclosed action"},
		"unknown value": {`{"name": "{{.PodCidr}}"}`, "there is no field PodCidr"},
		"not JSON":      {`{"name": "a", {{.PodCIDR}}`, "invalid character"},
		"single plugin": {`{"name": "a", "cniVersion": "1.0.0", "type": "bridge"}`, "names no plugins"},
		"no name":       {`{"cniVersion": "1.0.0", "plugins": [{"type": "bridge"}]}`, "name"},
		"newer CNI":     {`{"name": "a", "cniVersion": "9.0.0", "plugins": [{"type": "bridge"}]}`, "9.0.0 is newer"},
	} {
		if _, err := load(t, tt.text); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want ... %s", name, err, tt.want)
		}
	}
	if _, err := Load("/none/net.tmpl"); err == nil || !strings.Contains(err.Error(), "/none/net.tmpl") {
		t.Errorf("no file: %v", err)
	}
	// A template may be for dual-stack nodes only.
	both, err := load(t, strings.ReplaceAll(containerdTemplate, "{{.PodCIDR}}", "{{index .PodCIDRRanges 1}}"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := both.Render(prefixes("10.244.0.0/24")); err == nil {
		t.Error("a template for two address families is rendered with one")
	}
}

// memory is a Record.
type memory struct {
	text string
	err  error
}

func (m *memory) Get() string           { return m.text }
func (m *memory) Put(text string) error { m.text = text; return m.err }

// A fixture is a configuration directory with a Generator that can be restarted.
type fixture struct {
	t      *testing.T
	cfg    Config
	record *memory
	*Generator
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	template, err := Load(Bridge)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, record: &memory{}}
	f.cfg = Config{Dir: filepath.Join(t.TempDir(), "net.d"), Template: template, Record: f.record, Log: slog.New(slog.DiscardHandler)}
	f.restart()
	return f
}

func (f *fixture) restart() { f.Generator = New(f.cfg) }

func (f *fixture) write(name, text string) {
	f.t.Helper()
	if err := os.MkdirAll(f.cfg.Dir, 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.cfg.Dir, name), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) remove(name string) {
	f.t.Helper()
	if err := os.Remove(filepath.Join(f.cfg.Dir, name)); err != nil {
		f.t.Fatal(err)
	}
}

// has calls Sync and fails unless the generated file then has text in it; "" is for no file.
func (f *fixture) has(text string, subnets ...string) {
	f.t.Helper()
	if err := f.Sync(prefixes(subnets...)); err != nil && len(subnets) > 0 {
		f.t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(f.cfg.Dir, FileName))
	if (err == nil) != (text != "") || !strings.Contains(string(data), text) {
		f.t.Fatalf("the file has %q, %v; want %q", data, err, text)
	}
}

func TestFileFollowsThePodCIDR(t *testing.T) {
	f := newFixture(t)
	if err := f.Sync(nil); err == nil || !strings.Contains(err.Error(), "set pod-cidr") {
		t.Errorf("without a pod CIDR: %v", err)
	}
	f.has("")
	f.has("10.1.0.0/24", "10.1.0.0/24")
	f.restart()
	f.has("10.1.0.0/24", "10.1.0.0/24")
	f.has("10.2.0.0/24", "10.2.0.0/24")
	f.has("fd00::/64", "10.2.0.0/24", "fd00::/64")
	f.has("")
	f.has("10.3.0.0/24", "10.3.0.0/24")
	f.cfg.Template = nil
	f.restart()
	f.has("", "10.3.0.0/24")
	if f.record.text != "" {
		t.Errorf("recorded without a file: %q", f.record.text)
	}
}

// Every other configuration wins, also one that is not valid, as with containerd, and the file comes back when it has gone.
func TestOtherConfigurationsReplaceTheFile(t *testing.T) {
	f := newFixture(t)
	const cidr = "10.1.0.0/24"
	for _, name := range []string{"10-flannel.conflist", "zz.conf", "a.json"} {
		f.has(cidr, cidr)
		f.write(name, `{"name": `)
		f.has("", cidr)
		f.remove(name)
	}
	f.write("README", "x")
	f.write("10-old.conflist.bak", "x")
	f.has(cidr, cidr)
	// With a default network of the template's name, others do not count.
	f.write("10-other.conflist", "{}")
	f.cfg.DefaultNetwork = "berth"
	f.restart()
	f.has(cidr, cidr)
	f.cfg.DefaultNetwork = "other"
	f.restart()
	if err := f.Sync(prefixes(cidr)); err == nil || !strings.Contains(err.Error(), `makes the network "berth", and cni-default-network is "other"`) {
		t.Errorf("with another default network: %v", err)
	}
}

// A file that was not written by berth, or was changed since, is neither replaced nor removed.
func TestFilesOfOthersAreKept(t *testing.T) {
	f := newFixture(t)
	f.write(FileName, "mine")
	f.has("mine", "10.1.0.0/24")
	f.cfg.DefaultNetwork = "berth"
	f.restart()
	if err := f.Sync(prefixes("10.1.0.0/24")); err == nil || !strings.Contains(err.Error(), "is not replaced: remove it") {
		t.Errorf("the file of another: %v", err)
	}
	f.cfg.DefaultNetwork = ""
	f.restart()
	f.remove(FileName)
	f.has("10.1.0.0/24", "10.1.0.0/24")
	f.write(FileName, "changed")
	f.has("changed", "10.2.0.0/24")
	f.cfg.Template = nil
	f.restart()
	f.has("changed", "10.2.0.0/24")
	// One whose record was lost is known by its content.
	g := newFixture(t)
	g.has("10.1.0.0/24", "10.1.0.0/24")
	g.record.text = ""
	g.restart()
	g.has("10.1.0.0/24", "10.1.0.0/24")
	g.has("10.2.0.0/24", "10.2.0.0/24")
	// A link is the operator's.
	l := newFixture(t)
	l.has("10.1.0.0/24", "10.1.0.0/24")
	if err := os.Rename(filepath.Join(l.cfg.Dir, FileName), filepath.Join(l.cfg.Dir, "target")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("target", filepath.Join(l.cfg.Dir, FileName)); err != nil {
		t.Fatal(err)
	}
	l.has("10.1.0.0/24", "10.2.0.0/24")
}

// A daemon that is killed between the record and the write, or within the write, knows the file in its next life.
func TestInterruptedWriteIsFinished(t *testing.T) {
	f := newFixture(t)
	f.has("10.1.0.0/24", "10.1.0.0/24")
	next, _, err := f.cfg.Template.Render(prefixes("10.2.0.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	f.record.text = digest(next) + " " + f.written[0]
	f.write("."+FileName+".123", "half")
	f.restart()
	if entries, err := os.ReadDir(f.cfg.Dir); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
	f.has("10.2.0.0/24", "10.2.0.0/24")
	f.record.err = os.ErrPermission
	if err := f.Sync(prefixes("10.3.0.0/24")); err == nil {
		t.Error("a file that is not recorded was written")
	}
	f.record.err = nil
	f.has("10.4.0.0/24", "10.4.0.0/24")
}
