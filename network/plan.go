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
	"github.com/containernetworking/cni/pkg/utils"
)

// Capabilities that a plugin may ask for in its configuration.
const (
	portMappings = "portMappings"
	bandwidth    = "bandwidth"
	dns          = "dns"
	ipRanges     = "ipRanges"
	cgroupPath   = "cgroupPath"
	annotations  = "io.kubernetes.cri.pod-annotations"
)

// A Pod is what plugins can be told about a pod.
type Pod struct {
	// ID names the attachment; it is the pod's sandbox.
	ID        string        `json:"id"`
	Name      string        `json:"name,omitempty"`
	Namespace string        `json:"namespace,omitempty"`
	UID       string        `json:"uid,omitempty"`
	Ports     []PortMapping `json:"ports,omitempty"`
	// Ingress and Egress limit the bandwidth, in bits per second; 0 is no limit.
	Ingress int64 `json:"ingress,omitempty"`
	Egress  int64 `json:"egress,omitempty"`
	DNS     DNS   `json:"dns,omitzero"`
	// CgroupPath is the pod's cgroup, relative to the root of the hierarchy.
	CgroupPath  string            `json:"cgroupPath,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// A PortMapping leads a port of the node to one of the pod. Without a HostPort
// it is none.
type PortMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"` // tcp, udp or sctp, in any case; empty is tcp
	HostIP        string `json:"hostIP,omitempty"`
}

// DNS is how a pod finds names.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// A Plan is all that is needed to attach a pod and, whatever happens to the
// node's configuration, to detach it. It survives being written as JSON.
type Plan struct {
	Pod Pod `json:"pod"`
	// Network and Config are the network's name and all of its configuration.
	// Detach understands a Plan without them as one for the network that new
	// pods get.
	Network string          `json:"network,omitempty"`
	Config  json.RawMessage `json:"config,omitempty"`
	// Subnets is what SetPodCIDR was told.
	Subnets []netip.Prefix `json:"subnets,omitempty"`

	list *libcni.NetworkConfigList // Config, parsed; nil after JSON
}

// SetPodCIDR says which addresses pods of this node have, for networks that
// ask. It is one CIDR, or one per address family with a comma between them;
// with what is no CIDR nothing changes, and the error is of kind
// InvalidArgument. Empty means not known.
func (n *CNI) SetPodCIDR(cidr string) error {
	var subnets []netip.Prefix
	for text := range strings.SplitSeq(cidr, ",") {
		text = strings.TrimSpace(text)
		if text == "" {
			continue
		}
		subnet, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("%q is no CIDR for pods: %w: %w", text, err, errdefs.ErrInvalidArgument)
		}
		subnets = append(subnets, subnet.Masked())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.subnets = subnets
	return nil
}

// Plan plans to attach pod to the network that new pods get. If there is none,
// or it lacks a plugin, the error is of kind Unavailable. Host ports and limits
// that the network has no plugin for are left out, with a warning in the log.
func (n *CNI) Plan(pod Pod) (Plan, error) {
	if wrong := utils.ValidateContainerID(pod.ID); wrong != nil {
		return Plan{}, fmt.Errorf("pod id %q: %w: %w", pod.ID, wrong, errdefs.ErrInvalidArgument)
	}
	nw, err := n.choose()
	if err != nil {
		return Plan{}, err
	}
	if !nw.complete.Load() {
		return Plan{}, n.lacks(nw, n.missing(nw))
	}
	n.mu.Lock()
	subnets := n.subnets
	n.mu.Unlock()
	plan := Plan{Pod: pod, Network: nw.list.Name, Config: nw.list.Bytes, Subnets: subnets, list: nw.list}
	if !declares(nw.list, annotations) {
		plan.Pod.Annotations = nil // they may be large, and nobody asks for them
	}
	wanted := capabilities(plan)
	for _, name := range []string{portMappings, bandwidth} {
		if wanted[name] != nil && !declares(nw.list, name) {
			n.log.Warn("the pod asks for what no plugin of its network can do", slog.String("sandbox", pod.ID),
				slog.String("pod", pod.Namespace+"/"+pod.Name), slog.String("capability", name),
				slog.String("network", nw.list.Name), slog.String("file", nw.file))
		}
	}
	return plan, nil
}

// declares reports whether a plugin of list asks for the capability name.
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
	list, err := parse(p.Config)
	if err != nil {
		return nil, fmt.Errorf("planned network %q: %w", p.Network, err)
	}
	return list, nil
}

// runtime returns what libcni needs to know besides list.
func (p *Plan) runtime(list *libcni.NetworkConfigList, netns string) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{
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
		CapabilityArgs: capabilities(*p),
	}
	for name := range rt.CapabilityArgs {
		if !declares(list, name) {
			delete(rt.CapabilityArgs, name)
		}
	}
	return rt
}

// capabilities returns the arguments, in the form of the CNI conventions, of
// those capabilities that plan has a use for.
func capabilities(plan Plan) map[string]any {
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
		args[portMappings] = ports
	}
	limits := map[string]int64{}
	if pod.Ingress > 0 {
		limits["ingressRate"], limits["ingressBurst"] = pod.Ingress, math.MaxInt32
	}
	if pod.Egress > 0 {
		limits["egressRate"], limits["egressBurst"] = pod.Egress, math.MaxInt32
	}
	if len(limits) > 0 {
		args[bandwidth] = limits
	}
	if len(pod.DNS.Servers)+len(pod.DNS.Searches)+len(pod.DNS.Options) > 0 {
		args[dns] = pod.DNS
	}
	var ranges [][]map[string]string // one set of ranges per address
	for _, subnet := range plan.Subnets {
		ranges = append(ranges, []map[string]string{{"subnet": subnet.String()}})
	}
	if len(ranges) > 0 {
		args[ipRanges] = ranges
	}
	if pod.CgroupPath != "" {
		args[cgroupPath] = pod.CgroupPath
	}
	if len(pod.Annotations) > 0 {
		args[annotations] = pod.Annotations
	}
	return args
}
