package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/cmd/berthd/internal/config"
	"berth/core/engine"
)

// result returns the state and the message of the only result.
func result(r Report) string {
	if len(r) != 1 {
		return ""
	}
	return string(r[0].State) + " " + r[0].Message
}

func TestVerifiersAreChecked(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when, dir string, most int, want string) {
		t.Helper()
		c := &checker{daemon: config.Config{VerifierDir: dir, VerifierMax: most}}
		c.checkVerifiers()
		if got := result(c.report); !strings.HasPrefix(got, want) || (want == "") != (got == "") {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
	check("without verifiers", "", 10, "")
	check("no such directory", filepath.Join(dir, "none"), 10, "fail no image can be pulled: ")
	check("empty", dir, 10, "warn all images may be pulled: ")
	for _, name := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	check("good", dir, 10, "ok 2 in ")
	check("all", dir, -1, "ok 2 in ")
	check("too many", dir, 1, "warn 1 of 2 programs in ")
	if err := os.Chmod(filepath.Join(dir, "a"), 0o722); err != nil { //nolint:gosec // what is tested
		t.Fatal(err)
	}
	check("writable by others", dir, 10, "fail no image can be pulled: "+dir+"/a can be changed by others than root (mode 0722)")
}

func TestMirrorsAreChecked(t *testing.T) {
	root := t.TempDir()
	hosts := filepath.Join(root, "etc/docker/certs.d/quay.io")
	if err := os.MkdirAll(hosts, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(hosts, "hosts.toml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	reads := engine.Features{HostsTOML: true}
	for name, tt := range map[string]struct {
		root     string
		daemon   config.Config
		features engine.Features
		want     string
	}{
		"none":                 {t.TempDir(), config.Config{}, reads, ""},
		"ignored":              {root, config.Config{}, engine.Features{}, "warn Docker does not read hosts.toml of quay.io"},
		"read":                 {root, config.Config{}, reads, "ok in hosts.toml: quay.io"},
		"with verifiers":       {root, config.Config{VerifierDir: "/v"}, reads, "warn Docker does not use hosts.toml when it looks up"},
		"twice":                {root, config.Config{RegistryMirrors: []string{"quay.io=m.test"}}, reads, "warn a registry has mirrors in hosts.toml and"},
		"docker.io twice":      {t.TempDir(), config.Config{RegistryMirrors: []string{"docker.io=m.test"}}, engine.Features{HubMirrors: []string{"https://h.test/"}}, "warn docker.io has mirrors in daemon.json and"},
		"docker.io, another's": {t.TempDir(), config.Config{RegistryMirrors: []string{"quay.io=m.test"}}, engine.Features{HubMirrors: []string{"https://h.test/"}}, "ok of docker.io in daemon.json: https://h.test/; in registry-mirrors: quay.io=m.test"},
	} {
		c := &checker{Config: Config{Root: tt.root}, daemon: tt.daemon}
		c.checkMirrors(tt.features)
		if got := result(c.report); !strings.HasPrefix(got, tt.want) || (tt.want == "") != (got == "") {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}
