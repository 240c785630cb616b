package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/cmd/berthd/internal/config"
	"berth/core/engine"
)

func TestSpecFilesAreChecked(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	without := engine.Features{DefaultRuntime: "runc", Runtimes: map[string]engine.Runtime{"runc": {RuncShim: true}}}
	with := engine.Features{DefaultRuntime: "runc", Runtimes: map[string]engine.Runtime{"runc": {RuncShim: true}, "berth": {RuncShim: true, Instructions: "/run/berth/oci"}}}
	check := func(when string, cfg config.Config, features engine.Features, want ...string) {
		t.Helper()
		cfg.RunDir = "/run/berth"
		c := &checker{daemon: cfg}
		c.checkSpecFiles(features)
		var got []string
		for _, r := range c.report {
			got = append(got, string(r.State)+" "+r.Check+": "+r.Message)
		}
		for i, w := range want {
			if i >= len(got) || !strings.HasPrefix(got[i], w) {
				t.Errorf("%s: %q, want %q", when, got, want)
				return
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
	check("no files", config.Config{SpecDir: dir}, without)
	check("no directory", config.Config{HooksDirs: []string{dir + "/none"}}, with, "fail hooks-dirs: containers that it is for cannot be created: hooks-dirs: "+dir+"/none: ")
	options := config.Config{DeviceOwnership: true, PodUTSNamespace: true, WithoutHostDevices: []string{"kata"}}
	check("options", options, with)
	const refused = ": containers that it is for are refused: Docker does not have the OCI runtime of berth"
	check("options without the runtime", options, without, "fail device-ownership-from-security-context"+refused, "fail pod-uts-namespace"+refused, "fail privileged-without-host-devices"+refused)
	if err := os.WriteFile(filepath.Join(dir, "default.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	check("a file", config.Config{SpecDir: dir}, with, "ok spec-dir: 1 files")
	if err := os.WriteFile(filepath.Join(dir, "docker.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	check("a file for no handler", config.Config{SpecDir: dir}, with, "warn spec-dir: docker.json has no effect: docker is no runtime handler of this node", "ok spec-dir: 2 files")
	check("a file without the runtime", config.Config{SpecDir: dir}, without, "warn spec-dir: docker.json", "fail spec-dir"+refused)
}
