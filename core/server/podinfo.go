package server

import (
	"context"

	"berth/core/cache"
)

// A PodInfo is the value of "node" in the info of a verbose PodSandboxStatus: where a pod is on
// the node. berthd pods prints it.
type PodInfo struct {
	// Name is the name of the pause container in Docker.
	Name string `json:"name"`
	// NetNS is the path of the network namespace, "" for that of the node and for a pod that does not run.
	NetNS string `json:"netns,omitempty"`
	// NotReady is why the sandbox is not ready, "" if it is.
	NotReady string `json:"notReady,omitempty"`
	// Containers are those of the pod, by ID.
	Containers map[string]ContainerInfo `json:"containers"`
}

// A ContainerInfo is where a container is on the node.
type ContainerInfo struct {
	Name string `json:"name"` // in Docker
	Pid  int    `json:"pid"`  // 0 if it does not run
}

// podInfo returns the PodInfo of a sandbox.
func (s *Server) podInfo(ctx context.Context, pod *cache.Sandbox) (PodInfo, error) {
	info := PodInfo{Name: pod.Name, NotReady: pod.NotReadyReason(), Containers: map[string]ContainerInfo{}}
	if pod.Running && pod.Pid > 0 && !pod.HostNetwork {
		info.NetNS = s.Network.NetNS(pod.ID(), pod.Pid)
	}
	inside, err := s.Cache.ContainersOf(ctx, pod.ID())
	for _, c := range inside {
		info.Containers[c.ID()] = ContainerInfo{Name: c.Name, Pid: c.Pid}
	}
	return info, err
}
