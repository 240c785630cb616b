package resources

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"berth/core/cgroup"
	"berth/core/limits"
)

// newGroup makes a directory that stands for a cgroup.
func newGroup(t *testing.T, files map[string]string) cgroup.Group {
	t.Helper()
	g := cgroup.Group{V2: t.TempDir()}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(g.V2, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// contents returns the files of a cgroup.
func contents(t *testing.T, g cgroup.Group) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(g.V2)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(g.V2, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(text)
	}
	return out
}

func TestRestoreSettingsTakesBackWhatWasWritten(t *testing.T) {
	group := newGroup(t, map[string]string{"memory.high": "max\n", "cpuset.cpus": "\n", "memory.oom.group": "0\n"})
	settings := []limits.CgroupSetting{{File: "memory.high", Value: "444"}, {File: "memory.oom.group", Value: "1"}, {File: "cpuset.cpus", Value: "0", Optional: true}, {File: "none", Value: "1", Optional: true}}
	saved, err := readSettings(settings, group)
	if err != nil {
		t.Fatal(err)
	}
	// An empty set of CPUs cannot be written back: the update of Docker reverts it.
	want := []limits.CgroupSetting{{File: "memory.high", Value: "max"}, {File: "memory.oom.group", Value: "0"}}
	if diff := cmp.Diff(want, saved); diff != "" {
		t.Errorf("readSettings (-want +got):\n%s", diff)
	}
	if err := writeSettings(settings, group); err != nil {
		t.Fatal(err)
	}
	if err := restoreSettings(saved, group); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(map[string]string{"memory.high": "max\n", "cpuset.cpus": "0", "memory.oom.group": "0\n"}, contents(t, group)); diff != "" {
		t.Errorf("after restoreSettings (-want +got):\n%s", diff)
	}
}

func TestReadSettingsRefusesAFileThatTheNodeDoesNotHave(t *testing.T) {
	group := newGroup(t, nil)
	if _, err := readSettings([]limits.CgroupSetting{{File: "no.such", Value: "1"}}, group); !errdefs.IsInvalidArgument(err) {
		t.Errorf("missing file: %v, want InvalidArgument", err)
	}
	if _, err := readSettings([]limits.CgroupSetting{{File: "memory.high"}}, cgroup.Group{V2: group.V2 + "/gone"}); ignoreExited(err) != nil || err == nil {
		t.Errorf("cgroup of a container that has exited: %v, want NotExist", err)
	}
}

func TestIgnoreExitedDropsOnlyErrorsOfExitedProcesses(t *testing.T) {
	for _, err := range []error{syscall.ENODEV, syscall.ESRCH, syscall.ENOENT} {
		if ignoreExited(err) != nil {
			t.Errorf("%v is an error", err)
		}
	}
	if ignoreExited(syscall.EACCES) == nil {
		t.Error("EACCES was dropped")
	}
}
