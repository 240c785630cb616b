package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/engine"
	"berth/core/premount"
	"berth/core/todocker"
	"berth/network"
)

// If CNI DEL keeps failing, StopPodSandbox fails and the kubelet retries it. The network is
// given up, and the pod can be removed, after maxDetachFailures failures in a row over at least
// detachGrace: a broken plugin must not block the pods of a node for ever, for example
// when the node is drained. The time is for plugins that call an agent that runs in a pod:
// they fail until that pod is up.
const (
	maxDetachFailures = 10
	detachGrace       = 15 * time.Minute
)

// detachFailures counts failures in a row to release the network of one sandbox.
type detachFailures struct {
	count int
	since time.Time
}

// setupNetwork attaches the started sandbox to its network. It returns the result of an
// inspect of the pause container and the addresses of the pod, none if it uses the
// network of the node.
func (s *Service) setupNetwork(ctx context.Context, docker *engine.Conn, pod *runtimeapi.PodSandboxConfig, in *intent) (found container.InspectResponse, addrs []netip.Addr, err error) {
	found, err = inspect(ctx, docker, in.ID)
	if err != nil {
		return found, nil, fmt.Errorf("inspect sandbox %s: %w", in.ID, err)
	}
	if !found.State.Running {
		return found, nil, fmt.Errorf("sandbox %s: the pause process has exited with code %d: %w", in.ID, found.State.ExitCode, errdefs.ErrFailedPrecondition)
	}
	switch {
	case todocker.HostNetwork(pod):
	case s.bridge:
		for _, n := range found.NetworkSettings.Networks {
			if addr, err := netip.ParseAddr(n.IPAddress); err == nil {
				addrs = append(addrs, addr)
			}
		}
	default:
		if addrs, err = s.attach(ctx, pod, in, found.State.Pid); err != nil {
			return found, nil, fmt.Errorf("network of sandbox %s: %w", in.ID, err)
		}
	}
	return found, addrs, nil
}

// attach attaches the sandbox whose pause process is pid to the CNI network.
func (s *Service) attach(ctx context.Context, pod *runtimeapi.PodSandboxConfig, in *intent, pid int) ([]netip.Addr, error) {
	described, err := networkPod(in.ID, pod)
	if err != nil {
		return nil, err
	}
	plan, err := s.network.Plan(described)
	if err != nil {
		return nil, err
	}
	// Stored before the first plugin runs: from here on there may be something to release,
	// also if a plugin fails or the daemon is killed.
	in.Plan = &plan
	if err := s.state.intents.Put(in.Name, *in); err != nil {
		return nil, err
	}
	if _, err := s.network.Bind(in.ID, pid); err != nil {
		return nil, err
	}
	return s.network.Attach(ctx, plan)
}

// openSysfs makes /sys writable for privileged containers of a pod with a network of its own.
// sysfs is one file system per network namespace, and read-only in all its mounts if the
// first one is, which is that of the unprivileged pause process. With the network of
// the node it is the sysfs of the node.
func (s *Service) openSysfs(pod *runtimeapi.PodSandboxConfig, id string, pid int) {
	if !pod.GetLinux().GetSecurityContext().GetPrivileged() || todocker.HostNetwork(pod) {
		return
	}
	if err := premount.WritableSysfs(pid); err != nil {
		s.log.Warn("/sys is read-only in the privileged containers of a pod", slog.String("sandbox", id), slog.Any("err", err))
	}
}

// networkPlan returns the plan to release the network of pod, nil if there is none. The
// intent of an unfinished pod has more in it than its checkpoint.
func (s *Service) networkPlan(pod *cache.Sandbox) (*network.Plan, error) {
	in, err := s.unfinishedIntent(pod)
	if err != nil {
		return nil, err
	}
	if in != nil && in.Plan != nil {
		return in.Plan, nil
	}
	return s.planFromCheckpoint(pod.ID())
}

// detach releases the network of the sandbox id. After maxDetachFailures it drops what is
// known of the network and succeeds.
func (s *Service) detach(ctx context.Context, plan *network.Plan, id string) error {
	err := s.network.Detach(ctx, plan, id)
	failures := s.countDetach(id, err)
	if err == nil {
		return nil
	}
	if failures.count < maxDetachFailures || time.Since(failures.since) < s.detachGrace {
		return fmt.Errorf("network of sandbox %s: %w", id, err)
	}
	s.log.Error("network of a pod given up after many failed attempts to release it; its addresses may leak",
		slog.String("sandbox", id), slog.Int("tries", failures.count), slog.Any("err", err))
	return s.network.Forget(ctx, id)
}

// countDetach counts err, the result of releasing the network of the sandbox id. Without
// an error the count starts anew.
func (s *Service) countDetach(id string, err error) detachFailures {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.detachFailures, id)
		return detachFailures{}
	}
	failures := s.detachFailures[id]
	if failures.count++; failures.count == 1 {
		failures.since = time.Now()
	}
	s.detachFailures[id] = failures
	return failures
}

// networkPod returns the parameters of package network for a pod.
func networkPod(id string, pod *runtimeapi.PodSandboxConfig) (network.Pod, error) {
	m := pod.GetMetadata()
	limits, err := todocker.PodBandwidth(pod)
	if err != nil {
		return network.Pod{}, err
	}
	out := network.Pod{
		ID: id, Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(),
		Ingress:     limits.Ingress,
		Egress:      limits.Egress,
		CgroupPath:  pod.GetLinux().GetCgroupParent(),
		Annotations: pod.GetAnnotations(),
		DNS: network.DNS{
			Servers: pod.GetDnsConfig().GetServers(), Searches: pod.GetDnsConfig().GetSearches(), Options: pod.GetDnsConfig().GetOptions(),
		},
	}
	for _, p := range pod.GetPortMappings() {
		if p.GetHostPort() <= 0 {
			continue
		}
		out.Ports = append(out.Ports, network.PortMapping{
			HostPort: p.GetHostPort(), ContainerPort: p.GetContainerPort(),
			Protocol: strings.ToLower(p.GetProtocol().String()), HostIP: p.GetHostIp(),
		})
	}
	return out, nil
}
