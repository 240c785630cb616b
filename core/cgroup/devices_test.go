package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestPathIsRelativeToTheMountPoint(t *testing.T) {
	for want, g := range map[string]Group{
		"/kubepods/pod1/2": {V2: Root + "/kubepods/pod1/2"},
		"/kubepods/pod1":   {V1: map[string]string{"memory": Root + "/memory/kubepods/pod1", "pids": Root + "/pids/other"}},
		"/":                {V2: Root},
	} {
		if got := g.Path(); got != want {
			t.Errorf("%v: %s, want %s", g, got, want)
		}
	}
}

// Containers may create cgroups below their own.
func TestProcessesListsCgroupsBelow(t *testing.T) {
	dir := t.TempDir()
	for name, pids := range map[string]string{"": "1\n", "init.scope": "2\n3\n", "a/b": "4\n"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "cgroup.procs"), []byte(pids), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Processes(Group{V2: dir})
	slices.Sort(got)
	if err != nil || !slices.Equal(got, []int{1, 2, 3}) {
		// a has no cgroup.procs, as if it had been removed meanwhile.
		t.Errorf("%v, %v", got, err)
	}
}

func TestDevicesOfKernelsWithoutRecursiveCounters(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "blkio.throttle.io_service_bytes"), []byte("8:0 Read 5\n8:16 Write 6\nTotal 11\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := ReadDeviceIO(Group{V1: map[string]string{"blkio": dir}})
	if err != nil || len(got) != 2 || got[0].Bytes["Read"] != 5 || got[1].Minor != "16" || got[1].Bytes["Write"] != 6 {
		t.Errorf("%v, %v", got, err)
	}
	for _, g := range []Group{{V1: map[string]string{}}, {V2: dir}} {
		if got, err := ReadDeviceIO(g); err != nil || len(got) != 0 {
			t.Errorf("%v: %v, %v", g, got, err)
		}
	}
}
