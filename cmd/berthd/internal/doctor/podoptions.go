package doctor

import (
	"os"
	"path/filepath"
	"slices"

	"berth/core/engine"
	"berth/core/names"
	"berth/core/podpolicy"
)

// programDirs are the directories of PATH in which containerd, as a service, finds its shims.
var programDirs = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/opt/containerd/bin"}

// checkPodOptions checks that Docker and the node can do what the options let pods have.
func (c *checker) checkPodOptions(features engine.Features) {
	policy, err := podpolicy.New(c.daemon.PodOptions())
	if err != nil { // the configuration was checked when it was read
		c.fail("pod options", err.Error(), "correct the option")
		return
	}
	for _, l := range policy.Limitations(features) {
		c.warn(l.Option, l.Reason, l.Fix)
	}
	for _, shim := range policy.Shims() {
		program := names.ShimProgram(shim)
		installed := slices.ContainsFunc(programDirs, func(dir string) bool {
			info, err := os.Stat(c.path(filepath.Join(dir, program)))
			return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
		})
		switch {
		case !installed:
			c.warn(podpolicy.ShimRuntimesOption, program+", the program of "+shim+", is in none of the usual directories", "install it where containerd finds programs")
		case !c.has(podpolicy.ShimRuntimesOption, Warn):
			c.ok(podpolicy.ShimRuntimesOption, shim+" is installed")
		}
	}
}
