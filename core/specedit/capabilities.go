package specedit

import (
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// allCapabilities stands for every capability.
const allCapabilities = "ALL"

// Capabilities returns CapAdd and CapDrop of the Engine API, and the ambient capabilities, which are among CapAdd: the
// Engine validates their names. A capability that is both to be added and to be dropped is dropped, as in containerd; Docker would add it.
func Capabilities(c *runtimeapi.Capability) (add, drop, ambient []string, err error) {
	add, drop, ambient = capabilityNames(c.GetAddCapabilities()), capabilityNames(c.GetDropCapabilities()), capabilityNames(c.GetAddAmbientCapabilities())
	if slices.Contains(ambient, allCapabilities) {
		return nil, nil, nil, invalid("add_ambient_capabilities: must name each capability, not %s", allCapabilities)
	}
	dropped := func(name string) bool { return name != allCapabilities && slices.Contains(drop, name) }
	ambient = slices.DeleteFunc(ambient, dropped)
	add = slices.DeleteFunc(append(add, ambient...), dropped)
	if slices.Contains(add, allCapabilities) && slices.Contains(drop, allCapabilities) {
		add = slices.DeleteFunc(add, func(name string) bool { return name == allCapabilities })
	}
	return add, drop, ambient, nil
}

// capabilityNames returns names as Docker normalizes them: CAP_X, or ALL.
func capabilityNames(names []string) []string {
	var out []string
	for _, name := range names {
		name = strings.ToUpper(name)
		if name != allCapabilities && !strings.HasPrefix(name, "CAP_") {
			name = "CAP_" + name
		}
		out = append(out, name)
	}
	return out
}
