package podpolicy

import (
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/names"
)

// The annotations of containerd's CRI plugin (internal/cri/annotations of containerd 2.x,
// pkg/cri/annotations before), by which runsc, Kata Containers and other runtimes and shims
// find out what a container is.
const (
	criPrefix = "io.kubernetes.cri."

	containerType       = criPrefix + "container-type"
	sandboxID           = criPrefix + "sandbox-id"
	sandboxName         = criPrefix + "sandbox-name"
	sandboxNamespace    = criPrefix + "sandbox-namespace"
	sandboxUID          = criPrefix + "sandbox-uid"
	sandboxLogDirectory = criPrefix + "sandbox-log-directory"
	sandboxCPUPeriod    = criPrefix + "sandbox-cpu-period"
	sandboxCPUQuota     = criPrefix + "sandbox-cpu-quota"
	sandboxCPUShares    = criPrefix + "sandbox-cpu-shares"
	sandboxMemory       = criPrefix + "sandbox-memory"
	containerName       = criPrefix + "container-name"
	imageName           = criPrefix + "image-name"
)

// shimGroup names the containers that share one process of containerd's shim for runc. It
// takes precedence over the ID of the sandbox (groupLabels in cmd/containerd-shim-runc-v2 of
// containerd), which the pause container cannot have.
const shimGroup = "io.containerd.runc.v2.group"

// reservedPrefixes begin the annotations that no pod can set, whatever the operator allows:
// with them a pod could join the sandbox or the shim of another one.
var reservedPrefixes = []string{criPrefix, "io.containerd."}

func isReserved(key string) bool {
	return slices.ContainsFunc(reservedPrefixes, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
}

// ShimGroupOf returns the shim group in the annotations of a pause container that berth has
// created, "" if it has none.
func ShimGroupOf(host *container.HostConfig) string {
	if group := host.Annotations[shimGroup]; names.IsShimGroup(group) {
		return group
	}
	return ""
}

// SandboxOCIAnnotations returns the annotations of a pause container for its low-level runtime;
// nil if the Engine passes none. runtime is its HostConfig.Runtime, and group a new shim group,
// which the pause container has if the containers of the pod are to share a shim.
//
// The ID of the sandbox is not among them: the Engine chooses it when it creates the pause
// container, and its annotations cannot be changed later. runsc, Kata Containers and
// containerd's shim take the ID of the OCI container for that of the sandbox.
func (p Policy) SandboxOCIAnnotations(pod *runtimeapi.PodSandboxConfig, runtime, group string, features engine.Features) map[string]string {
	if !features.Annotations {
		return nil
	}
	all := map[string]string{}
	p.pass(all, runtime, features, pod.GetAnnotations())
	setPod(all, pod)
	all[containerType] = "sandbox"
	all[sandboxLogDirectory] = pod.GetLogDirectory()
	if r := pod.GetLinux().GetResources(); r != nil {
		all[sandboxCPUPeriod] = strconv.FormatInt(r.GetCpuPeriod(), 10)
		all[sandboxCPUQuota] = strconv.FormatInt(r.GetCpuQuota(), 10)
		all[sandboxCPUShares] = strconv.FormatInt(r.GetCpuShares(), 10)
		all[sandboxMemory] = strconv.FormatInt(r.GetMemoryLimitInBytes(), 10)
	}
	if p.shimPerPod && features.RuncShim(runtime) {
		all[shimGroup] = group
	}
	return all
}

// A Container is what ContainerOCIAnnotations needs to know.
type Container struct {
	Pod            *runtimeapi.PodSandboxConfig
	PodAnnotations map[string]string
	Config         *runtimeapi.ContainerConfig
	SandboxID      string
	Runtime        string // HostConfig.Runtime of the sandbox
	ImageName      string // as the user wrote it
	PodShimGroup   string // ShimGroupOf the sandbox
	OwnShimGroup   string // a name that no other container has
}

// ContainerOCIAnnotations returns the annotations of a container for its low-level runtime;
// nil if the Engine passes none.
func (p Policy) ContainerOCIAnnotations(c Container, features engine.Features) map[string]string {
	if !features.Annotations {
		return nil
	}
	all := map[string]string{}
	p.pass(all, c.Runtime, features, c.PodAnnotations)
	p.pass(all, c.Runtime, features, c.Config.GetAnnotations())
	maps.Copy(all, StandardAnnotations(c.Pod, c.SandboxID, c.Config.GetMetadata().GetName(), c.ImageName))
	if p.shimPerPod && c.PodShimGroup != "" {
		all[shimGroup] = c.PodShimGroup
	} else if c.OwnShimGroup != "" {
		all[shimGroup] = c.OwnShimGroup // not the ID of the sandbox
	}
	return all
}

// StandardAnnotations returns the annotations that containerd gives to the OCI spec of each
// container of a pod. image is as the user wrote it.
func StandardAnnotations(pod *runtimeapi.PodSandboxConfig, sandbox, name, image string) map[string]string {
	all := map[string]string{containerType: "container", sandboxID: sandbox, containerName: name, imageName: image}
	setPod(all, pod)
	return all
}

// setPod sets the annotations that the containers of a pod have in common.
func setPod(all map[string]string, pod *runtimeapi.PodSandboxConfig) {
	maps.Copy(all, map[string]string{
		sandboxName:      pod.GetMetadata().GetName(),
		sandboxNamespace: pod.GetMetadata().GetNamespace(),
		sandboxUID:       pod.GetMetadata().GetUid(),
	})
}

// pass adds the annotations that the operator lets through to the runtime.
func (p Policy) pass(all map[string]string, runtime string, features engine.Features, annotations map[string]string) {
	if runtime == "" {
		runtime = features.DefaultRuntime
	}
	if features.Runtimes[runtime].Instructions != "" {
		runtime = names.BelowOCIRuntime(runtime)
	}
	for _, rule := range p.passthrough {
		if ok, _ := path.Match(rule.runtime, runtime); !ok {
			continue
		}
		for key, value := range annotations {
			if ok, _ := path.Match(rule.key, key); ok && !isReserved(key) {
				all[key] = value
			}
		}
	}
}
