package todocker

import (
	"path"
	"strings"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/specedit"
	"berth/core/userns"
)

// HostNetwork reports whether a pod is in the node's network namespace.
func HostNetwork(pod *runtimeapi.PodSandboxConfig) bool {
	return pod.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

// checkNamespaces refuses namespaces that a Docker container cannot have.
func checkNamespaces(ns *runtimeapi.NamespaceOption, sandbox bool) error {
	switch mode := ns.GetNetwork(); mode {
	case runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_NODE:
	default:
		return invalid("network namespace mode %v: must be POD or NODE", mode)
	}
	switch mode := ns.GetIpc(); {
	case mode == runtimeapi.NamespaceMode_POD, mode == runtimeapi.NamespaceMode_NODE:
	case mode == runtimeapi.NamespaceMode_CONTAINER && !sandbox:
	case sandbox:
		return invalid("ipc namespace mode %v of a sandbox: must be POD or NODE", mode)
	default:
		return invalid("ipc namespace mode %v: must be POD, NODE or CONTAINER", mode)
	}
	mode := ns.GetPid()
	if _, known := runtimeapi.NamespaceMode_name[int32(mode)]; !known {
		return invalid("pid namespace mode %v: must be POD, CONTAINER, NODE or TARGET", mode)
	}
	if mode == runtimeapi.NamespaceMode_TARGET && (sandbox || ns.GetTargetId() == "") {
		return invalid("pid namespace mode TARGET: allowed for containers only, and needs a target_id")
	}
	return nil
}

// setContainerNamespaces sets the namespaces of a container of a pod.
func setContainerNamespaces(host *container.HostConfig, p ContainerParams) {
	sandbox := "container:" + p.SandboxID
	ns := p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	host.NetworkMode, host.IpcMode = container.NetworkMode(sandbox), container.IpcMode(sandbox)
	switch ns.GetPid() {
	case runtimeapi.NamespaceMode_POD:
		host.PidMode = container.PidMode(sandbox)
	case runtimeapi.NamespaceMode_NODE:
		host.PidMode = hostMode
	case runtimeapi.NamespaceMode_TARGET:
		host.PidMode = container.PidMode("container:" + p.TargetID)
	case runtimeapi.NamespaceMode_CONTAINER:
	}
	switch ns.GetIpc() {
	case runtimeapi.NamespaceMode_NODE:
		host.IpcMode = hostMode
	case runtimeapi.NamespaceMode_CONTAINER:
		host.IpcMode, host.ShmSize = container.IPCModePrivate, shmSize
	default:
	}
	if HostNetwork(p.Pod) {
		host.UTSMode = hostMode
	}
}

// cgroupParent returns the parent of a container's cgroup. The kubelet sends a path; with
// the systemd driver Docker takes the name of a slice, which implies its ancestors.
func cgroupParent(parent string, features engine.Features) (string, error) {
	if parent == "" || features.CgroupDriver != "systemd" {
		return parent, nil
	}
	slice := path.Base(parent)
	if !strings.HasSuffix(slice, ".slice") {
		return "", invalid("cgroup_parent %q is not a slice, and Docker uses the systemd cgroup driver: set cgroupDriver: systemd in the kubelet's configuration", parent)
	}
	return slice, nil
}

// cgroupNamespace always returns a mode, so that default-cgroupns-mode in daemon.json does
// not apply.
func cgroupNamespace(features engine.Features, privileged bool) container.CgroupnsMode {
	if features.CgroupVersion == 2 && !privileged {
		return container.CgroupnsModePrivate
	}
	return container.CgroupnsModeHost
}

// withInstructions returns the spec of a pause container with what berth's OCI runtime has to change, if there is something.
func withInstructions(spec Spec, p SandboxParams) (_ Spec, err error) {
	m, err := userns.OfPod(p.Pod.GetLinux().GetSecurityContext().GetNamespaceOptions())
	if err != nil {
		return spec, err
	}
	if !m.IsZero() {
		spec.Host.Sysctls = m.Sysctls(spec.Host.Sysctls, HostNetwork(p.Pod))
		if _, err := p.UserNS.Runtime(spec.Host.Runtime, p.Features); err != nil {
			return spec, err
		}
	}
	sandbox := specedit.Sandbox{Runtime: spec.Host.Runtime, Dir: p.UserNS.Dir, Files: p.Files, UserNS: m.Edit(nil)}
	spec.Instructions, spec.Host.Runtime, err = sandbox.Instructions(p.Features)
	return spec, err
}

// userNamespace keeps containers in the node's user namespace where daemon.json has
// userns-remap: in the remapped one, files of the node would have other owners.
func userNamespace(features engine.Features) container.UsernsMode {
	if features.UserNSRemap {
		return hostMode
	}
	return ""
}
