package container

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"berth/core/cgroup"
	"berth/core/todocker"
)

// group makes a directory that stands for a cgroup.
func group(t *testing.T, files map[string]string) cgroup.Group {
	t.Helper()
	g := cgroup.Group{V2: t.TempDir()}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(g.V2, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

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

// What an update has written is put back; a set of CPUs that was open is the Engine's to
// tell. What cannot be written is refused before anything is.
func TestWhatWasIsPutBack(t *testing.T) {
	g := group(t, map[string]string{"memory.high": "max\n", "cpuset.cpus": "\n", "memory.oom.group": "0\n"})
	knobs := []todocker.CgroupSetting{{File: "memory.high", Value: "444"}, {File: "memory.oom.group", Value: "1"}, {File: "cpuset.cpus", Value: "0", Optional: true}, {File: "none", Value: "1", Optional: true}}
	was, err := present(knobs, g)
	if err != nil {
		t.Fatal(err)
	}
	want := []todocker.CgroupSetting{{File: "memory.high", Value: "max"}, {File: "memory.oom.group", Value: "0"}}
	if diff := cmp.Diff(want, was); diff != "" {
		t.Errorf("before (-want +got):\n%s", diff)
	}
	if err := write(knobs, g); err != nil {
		t.Fatal(err)
	}
	if err := putBack(was, g); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(map[string]string{"memory.high": "max\n", "cpuset.cpus": "0", "memory.oom.group": "0\n"}, contents(t, g)); diff != "" {
		t.Errorf("afterwards (-want +got):\n%s", diff)
	}
	if _, err := present([]todocker.CgroupSetting{{File: "no.such", Value: "1"}}, g); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a file that there is not: %v, want an invalid argument", err)
	}
	if _, err := present([]todocker.CgroupSetting{{File: "memory.high"}}, cgroup.Group{V2: g.V2 + "/gone"}); err == nil || errdefs.IsInvalidArgument(err) {
		t.Errorf("a cgroup that has ended: %v", err)
	}
}
