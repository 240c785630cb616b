package doctor

import (
	"os"
	"strings"
	"testing"

	"berth/cmd/berthd/internal/config"
	"berth/core/engine"
)

func TestOptionsOfRestoredContainersAreChecked(t *testing.T) {
	dir := t.TempDir()
	without := engine.Features{DefaultRuntime: "runc", Runtimes: map[string]engine.Runtime{"runc": {RuncShim: true}}}
	with := engine.Features{DefaultRuntime: "runc", Runtimes: map[string]engine.Runtime{"runc": {RuncShim: true}, "berth": {RuncShim: true, Instructions: "/run/berth/oci"}}}
	for name, test := range map[string]struct {
		cfg      config.Config
		features engine.Features
		mode     os.FileMode
		want     []string // results
		set      bool
	}{
		"off":               {config.Config{}, without, 0o700, nil, false},
		"on":                {config.Config{RestoreArchiveDir: dir, RestoreImages: []string{"a"}}, with, 0o700, nil, true},
		"no OCI runtime":    {config.Config{RestoreArchiveDir: dir, RestoreImages: []string{"a"}}, without, 0o700, []string{"restore-archive-dir: containers that are to be", "restore-images: containers that are to be"}, true},
		"others can change": {config.Config{RestoreArchiveDir: dir}, with, 0o777, []string{"restore-archive-dir: no container is restored from an archive: " + dir}, true},
		"no directory":      {config.Config{RestoreArchiveDir: dir + "/none"}, with, 0o700, []string{"restore-archive-dir: no container is restored from an archive: lstat"}, true},
	} {
		if err := os.Chmod(dir, test.mode); err != nil {
			t.Fatal(err)
		}
		test.cfg.RunDir = "/run/berth"
		c := &checker{daemon: test.cfg, engine: &test.features}
		if set := c.checkRestore(); set != test.set || len(c.report) != len(test.want) {
			t.Errorf("%s: %v, %v", name, set, c.report)
			continue
		}
		for i, r := range c.report {
			if got := r.Check + ": " + r.Message; r.State != Fail || !strings.HasPrefix(got, test.want[i]) {
				t.Errorf("%s: %q, want %q", name, got, test.want[i])
			}
		}
	}
}
