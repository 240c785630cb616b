package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// checkLeftovers checks for a running cri-dockerd and for checkpoints of dockershim.
func (c *checker) checkLeftovers() {
	if pids := c.processes("cri-dockerd"); len(pids) > 0 {
		c.fail("cri-dockerd", fmt.Sprintf("it runs (process %s): two adapters on one node disturb each other", strings.Join(pids, ", ")),
			"find its unit with: systemctl status "+pids[0]+", stop and disable it; running pods are not affected")
	}
	if checkpoints, _ := filepath.Glob(c.path("/var/lib/dockershim/sandbox/*")); len(checkpoints) > 0 && c.daemon.RootDir != "/var/lib/dockershim" {
		c.warn("dockershim", fmt.Sprintf("%d pods have checkpoints of dockershim", len(checkpoints)),
			"they are not used; once no pod from before the migration runs: rm -r /var/lib/dockershim")
	}
	if !c.has("cri-dockerd") && !c.has("dockershim") {
		c.ok("cri-dockerd", "it does not run, and has left nothing")
	}
}

// processes returns the IDs of the processes of that name which are not berthd under another name.
func (c *checker) processes(name string) (pids []string) {
	files, _ := filepath.Glob(c.path("/proc/[0-9]*/comm"))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(text)) != name {
			continue
		}
		exe, err := os.Readlink(filepath.Join(filepath.Dir(file), "exe"))
		// After an upgrade exe is "/usr/bin/berthd (deleted)": proc_pid_exe(5).
		if err != nil || filepath.Base(strings.TrimSuffix(exe, " (deleted)")) == "berthd" {
			continue
		}
		pids = append(pids, filepath.Base(filepath.Dir(file)))
	}
	return pids
}
