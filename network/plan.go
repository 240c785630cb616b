package network

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"

	"berth/network/cniconf"
	"berth/network/netns"
)

// Capabilities that a plugin may declare in its configuration
// (https://www.cni.dev/docs/conventions/).
const (
	portMappingsCapability = "portMappings"
	bandwidthCapability    = "bandwidth"
	dnsCapability          = "dns"
	ipRangesCapability     = "ipRanges"
	cgroupPathCapability   = "cgroupPath"
	annotationsCapability  = "io.kubernetes.cri.pod-annotations"
)

// A Pod is what plugins can be given about a pod.
type Pod struct {
	// ID is the ID of the attachment: that of the pod's sandbox.
	ID        string        `json:"id"`
	Name      string        `json:"name,omitempty"`
	Namespace string        `json:"namespace,omitempty"`
	UID       string        `json:"uid,omitempty"`
	Ports     []PortMapping `json:"ports,omitempty"`
	// Ingress and Egress limit the bandwidth, in bits per second; 0 means unlimited.
	Ingress int64 `json:"ingress,omitempty"`
	Egress  int64 `json:"egress,omitempty"`
	DNS     DNS   `json:"dns,omitzero"`
	// CgroupPath is the path of the pod's cgroup, relative to the root of the hierarchy.
	CgroupPath  string            `json:"cgroupPath,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// A PortMapping forwards a port of the node to a port of the pod. Those without a HostPort
// are ignored.
type PortMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"` // tcp, udp or sctp, case-insensitive; empty means tcp
	HostIP        string `json:"hostIP,omitempty"`
}

// DNS is the DNS configuration of a pod.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// A Plan is everything that is needed to attach a pod and, even if the node's configuration
// changes, to detach it. It can be stored as JSON.
type Plan struct {
	Pod Pod `json:"pod"`
	// Network and Config are the name and the whole configuration of the network. In a
	// Plan for Detach they may be empty, which means the network that new pods get.
	Network string          `json:"network,omitempty"`
	Config  json.RawMessage `json:"config,omitempty"`
	// Subnets is the value of SetPodCIDR.
	Subnets []netip.Prefix `json:"subnets,omitempty"`

	list *libcni.NetworkConfigList // Config, parsed; nil in a Plan from JSON
}

// SetPodCIDR sets the pod CIDR of this node (CRI UpdateRuntimeConfig), which networks with
// the capability ipRanges are given. It is one CIDR, or one per address family, separated
// by commas; empty means not known. If it is not valid, nothing changes and the error is
// of kind InvalidArgument.
func (n *CNI) SetPodCIDR(cidr string) error {
	subnets, err := parseCIDRs(cidr)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.subnets = subnets
	n.mu.Unlock()
	n.conf.Trigger() // for a configuration that is made of it
	return nil
}

// podCIDR returns the value of SetPodCIDR.
func (n *CNI) podCIDR() []netip.Prefix {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.subnets
}

// parseCIDRs parses address ranges that are separated by commas.
func parseCIDRs(cidr string) (subnets []netip.Prefix, err error) {
	for text := range strings.SplitSeq(cidr, ",") {
		text = strings.TrimSpace(text)
		if text == "" {
			continue
		}
		subnet, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("pod CIDR %q: %w: %w", text, err, errdefs.ErrInvalidArgument)
		}
		subnets = append(subnets, subnet.Masked())
	}
	return subnets, nil
}

// Plan returns the Plan to attach pod to the network that new pods get. If there is none,
// or one of its plugins is not installed, the error is of kind Unavailable. Host ports and
// bandwidth limits that no plugin of the network supports are ignored, with a warning in the log.
func (n *CNI) Plan(pod Pod) (Plan, error) {
	if err := netns.ValidateID(pod.ID); err != nil {
		return Plan{}, err
	}
	nw, err := n.conf.Select()
	if err != nil {
		return Plan{}, err
	}
	if !nw.Complete() {
		if err := nw.CheckPlugins(); err != nil {
			return Plan{}, err
		}
	}
	plan := Plan{Pod: pod, Network: nw.List.Name, Config: nw.List.Bytes, Subnets: n.podCIDR(), list: nw.List}
	if !declares(nw.List, annotationsCapability) {
		plan.Pod.Annotations = nil // they may be large, and no plugin is given them
	}
	args := capabilityArgs(plan)
	for _, name := range []string{portMappingsCapability, bandwidthCapability} {
		if args[name] != nil && !declares(nw.List, name) {
			n.log.Warn("no plugin of the network has a capability that the pod needs", slog.String("sandbox", pod.ID),
				slog.String("pod", pod.Namespace+"/"+pod.Name), slog.String("capability", name),
				slog.String("network", nw.List.Name), slog.String("file", nw.File))
		}
	}
	return plan, nil
}

// declares reports whether a plugin of list declares the capability name.
func declares(list *libcni.NetworkConfigList, name string) bool {
	for _, plugin := range list.Plugins {
		if plugin.Network.Capabilities[name] {
			return true
		}
	}
	return false
}

// network returns the parsed Config, which is not empty.
func (p *Plan) network() (*libcni.NetworkConfigList, error) {
	if p.list != nil {
		return p.list, nil
	}
	list, err := cniconf.Parse(p.Config)
	if err != nil {
		return nil, fmt.Errorf("network %q of the plan: %w", p.Network, err)
	}
	return list, nil
}

// runtimeConf returns what libcni needs besides list. netns is the path of the pod's network
// namespace, or empty.
func (p *Plan) runtimeConf(list *libcni.NetworkConfigList, netns string) *libcni.RuntimeConf {
	conf := &libcni.RuntimeConf{
		ContainerID: p.Pod.ID,
		NetNS:       netns,
		IfName:      ifName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", p.Pod.Namespace},
			{"K8S_POD_NAME", p.Pod.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.Pod.ID},
			{"K8S_POD_UID", p.Pod.UID},
		},
		CapabilityArgs: capabilityArgs(*p),
	}
	for name := range conf.CapabilityArgs {
		if !declares(list, name) {
			delete(conf.CapabilityArgs, name)
		}
	}
	return conf
}

// capabilityArgs returns the arguments, in the form of the CNI conventions, of the
// capabilities that plan has values for.
func capabilityArgs(plan Plan) map[string]any {
	pod, args := plan.Pod, map[string]any{}
	var ports []PortMapping
	for _, port := range pod.Ports {
		if port.HostPort == 0 {
			continue
		}
		port.Protocol = strings.ToLower(port.Protocol)
		if port.Protocol == "" {
			port.Protocol = "tcp"
		}
		ports = append(ports, port)
	}
	if len(ports) > 0 {
		args[portMappingsCapability] = ports
	}
	limits := map[string]int64{}
	if pod.Ingress > 0 {
		limits["ingressRate"], limits["ingressBurst"] = pod.Ingress, math.MaxInt32
	}
	if pod.Egress > 0 {
		limits["egressRate"], limits["egressBurst"] = pod.Egress, math.MaxInt32
	}
	if len(limits) > 0 {
		args[bandwidthCapability] = limits
	}
	if len(pod.DNS.Servers)+len(pod.DNS.Searches)+len(pod.DNS.Options) > 0 {
		args[dnsCapability] = pod.DNS
	}
	var ranges [][]map[string]string // one set of ranges per address
	for _, subnet := range plan.Subnets {
		ranges = append(ranges, []map[string]string{{"subnet": subnet.String()}})
	}
	if len(ranges) > 0 {
		args[ipRangesCapability] = ranges
	}
	if pod.CgroupPath != "" {
		args[cgroupPathCapability] = pod.CgroupPath
	}
	if len(pod.Annotations) > 0 {
		args[annotationsCapability] = pod.Annotations
	}
	return args
}
