package podpolicy

import (
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"

	"berth/core/engine"
	"berth/core/names"
)

// defaultHandler is, as in cri-dockerd, a handler for Docker's default runtime, as "" is.
const defaultHandler = "docker"

// Runtime returns the HostConfig.Runtime for a runtime handler: the name of a runtime in
// daemon.json, or a shim that the operator allows; "", which is Docker's default runtime, for
// "" and "docker". A runtime in daemon.json takes precedence, for it can have options.
func (p Policy) Runtime(handler string, features engine.Features) (string, error) {
	if r, ok := features.Runtimes[handler]; ok && r.Instructions == "" {
		return handler, nil
	}
	shim, allowed := p.shims[handler]
	switch {
	case allowed && !features.ShimRuntimes:
		return "", fmt.Errorf("runtime handler %q is the shim %s by the option %s: that needs Docker 23 or newer, this is %s: %w", handler, shim, ShimRuntimesOption, features.Version, errdefs.ErrFailedPrecondition)
	case allowed:
		return shim, nil
	case handler == "" || handler == defaultHandler:
		return "", nil
	case names.IsShim(handler):
		return "", invalid("runtime handler %q is a shim that the option %s of berthd does not list, and it is not among the runtimes of Docker", handler, ShimRuntimesOption)
	default:
		return "", invalid("runtime handler %q is not among the runtimes of Docker: add it to runtimes in daemon.json", handler)
	}
}

// Handlers returns the runtime handlers that pods can have, sorted, but for the default one.
func (p Policy) Handlers(features engine.Features) []string {
	all := map[string]bool{}
	for name, r := range features.Runtimes {
		if r.Instructions == "" { // berth chooses its own runtime for the pods that need it
			all[name] = true
		}
	}
	if features.ShimRuntimes {
		for name := range p.shims {
			all[name] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// Shims returns the shims that the operator allows, sorted.
func (p Policy) Shims() []string { return slices.Compact(slices.Sorted(maps.Values(p.shims))) }
