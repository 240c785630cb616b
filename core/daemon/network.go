package daemon

import (
	"context"
	"errors"
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
	option := cfg.Network.PodCIDR
	cidr, ok, err := kubeletCIDR(node, option)
	if err != nil {
		log.Warn("the pod CIDR of the kubelet cannot be read; new pods get addresses when the kubelet sets it again", slog.Any("err", err))
	}
	if ok {
		cfg.Network.PodCIDR = cidr
	}
	cfg.Network.Generated = generatedConf{node, log}
	cni := storedCIDR{network.New(cfg.Network, log), node, option, log}
	cni.EndOrphans()
	if cfg.Bridge {
		return bridge{cni}
	}
	return cni
}

// Records of the node.
const (
	podCIDRKey       = "pod-cidr"         // the address range that the kubelet has set
	podCIDROptionKey = "pod-cidr-option"  // the option pod-cidr at that time
	generatedConfKey = "cni-conf-written" // digests of the generated CNI configuration
)

// kubeletCIDR returns the address range that the kubelet has set. It replaces the option, which holds until then, also
// after a restart of berthd: the kubelet sets it when it changes, and not again. An option that was changed since replaces it.
func kubeletCIDR(node *state.Bucket[string], option string) (cidr string, ok bool, err error) {
	cidr, ok, err = node.Get(podCIDRKey)
	if err != nil {
		return "", false, err
	}
	before, known, err := node.Get(podCIDROptionKey) // not known: stored by berth 1.0
	return cidr, ok && (option == "" || known && option == before), err
}

// storedCIDR is CNI with an address range that outlives the daemon.
type storedCIDR struct {
	*network.CNI
	node   *state.Bucket[string]
	option string // pod-cidr
	log    *slog.Logger
}

// SetPodCIDR sets the range and stores it.
func (s storedCIDR) SetPodCIDR(cidr string) error {
	if err := s.CNI.SetPodCIDR(cidr); err != nil {
		return err
	}
	if err := errors.Join(s.node.Put(podCIDRKey, cidr), s.node.Put(podCIDROptionKey, s.option)); err != nil {
		s.log.Warn("cannot store the pod CIDR; it is lost with the next restart of berthd", slog.Any("err", err))
	}
	return nil
}

// generatedConf is the record of the generated CNI configuration.
type generatedConf struct {
	node *state.Bucket[string]
	log  *slog.Logger
}

// Get returns the record, "" before the first Put.
func (g generatedConf) Get() string {
	text, _, err := g.node.Get(generatedConfKey)
	if err != nil {
		g.log.Warn("the record of the generated CNI configuration cannot be read; its file stays as it is", slog.Any("err", err))
	}
	return text
}

// Put replaces the record; "" removes it.
func (g generatedConf) Put(text string) error {
	if text == "" {
		return g.node.Delete(generatedConfKey)
	}
	return g.node.Put(generatedConfKey, text)
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
