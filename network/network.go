// Package network attaches pods to the networks that CNI plugins make, keeps a
// handle on their network namespaces, and dials into them.
//
// It has a vocabulary of its own: a pod is an ID, a few names and a network
// namespace. It knows nothing of the CRI or of Docker.
package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

const (
	// ifName is the name of a pod's own interface.
	ifName = "eth0"
	// loopbackNetwork is what cri-dockerd calls the attachment that it makes
	// beside the pod's own.
	loopbackNetwork = "cni-loopback"
	// pluginLimit is how long attaching or detaching one pod may take.
	pluginLimit = 220 * time.Second
)

// Config is what an operator can choose about the networks of pods.
type Config struct {
	ConfDir  string   // network configurations; the first valid one counts
	BinDirs  []string // plugins
	CacheDir string   // libcni's own notes, shared with whatever ran before
	RunDir   string   // handles on network namespaces, in netns/<ID>
	PodCIDR  string   // address ranges for plugins that ask for them; several with commas
}

// A CNI attaches pods through CNI plugins. Run keeps its configuration
// current.
type CNI struct {
	cfg Config
	cni *libcni.CNIConfig
	log *slog.Logger

	mu      sync.Mutex // guards following
	network *libcni.NetworkConfigList
	missing error // why network is nil, or cannot work
	podCIDR string
	asked   time.Time // when the plugins were last asked for their status
	answer  error     // what they said
}

// New returns a CNI that has looked at its configuration once. That there is
// none yet is no error.
func New(cfg Config, log *slog.Logger) *CNI {
	n := &CNI{
		cfg: cfg, log: log, podCIDR: cfg.PodCIDR,
		cni: libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cfg.CacheDir, nil),
	}
	n.load()
	return n
}

// SetPodCIDR sets the address ranges for plugins that ask for them.
func (n *CNI) SetPodCIDR(cidr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.podCIDR = cidr
}

// A Pod is what is to be attached.
type Pod struct {
	ID, Name, Namespace, UID string

	Ports           []PortMapping
	Ingress, Egress int64 // bits per second, 0 for no limit
	DNS             DNS
	CgroupPath      string
	Annotations     map[string]string
}

// A PortMapping makes a port of the pod one of the node. The JSON is that of
// the capability portMappings.
type PortMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// DNS is how names are to be resolved. The JSON is that of the capability dns.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// A Plan is how a pod is attached: all that is needed to take it back, though
// the configuration may have changed since. It can be kept as JSON.
type Plan struct {
	ID     string
	Config []byte // of the network, as a list
	Args   [][2]string
	Caps   map[string]any
}

// Plan decides how pod is to be attached. It is of kind Unavailable while
// there is no network.
func (n *CNI) Plan(pod Pod) (Plan, error) {
	n.mu.Lock()
	network, missing, cidr := n.network, n.missing, n.podCIDR
	n.mu.Unlock()
	if network == nil {
		return Plan{}, fmt.Errorf("%w: %w", errdefs.ErrUnavailable, missing)
	}
	if len(pod.Ports) > 0 && !declares(network, "portMappings") {
		n.log.Warn("a pod asks for host ports, which no plugin of its network makes: add portmap to the network's configuration",
			slog.String("sandbox", pod.ID), slog.String("network", network.Name))
	}
	return Plan{
		ID:     pod.ID,
		Config: network.Bytes,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", pod.Namespace},
			{"K8S_POD_NAME", pod.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", pod.ID},
			{"K8S_POD_UID", pod.UID},
		},
		Caps: capabilities(pod, cidr),
	}, nil
}

// declares reports whether a plugin of the network has the capability.
func declares(network *libcni.NetworkConfigList, capability string) bool {
	return slices.ContainsFunc(network.Plugins, func(p *libcni.PluginConfig) bool {
		return p.Network.Capabilities[capability]
	})
}

// capabilities returns all that plugins may want to know of a pod; libcni
// hands on to each only what it declares.
func capabilities(pod Pod, podCIDR string) map[string]any {
	caps := map[string]any{}
	if len(pod.Ports) > 0 {
		caps["portMappings"] = pod.Ports
	}
	if pod.Ingress > 0 || pod.Egress > 0 {
		limits := map[string]int64{}
		if pod.Ingress > 0 {
			limits["ingressRate"], limits["ingressBurst"] = pod.Ingress, math.MaxInt32
		}
		if pod.Egress > 0 {
			limits["egressRate"], limits["egressBurst"] = pod.Egress, math.MaxInt32
		}
		caps["bandwidth"] = limits
	}
	if len(pod.DNS.Servers)+len(pod.DNS.Searches)+len(pod.DNS.Options) > 0 {
		caps["dns"] = pod.DNS
	}
	if podCIDR != "" {
		var ranges [][]map[string]string
		for cidr := range strings.SplitSeq(podCIDR, ",") {
			ranges = append(ranges, []map[string]string{{"subnet": strings.TrimSpace(cidr)}})
		}
		caps["ipRanges"] = ranges
	}
	if pod.CgroupPath != "" {
		caps["cgroupPath"] = pod.CgroupPath
	}
	if len(pod.Annotations) > 0 {
		caps["io.kubernetes.cri.pod-annotations"] = pod.Annotations
	}
	return caps
}

func (n *CNI) runtimeConf(plan Plan, netns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: plan.ID, NetNS: netns, IfName: ifName, Args: plan.Args, CapabilityArgs: plan.Caps}
}

// Attach attaches the pod of a plan, whose network namespace must be bound,
// and returns its addresses in the order of the plugins. Whether or not it
// succeeds, Detach takes back what it has done.
func (n *CNI) Attach(ctx context.Context, plan Plan) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, pluginLimit)
	defer cancel()
	list, err := libcni.NetworkConfFromBytes(plan.Config)
	if err != nil {
		return nil, err
	}
	result, err := n.cni.AddNetworkList(ctx, list, n.runtimeConf(plan, n.path(plan.ID)))
	if err != nil {
		return nil, fmt.Errorf("CNI network %q: %w", list.Name, err)
	}
	found, err := addresses(result)
	if err == nil && len(found) == 0 {
		err = errors.New("the plugins gave no address")
	}
	if err != nil {
		return nil, fmt.Errorf("CNI network %q: %w", list.Name, err)
	}
	return found, nil
}

// addresses returns those of the pod's own interface; a result that does not
// say which interface has an address is about the only one.
func addresses(result types.Result) ([]netip.Addr, error) {
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, ip := range r.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(r.Interfaces) && r.Interfaces[*i].Sandbox == "" {
			continue // of the node's end
		}
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			out = append(out, addr.Unmap())
		}
	}
	return out, nil
}

// Detach takes back the network of the pod id: as it was attached, whatever
// the configuration is now, with plan as a help where the attaching was cut
// short. It may be called any number of times.
func (n *CNI) Detach(ctx context.Context, plan *Plan, id string) error {
	ctx, cancel := context.WithTimeout(ctx, pluginLimit)
	defer cancel()
	netns := n.path(id)
	if !bound(netns) {
		netns = "" // gone with a reboot or with cri-dockerd's pause process; plugins must bear that
	}
	attached, err := n.cni.GetCachedAttachments(id)
	if err != nil {
		return fmt.Errorf("CNI cache: %w", err)
	}
	var errs []error
	for _, a := range attached {
		if a.Network == loopbackNetwork {
			errs = append(errs, n.forget(a))
			continue
		}
		known := Plan{ID: id, Config: a.Config, Args: a.CniArgs, Caps: a.CapabilityArgs}
		errs = append(errs, n.del(ctx, known, netns))
	}
	if len(attached) == 0 && plan != nil {
		// ADD did not get as far as libcni's note; a plugin may have acted.
		errs = append(errs, n.del(ctx, *plan, netns))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return n.unbind(id)
}

func (n *CNI) del(ctx context.Context, plan Plan, netns string) error {
	list, err := libcni.NetworkConfFromBytes(plan.Config)
	if err != nil {
		return fmt.Errorf("CNI configuration kept for %s: %w", plan.ID, err)
	}
	if err := n.cni.DelNetworkList(ctx, list, n.runtimeConf(plan, netns)); err != nil {
		return fmt.Errorf("CNI network %q: %w", list.Name, err)
	}
	return nil
}

// forget strikes an attachment that there is nothing to take back of.
func (n *CNI) forget(a *libcni.NetworkAttachment) error {
	err := os.Remove(filepath.Join(n.results(), fmt.Sprintf("%s-%s-%s", a.Network, a.ContainerID, a.IfName)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// results is where libcni keeps its notes.
func (n *CNI) results() string { return filepath.Join(n.cfg.CacheDir, "results") }

// A note is what libcni has written down of an attachment; addresses read the
// same in every version of the result.
type note struct {
	Result struct {
		IPs []struct {
			Address   string `json:"address"`
			Interface *int   `json:"interface"`
		} `json:"ips"`
		Interfaces []struct {
			Sandbox string `json:"sandbox"`
		} `json:"interfaces"`
		IP4 struct {
			IP string `json:"ip"`
		} `json:"ip4"`
		IP6 struct {
			IP string `json:"ip"`
		} `json:"ip6"`
	} `json:"result"`
}

func (n note) addresses() []netip.Addr {
	var texts []string
	for _, ip := range n.Result.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(n.Result.Interfaces) && n.Result.Interfaces[*i].Sandbox == "" {
			continue // of the node's end
		}
		texts = append(texts, ip.Address)
	}
	var addrs []netip.Addr
	for _, text := range append(texts, n.Result.IP4.IP, n.Result.IP6.IP) {
		if prefix, err := netip.ParsePrefix(text); err == nil {
			addrs = append(addrs, prefix.Addr())
		}
	}
	return addrs
}

// Addresses returns the addresses of the pod id and whether it is attached, as
// libcni has noted it: by this process, an earlier one or cri-dockerd.
func (n *CNI) Addresses(id string) (addrs []netip.Addr, attached bool) {
	files, err := filepath.Glob(filepath.Join(n.results(), "*-"+id+"-"+ifName))
	if err != nil {
		return nil, false
	}
	for _, path := range files {
		if strings.HasPrefix(filepath.Base(path), loopbackNetwork+"-") {
			continue
		}
		var found note
		text, err := os.ReadFile(path)
		if err == nil && json.Unmarshal(text, &found) == nil {
			return found.addresses(), true
		}
	}
	return nil, false
}

// Attached returns the IDs of all that libcni has noted as attached, whoever
// did it.
func (n *CNI) Attached() []string {
	all, err := n.cni.GetCachedAttachments("")
	if err != nil {
		return nil
	}
	var ids []string
	for _, a := range all {
		ids = append(ids, a.ContainerID)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// GC has the plugins clean up after pods that are not in keep. Networks and
// plugins that cannot are left alone.
func (n *CNI) GC(ctx context.Context, keep []string) error {
	n.mu.Lock()
	network := n.network
	n.mu.Unlock()
	if network == nil || network.DisableGC || !atLeast11(network.CNIVersion) {
		return nil
	}
	args := &libcni.GCArgs{}
	for _, id := range keep {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: ifName})
	}
	return n.cni.GCNetworkList(ctx, network, args)
}

// atLeast11 reports whether a configuration's version knows STATUS and GC.
func atLeast11(version string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > 1 || major == 1 && minor >= 1
}
