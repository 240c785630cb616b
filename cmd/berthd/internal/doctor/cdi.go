package doctor

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"berth/cmd/berthd/internal/config"
	"berth/core/cdi"
	"berth/core/specedit"
)

// maxCDIResults bounds the files and devices that are reported one by one.
const maxCDIResults = 5

// checkCDI checks the CDI specifications: those that Docker reads, or without CDI in Docker those that berthd reads.
func (c *checker) checkCDI() {
	dirs, reader := c.daemon.CDISpecDirs, "berthd"
	if c.engine != nil && c.engine.CDI {
		dirs, reader = c.engine.CDISpecDirs, "Docker"
	}
	var paths []string
	for _, dir := range dirs {
		paths = append(paths, c.path(dir))
	}
	ociRuntime := c.engine != nil && specedit.Installed("", c.instructionsDir(), *c.engine)
	devices, problems := cdi.Config{SpecDirs: paths}.Check(ociRuntime)
	for i, p := range problems {
		if i == maxCDIResults {
			c.warn("CDI", fmt.Sprintf("%d more specifications are not used", len(problems)-i), "correct them or remove them")
			break
		}
		c.warn("CDI", fmt.Sprintf("%s is not used: %v", p.Path, p.Err), "correct it, or remove it and let its device plugin or driver write it again")
	}
	// Device nodes and mounts are those of this node.
	if c.engine != nil && !c.engine.CDI && !c.isForeign() {
		c.checkCDIDevices(devices)
	}
	if !c.has("CDI") {
		c.ok("CDI", fmt.Sprintf("%d devices in %s, which %s reads", len(devices), strings.Join(dirs, " and "), reader))
	}
}

// checkCDIDevices warns of devices that an Engine without CDI cannot give to containers.
func (c *checker) checkCDIDevices(devices map[string]error) {
	var refused []string
	for _, name := range slices.Sorted(maps.Keys(devices)) {
		if devices[name] != nil {
			refused = append(refused, name)
		}
	}
	if len(refused) == 0 {
		return
	}
	first := refused[0]
	c.warn("CDI", fmt.Sprintf("containers with %s, and %d more devices, are refused: %v", first, len(refused)-1, devices[first]),
		"upgrade Docker to 28.2 or newer, or set \"features\": {\"cdi\": true} in /etc/docker/daemon.json of 25.0 or newer, or: berthd runtime install; see cdi-spec-dirs in "+config.DefaultFile)
}
