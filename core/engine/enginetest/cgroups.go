package enginetest

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"berth/core/cgroup"
)

// InCgroups returns a function for Engine.PID that starts a process for each container, in a
// cgroup named after the container as with a real Engine.
func InCgroups(t testing.TB) func(id string) int {
	controllers := []string{"cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb"}
	parent := fmt.Sprintf("berth-test-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))
	all, err := cgroup.Create(parent, controllers)
	t.Cleanup(func() { _ = all.Remove() })
	if err != nil {
		t.Skipf("needs root, for cgroups of its own: %v", err)
	}
	var mu sync.Mutex // guards pids
	pids := map[string]int{}
	return func(id string) int {
		mu.Lock()
		defer mu.Unlock()
		if pids[id] != 0 {
			return pids[id]
		}
		sleeper := exec.Command("sleep", "1000")
		g, err := cgroup.Create(parent+"/"+id, controllers)
		t.Cleanup(func() { _ = g.Remove() })
		if err == nil {
			err = sleeper.Start()
		}
		if err != nil {
			t.Error(err)
			return 0
		}
		t.Cleanup(func() { _ = sleeper.Process.Kill(); _ = sleeper.Wait() })
		dirs := slices.Collect(maps.Values(g.V1))
		if g.V2 != "" {
			dirs = append(dirs, g.V2)
		}
		for _, dir := range dirs {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(sleeper.Process.Pid)), 0); err != nil {
				t.Error(err)
			}
		}
		pids[id] = sleeper.Process.Pid
		return pids[id]
	}
}
