package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"berth/network/cniconf"
	"berth/network/netns"
)

// Attach attaches the pod of plan, whose network namespace has been bound, and returns all
// addresses of its interface in the order of the CNI result. After an error, and if the
// daemon dies meanwhile, the pod must be detached with the same plan.
func (n *CNI) Attach(ctx context.Context, plan Plan) (_ []netip.Addr, err error) {
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	id := plan.Pod.ID
	unlock, err := n.lockPod(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := n.markAttached(ctx, id); err != nil {
		return nil, err
	}
	list, err := plan.network()
	if err != nil {
		return nil, err
	}
	path, bound := n.netns.Path(id)
	if !bound {
		return nil, fmt.Errorf("no network namespace is bound to %s: %w", path, errdefs.ErrFailedPrecondition)
	}
	result, err := n.lib.AddNetworkList(ctx, list, plan.runtimeConf(list, path))
	if err != nil {
		return nil, fmt.Errorf("attach to network %q: %w", list.Name, err)
	}
	addrs, err := podAddresses(result)
	if err != nil {
		return nil, fmt.Errorf("attach to network %q: %w", list.Name, err)
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("attach to network %q: its plugins gave no address", list.Name)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addresses[id] = addrs
	return addrs, nil
}

// lockPod waits for other operations on the pod id.
func (n *CNI) lockPod(ctx context.Context, id string) (unlock func(), err error) {
	unlock, err = n.podLocks.Lock(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("wait for another operation on pod %s: %w", id, err)
	}
	return unlock, nil
}

// podAddresses returns the addresses of the pod's interface in result.
func podAddresses(result types.Result) ([]netip.Addr, error) {
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, fmt.Errorf("result: %w", err)
	}
	// The pod's interface is the one with the requested name or, if no interface has it,
	// those that are in a namespace. Before CNI 0.3 results had no interfaces.
	var named, inNetNS, all []netip.Addr
	for _, ip := range r.IPs {
		if ip == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			continue
		}
		addr = addr.Unmap()
		all = append(all, addr)
		var iface types100.Interface
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(r.Interfaces) && r.Interfaces[*i] != nil {
			iface = *r.Interfaces[*i]
		}
		if ip.Interface == nil || iface.Name == ifName {
			named = append(named, addr)
		}
		if iface.Sandbox != "" {
			inNetNS = append(inNetNS, addr)
		}
	}
	switch {
	case len(named) > 0:
		return named, nil
	case len(inNetNS) > 0:
		return inNetNS, nil
	}
	return all, nil
}

// Detach detaches the pod id and unbinds its network namespace. It is idempotent, and may
// be called for pods that were never attached.
//
// It undoes the attachments in libcni's cache and the one of plan, which may be nil and
// covers an ADD that was interrupted before libcni recorded it. Only if there is neither,
// the pod is detached from the network that new pods get, if there is one.
//
// The plugins work in the bound namespace. A pod that cri-dockerd attached has none until
// Bind is called, which the caller should do while the pause process runs: without a
// namespace some plugins cannot undo everything (bridge leaves the masquerading rule of
// the pod's address).
func (n *CNI) Detach(ctx context.Context, plan *Plan, id string) error {
	if err := netns.ValidateID(id); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	unlock, err := n.lockPod(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()

	work, err := n.detachments(plan, id)
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range work {
		if err := n.lib.DelNetworkList(ctx, d.list, d.conf); err != nil {
			errs = append(errs, fmt.Errorf("detach from network %q: %w", d.list.Name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return n.release(id)
}

// Forget releases the pod id without running the plugins, whose addresses and rules for
// it may leak. It is for callers that have given up on Detach.
func (n *CNI) Forget(ctx context.Context, id string) error {
	if err := netns.ValidateID(id); err != nil {
		return err
	}
	unlock, err := n.lockPod(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	return n.release(id)
}

// release unbinds the network namespace of the pod id and deletes everything that is
// recorded about it.
func (n *CNI) release(id string) error {
	if err := errors.Join(n.netns.Unbind(id), n.deleteCache(id)); err != nil {
		return fmt.Errorf("release the network of pod %s: %w", id, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attached, id)
	delete(n.addresses, id)
	n.detached.add(id)
	return nil
}

// A detachment is one DEL to run.
type detachment struct {
	list *libcni.NetworkConfigList
	conf *libcni.RuntimeConf
}

// detachments returns the DELs that Detach has to run.
func (n *CNI) detachments(plan *Plan, id string) ([]detachment, error) {
	path, bound := n.netns.Path(id)
	if !bound {
		// Not the path in libcni's cache: the pid in /proc/PID/ns/net may have been reused
		// by a process of another pod, or of the node.
		path = ""
	}
	recorded, err := n.cachedAttachments(id)
	if err != nil {
		return nil, err
	}
	planRecorded := false
	var work []detachment
	for _, a := range recorded {
		list, err := cniconf.Parse(a.Config)
		if err != nil || len(list.Plugins) == 0 {
			n.log.Warn("attachment in libcni's cache is not valid and is skipped", slog.String("sandbox", id),
				slog.String("network", a.Network), slog.Any("err", err))
			continue
		}
		planRecorded = planRecorded || plan != nil && plan.Network == a.Network
		work = append(work, detachment{list, &libcni.RuntimeConf{
			ContainerID: id, NetNS: path, IfName: ifName, Args: a.CniArgs, CapabilityArgs: a.CapabilityArgs,
		}})
	}
	if plan != nil && plan.Network != "" && !planRecorded {
		list, err := plan.network()
		if err != nil {
			return nil, err
		}
		work = append(work, detachment{list, plan.runtimeConf(list, path)})
	}
	if len(work) > 0 || n.alreadyDetached(id) {
		return work, nil
	}

	nw, err := n.conf.Select()
	if err != nil {
		n.log.Debug("pod not detached: there is no network", slog.String("sandbox", id), slog.Any("err", err))
		return nil, nil
	}
	if !nw.Complete() {
		return nil, nil // no attachment is known, and none could be undone
	}
	if plan == nil {
		plan = &Plan{Pod: Pod{ID: id}}
	}
	return append(work, detachment{nw.List, plan.runtimeConf(nw.List, path)}), nil
}

// alreadyDetached reports whether the pod id is known to have been detached.
func (n *CNI) alreadyDetached(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.detached.has(id)
}
