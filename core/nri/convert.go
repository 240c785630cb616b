package nri

import (
	"cmp"
	"context"
	"path"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/engine"
)

// pod returns a pod as plugins see it.
func (r *Runtime) pod(s *cache.Sandbox) *api.PodSandbox {
	meta := s.Row.GetMetadata()
	linux := s.Config.GetLinux()
	out := &api.PodSandbox{
		Id: s.ID(), Name: meta.GetName(), Uid: meta.GetUid(), Namespace: meta.GetNamespace(),
		Labels: s.Row.GetLabels(), Annotations: s.Row.GetAnnotations(), RuntimeHandler: s.Row.GetRuntimeHandler(), Pid: uint32(s.Pid),
		Linux: &api.LinuxPodSandbox{
			PodOverhead: linuxResources(linux.GetOverhead()), PodResources: linuxResources(linux.GetResources()), Resources: linuxResources(linux.GetResources()),
			CgroupParent: cmp.Or(linux.GetCgroupParent(), s.CgroupParent), CgroupsPath: r.cgroupsPath(s.CgroupParent, s.ID()), Namespaces: r.podNamespaces(s),
		},
	}
	if network := s.Status.GetNetwork(); network.GetIp() != "" {
		out.Ips = append(out.Ips, network.GetIp())
		for _, ip := range network.GetAdditionalIps() {
			out.Ips = append(out.Ips, ip.GetIp())
		}
	}
	return out
}

// podNamespaces returns the namespaces of a pause container, with the path of the one for the network. A pod in the network of the node
// has none of that type.
func (r *Runtime) podNamespaces(s *cache.Sandbox) []*api.LinuxNamespace {
	out := []*api.LinuxNamespace{{Type: "mount"}, {Type: "ipc"}, {Type: "pid"}}
	if !s.HostNetwork {
		network := &api.LinuxNamespace{Type: "network"}
		if s.Pid != 0 {
			network.Path = r.NetNS(s.ID(), s.Pid)
		}
		out = append(out, &api.LinuxNamespace{Type: "uts"}, network)
	}
	return out
}

// cgroupsPath returns linux.cgroupsPath of the OCI spec that Docker makes for a container (daemon/oci_linux.go).
func (r *Runtime) cgroupsPath(parent, id string) string {
	docker, err := r.Engine.Conn()
	if err != nil {
		return ""
	}
	if docker.Features.CgroupDriver == "systemd" {
		if parent == "" {
			parent = "system.slice"
		}
		return path.Base(parent) + ":docker:" + id
	}
	if parent == "" {
		parent = "/docker"
	}
	return path.Join(parent, id)
}

// states are those of NRI by those of the CRI.
var states = map[runtimeapi.ContainerState]api.ContainerState{
	runtimeapi.ContainerState_CONTAINER_CREATED: api.ContainerState_CONTAINER_CREATED,
	runtimeapi.ContainerState_CONTAINER_RUNNING: api.ContainerState_CONTAINER_RUNNING,
	runtimeapi.ContainerState_CONTAINER_EXITED:  api.ContainerState_CONTAINER_STOPPED,
}

// container returns a container as plugins see it. What the cache does not have is read from Docker; it is left out if Docker does not respond.
func (r *Runtime) container(ctx context.Context, c *cache.Container) *api.Container {
	status := c.Status
	resources := linuxResources(status.GetResources().GetLinux())
	out := &api.Container{
		Id: c.ID(), PodSandboxId: c.Row.GetPodSandboxId(), Name: status.GetMetadata().GetName(), State: states[status.GetState()],
		Labels: status.GetLabels(), Annotations: status.GetAnnotations(), Pid: uint32(c.Pid),
		CreatedAt: status.GetCreatedAt(), StartedAt: status.GetStartedAt(), FinishedAt: status.GetFinishedAt(),
		ExitCode: status.GetExitCode(), StatusReason: status.GetReason(), StatusMessage: status.GetMessage(),
		Image: &api.Image{Name: status.GetImage().GetImage(), ConfigDigest: status.GetImageId()},
		Linux: &api.LinuxContainer{Resources: resources, OomScoreAdj: api.Int(status.GetResources().GetLinux().GetOomScoreAdj())},
		User:  user(status.GetUser().GetLinux()),
	}
	if _, digest, ok := strings.Cut(status.GetImageRef(), "@"); ok {
		out.Image.Digest = digest
	}
	if docker, err := r.Engine.Conn(); err == nil {
		if found, err := inspect(ctx, docker, c.ID()); err == nil {
			r.addInspected(out, found, docker.Features)
		}
	}
	return out
}

func inspect(ctx context.Context, docker *engine.Conn, id string) (container.InspectResponse, error) {
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	return docker.ContainerInspect(ctx, id)
}

func user(u *runtimeapi.LinuxContainerUser) *api.User {
	if u == nil {
		return nil
	}
	out := &api.User{Uid: uint32(u.GetUid()), Gid: uint32(u.GetGid())}
	for _, group := range u.GetSupplementalGroups() {
		out.AdditionalGids = append(out.AdditionalGids, uint32(group))
	}
	return out
}

// addInspected adds what only Docker knows.
func (r *Runtime) addInspected(out *api.Container, found container.InspectResponse, features engine.Features) {
	if found.ContainerJSONBase == nil || found.Config == nil || found.HostConfig == nil {
		return
	}
	host := found.HostConfig
	if found.Path != "" {
		out.Args = append([]string{found.Path}, found.Args...)
	}
	for _, variable := range found.Config.Env {
		if strings.Contains(variable, "=") { // else it says that the image's variable is left out
			out.Env = append(out.Env, variable)
		}
	}
	for _, m := range found.Mounts {
		options := []string{"rbind", "rw"}
		if !m.RW {
			options[1] = "ro"
		}
		if m.Propagation != "" {
			options = append(options, string(m.Propagation))
		}
		kind := "bind"
		if m.Type == "tmpfs" {
			kind = "tmpfs"
		}
		out.Mounts = append(out.Mounts, &api.Mount{Destination: m.Destination, Type: kind, Source: m.Source, Options: options})
	}
	for _, l := range host.Ulimits {
		out.Rlimits = append(out.Rlimits, &api.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(l.Name), Hard: uint64(l.Hard), Soft: uint64(l.Soft)})
	}
	for _, request := range host.DeviceRequests {
		if request.Driver == "cdi" {
			for _, name := range request.DeviceIDs {
				out.CDIDevices = append(out.CDIDevices, &api.CDIDevice{Name: name})
			}
		}
	}
	linux := out.Linux
	linux.OomScoreAdj = api.Int(host.OomScoreAdj)
	linux.CgroupsPath = r.cgroupsPath(host.CgroupParent, out.Id)
	linux.Namespaces = namespaces(host)
	linux.Sysctl = host.Sysctls
	for _, d := range host.Devices {
		linux.Devices = append(linux.Devices, hostDevice(d))
	}
	if pids := host.PidsLimit; pids != nil && *pids > 0 {
		linux.Resources.Pids = &api.LinuxPids{Limit: *pids}
	}
	if features.CgroupVersion != 2 && host.MemorySwappiness != nil && *host.MemorySwappiness >= 0 {
		linux.Resources.Memory.Swappiness = api.UInt64(*host.MemorySwappiness)
	}
	if host.MemoryReservation > 0 {
		linux.Resources.Memory.Reservation = api.Int64(host.MemoryReservation)
	}
	linux.SeccompProfile = seccompProfile(host)
}

// seccompProfile returns the kind of the profile of a container, for validators.
func seccompProfile(host *container.HostConfig) *api.SecurityProfile {
	for _, option := range host.SecurityOpt {
		profile, ok := strings.CutPrefix(option, "seccomp=")
		switch {
		case !ok:
		case profile == "unconfined":
			return &api.SecurityProfile{ProfileType: api.SecurityProfile_UNCONFINED}
		case strings.HasPrefix(profile, "{"):
			return &api.SecurityProfile{ProfileType: api.SecurityProfile_LOCALHOST}
		}
	}
	return &api.SecurityProfile{ProfileType: api.SecurityProfile_RUNTIME_DEFAULT}
}

// namespaces returns the types of the namespaces of a container that are not the node's.
func namespaces(host *container.HostConfig) []*api.LinuxNamespace {
	out := []*api.LinuxNamespace{{Type: "mount"}}
	for _, n := range []struct {
		kind   string
		ofHost bool
	}{{"ipc", host.IpcMode.IsHost()}, {"network", host.NetworkMode.IsHost()}, {"pid", host.PidMode.IsHost()}, {"uts", host.UTSMode.IsHost()}} {
		if !n.ofHost {
			out = append(out, &api.LinuxNamespace{Type: n.kind})
		}
	}
	return out
}

// linuxResources translates resources of the CRI. The result has no empty parts for plugins to stumble on.
func linuxResources(r *runtimeapi.LinuxContainerResources) *api.LinuxResources {
	out := &api.LinuxResources{Memory: &api.LinuxMemory{}, Cpu: &api.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}, Unified: r.GetUnified()}
	if v := r.GetMemoryLimitInBytes(); v != 0 {
		out.Memory.Limit = api.Int64(v)
	}
	if v := r.GetMemorySwapLimitInBytes(); v != 0 {
		out.Memory.Swap = api.Int64(v)
	}
	if v := r.GetCpuShares(); v != 0 {
		out.Cpu.Shares = api.UInt64(v)
	}
	if v := r.GetCpuQuota(); v != 0 {
		out.Cpu.Quota = api.Int64(v)
	}
	if v := r.GetCpuPeriod(); v != 0 {
		out.Cpu.Period = api.UInt64(v)
	}
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &api.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return out
}
