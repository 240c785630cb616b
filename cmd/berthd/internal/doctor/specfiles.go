package doctor

import (
	"fmt"
	"slices"

	"berth/core/engine"
	"berth/core/podpolicy"
	"berth/core/specedit"
	"berth/core/specfiles"
)

// checkSpecFiles checks the files of the operator that change OCI specs, and that Docker has the runtime that they and the options for
// containers need.
func (c *checker) checkSpecFiles(features engine.Features) {
	if c.isForeign() { // links in foreign files lead elsewhere
		return
	}
	usable, problems := c.daemon.SpecFiles().Check()
	for _, p := range problems {
		c.fail(p.Option, fmt.Sprintf("containers that it is for cannot be created: %v", p.Err), "correct the file, its owner or its mode")
	}
	policy, err := podpolicy.New(c.daemon.PodOptions())
	for _, name := range c.daemon.SpecFiles().Handlers() {
		if err == nil && name != podpolicy.DefaultHandlerName && !slices.Contains(policy.Handlers(features), name) {
			c.warn(specfiles.SpecDirOption, fmt.Sprintf("%s.json has no effect: %s is no runtime handler of this node", name, name), "name it like the handler of a RuntimeClass, or "+podpolicy.DefaultHandlerName+".json")
		}
	}
	needed := map[string]bool{
		specfiles.SpecDirOption: usable[specfiles.SpecDirOption] > 0, specfiles.HooksDirsOption: usable[specfiles.HooksDirsOption] > 0,
		podpolicy.DeviceOwnershipOption: c.daemon.DeviceOwnership, podpolicy.PodUTSNamespaceOption: c.daemon.PodUTSNamespace, podpolicy.WithoutHostDevicesOption: len(c.daemon.WithoutHostDevices) > 0,
	}
	installed := specedit.Installed("", c.instructionsDir(), features)
	for _, option := range []string{specfiles.SpecDirOption, specfiles.HooksDirsOption, podpolicy.DeviceOwnershipOption, podpolicy.PodUTSNamespaceOption, podpolicy.WithoutHostDevicesOption} {
		switch {
		case !needed[option]:
		case !installed:
			c.fail(option, "containers that it is for are refused: Docker does not have the OCI runtime of berth", "berthd runtime install")
		case usable[option] > 0:
			c.ok(option, fmt.Sprintf("%d files", usable[option]))
		}
	}
}
