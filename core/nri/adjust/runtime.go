package adjust

import (
	"maps"
	"slices"

	"github.com/containerd/nri/pkg/api"
)

// What follows has no field in the Engine API. Low-level runtimes ignore fields of the OCI specification that they do not
// know, so that each of these needs a runtime that reports that it has them.

func (out *change) ioPriority(p *api.LinuxIOPriority) error {
	return failed("linux.io_priority %v: the Engine API has none", p.GetClass())
}

func (out *change) scheduler(s *api.LinuxScheduler) error {
	return failed("linux.scheduler %v: the Engine API has none", s.GetPolicy())
}

func (out *change) memoryPolicy(p *api.LinuxMemoryPolicy) error {
	return failed("linux.memory_policy %v: the Engine API has none", p.GetMode())
}

func (out *change) netDevices(devices map[string]*api.LinuxNetDevice) error {
	return failed("linux.net_devices %s: the Engine API has none", slices.Min(slices.Collect(maps.Keys(devices))))
}

func (out *change) namespaces(list []*api.LinuxNamespace) error {
	return failed("linux.namespaces %s: the Engine API cannot change the namespaces of a container of a pod", list[0].GetType())
}

func (out *change) rdt(*api.LinuxRdt) error {
	return failed("linux.rdt: the Engine API has none")
}
