package daemon

import (
	"context"
	"log/slog"
	"net"

	"berth/core/cache"
	"berth/core/exec"
	"berth/core/sandbox"
	"berth/core/server"
	"berth/core/state"
	"berth/network"
	"berth/network/netns"
)

// PodNetwork is what the services together need of a network of pods.
type PodNetwork interface {
	sandbox.Network
	cache.Network
	server.Network
	Run(ctx context.Context) error
	Dial(ctx context.Context, id string, pid, port int) (net.Conn, error)
}

// newPodNetwork returns the network of pods that cfg describes.
func newPodNetwork(cfg Config, node *state.Bucket[string], log *slog.Logger) PodNetwork {
	if cfg.PodNetwork != nil {
		return cfg.PodNetwork
	}
	if cfg.Network.PodCIDR == "" {
		cfg.Network.PodCIDR, _ = node.Get(podCIDRKey)
	}
	cni := storedCIDR{network.New(cfg.Network, log), node, log}
	if cfg.Bridge {
		return bridge{cni}
	}
	return cni
}

// podCIDRKey is the record of the address range that the kubelet has set.
const podCIDRKey = "pod-cidr"

// storedCIDR is CNI with an address range that outlives the daemon: the kubelet sets it when it
// changes, and not again.
type storedCIDR struct {
	*network.CNI
	node *state.Bucket[string]
	log  *slog.Logger
}

// SetPodCIDR sets the range and stores it.
func (s storedCIDR) SetPodCIDR(cidr string) error {
	if err := s.CNI.SetPodCIDR(cidr); err != nil {
		return err
	}
	if err := s.node.Put(podCIDRKey, cidr); err != nil {
		s.log.Warn("cannot store the pod CIDR; it is lost with the next restart of berthd", slog.Any("err", err))
	}
	return nil
}

// bridge is Docker's own network, which needs no plugins. The CNI in it detaches pods that were
// created before the node was changed to it.
type bridge struct{ storedCIDR }

func (bridge) Status(context.Context) error  { return nil }
func (bridge) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// podDialer returns how port-forward reaches a port of a pod: from within its network namespace.
func podDialer(pods PodNetwork) exec.DialFunc {
	return func(ctx context.Context, pod *cache.Sandbox, port int) (net.Conn, error) {
		if pod.HostNetwork {
			return netns.Dial(ctx, "", port)
		}
		return pods.Dial(ctx, pod.ID(), pod.Pid, port)
	}
}
