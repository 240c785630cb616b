package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
)

// Attach attaches the pod of plan, whose network namespace has been bound, and
// returns all addresses of its interface in the order the plugins gave them.
// After an error, and if the caller dies half-way, the pod is to be detached
// with the same plan.
func (n *CNI) Attach(ctx context.Context, plan Plan) (_ []netip.Addr, err error) {
	ctx, cancel := context.WithTimeout(ctx, operationLimit)
	defer cancel()
	id := plan.Pod.ID
	done, err := n.turns.take(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("wait for another operation on pod %s: %w", id, err)
	}
	defer done()
	if err := n.enter(ctx, id); err != nil {
		return nil, err
	}
	list, err := plan.network()
	if err != nil {
		return nil, err
	}
	netns := n.path(id)
	if !bound(netns) {
		return nil, fmt.Errorf("no network namespace is bound to %s: %w", netns, errdefs.ErrFailedPrecondition)
	}
	result, err := n.lib.AddNetworkList(ctx, list, plan.runtime(list, netns))
	if err != nil {
		return nil, fmt.Errorf("attach to network %q: %w", list.Name, err)
	}
	addrs, err := addresses(result)
	if err != nil {
		return nil, fmt.Errorf("attach to network %q: %w", list.Name, err)
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("attach to network %q: its plugins gave no address", list.Name)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.known[id] = addrs
	return addrs, nil
}

// enter notes, before there is anything to collect, that id is not garbage.
func (n *CNI) enter(ctx context.Context, id string) error {
	if err := n.lockIdle(ctx, gcGrace); err != nil {
		return err
	}
	defer n.mu.Unlock()
	n.attached[id] = true
	n.detached.remove(id)
	return nil
}

// lockIdle locks n.mu at a moment when no GC is under way: that would not know
// what begins meanwhile. A GC that has not ended after grace is stopped, unless grace is 0.
func (n *CNI) lockIdle(ctx context.Context, grace time.Duration) error {
	var late <-chan time.Time
	if grace > 0 {
		t := time.NewTimer(grace)
		defer t.Stop()
		late = t.C
	}
	for {
		n.mu.Lock()
		gc := n.gc
		if gc == nil {
			return nil
		}
		n.mu.Unlock()
		select {
		case <-gc.over:
		case <-late:
			gc.cancel(errPreempted)
		case <-ctx.Done():
			return fmt.Errorf("wait for the GC of the network plugins: %w", ctx.Err())
		}
	}
}

// addresses returns the addresses of the pod's interface in result.
func addresses(result types.Result) ([]netip.Addr, error) {
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, fmt.Errorf("result: %w", err)
	}
	// Which of the interfaces is the pod's own is told by its name; where that
	// is another, by being in a namespace; plugins older than CNI 0.3 do not
	// speak of interfaces.
	var named, inside, all []netip.Addr
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
		var of types100.Interface
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(r.Interfaces) && r.Interfaces[*i] != nil {
			of = *r.Interfaces[*i]
		}
		if ip.Interface == nil || of.Name == ifName {
			named = append(named, addr)
		}
		if of.Sandbox != "" {
			inside = append(inside, addr)
		}
	}
	switch {
	case len(named) > 0:
		return named, nil
	case len(inside) > 0:
		return inside, nil
	}
	return all, nil
}

// A detachment is one DEL to be done.
type detachment struct {
	list *libcni.NetworkConfigList
	rt   *libcni.RuntimeConf
}

// Detach detaches the pod id and lets go of its network namespace. It may be
// called at any time and any number of times.
//
// What is undone is what libcni remembers to have done; plan, which may be
// nil, speaks for what died before libcni remembered. Only where neither knows
// anything, plugins are asked to detach the pod from the network that new pods
// get; if there is none, there is nothing to do.
//
// The plugins work in the bound namespace. A pod attached by cri-dockerd has
// none until Bind is called, which is worth the while as long as its process
// runs: without a namespace some plugins cannot take back all (bridge leaves
// the masquerading of the pod's address).
func (n *CNI) Detach(ctx context.Context, plan *Plan, id string) error {
	if wrong := utils.ValidateContainerID(id); wrong != nil {
		return fmt.Errorf("pod id %q: %w: %w", id, wrong, errdefs.ErrInvalidArgument)
	}
	ctx, cancel := context.WithTimeout(ctx, operationLimit)
	defer cancel()
	done, err := n.turns.take(ctx, id)
	if err != nil {
		return fmt.Errorf("wait for another operation on pod %s: %w", id, err)
	}
	defer done()

	work, err := n.detachments(plan, id)
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range work {
		if err := n.lib.DelNetworkList(ctx, d.list, d.rt); err != nil {
			errs = append(errs, fmt.Errorf("detach from network %q: %w", d.list.Name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return n.letGo(id)
}

// Forget lets go of the pod id without asking the plugins, whose addresses and
// rules for it may leak. It is for those who have given up on Detach.
func (n *CNI) Forget(ctx context.Context, id string) error {
	if wrong := utils.ValidateContainerID(id); wrong != nil {
		return fmt.Errorf("pod id %q: %w: %w", id, wrong, errdefs.ErrInvalidArgument)
	}
	done, err := n.turns.take(ctx, id)
	if err != nil {
		return fmt.Errorf("wait for another operation on pod %s: %w", id, err)
	}
	defer done()
	return n.letGo(id)
}

// letGo drops all that is kept here of the pod id.
func (n *CNI) letGo(id string) error {
	if err := errors.Join(n.unbind(id), n.uncache(id)); err != nil {
		return fmt.Errorf("let go of the network of pod %s: %w", id, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attached, id)
	delete(n.known, id)
	n.detached.add(id)
	return nil
}

// detachments returns what has to be undone for the pod id.
func (n *CNI) detachments(plan *Plan, id string) ([]detachment, error) {
	netns := n.path(id)
	if !bound(netns) {
		// The path in libcni's cache is no substitute: by now
		// /proc/<pid>/ns/net may be that of somebody else, or the node's own.
		netns = ""
	}
	remembered, err := n.remembered(id)
	if err != nil {
		return nil, err
	}
	planned := false
	var work []detachment
	for _, past := range remembered {
		list, err := parse(past.Config)
		if err != nil || len(list.Plugins) == 0 {
			n.log.Warn("what libcni remembers of an attachment is no use", slog.String("sandbox", id),
				slog.String("network", past.Network), slog.Any("err", err))
			continue
		}
		planned = planned || plan != nil && plan.Network == past.Network
		work = append(work, detachment{list, &libcni.RuntimeConf{
			ContainerID: id, NetNS: netns, IfName: ifName, Args: past.CniArgs, CapabilityArgs: past.CapabilityArgs,
		}})
	}
	if plan != nil && plan.Network != "" && !planned {
		list, err := plan.network()
		if err != nil {
			return nil, err
		}
		work = append(work, detachment{list, plan.runtime(list, netns)})
	}
	if len(work) > 0 || n.nothingLeft(id) {
		return work, nil
	}

	nw, err := n.choose()
	if err != nil {
		n.log.Debug("nothing to detach the pod from", slog.String("sandbox", id), slog.Any("err", err))
		return nil, nil
	}
	if !nw.complete.Load() {
		return nil, nil // nobody remembers an attachment, and nobody could undo it
	}
	if plan == nil {
		plan = &Plan{Pod: Pod{ID: id}}
	}
	return append(work, detachment{nw.list, plan.runtime(nw.list, netns)}), nil
}

// nothingLeft reports whether the pod id is known to have been detached.
func (n *CNI) nothingLeft(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.detached.has(id)
}

// GC has the plugins of the network that new pods get release what belongs to
// no pod, where they can (CNI 1.1). Kept are the pods keep, those attached
// since the daemon's start and those attached by others on this node. Pods
// that Attached lists beside them are detached.
//
// The plugins must not collect what is being attached, so Attach waits while they are at it,
// for gcGrace at most: then they are stopped, and the rest is for the next GC.
func (n *CNI) GC(ctx context.Context, keep []string) error {
	nw, err := n.choose()
	if err != nil || !nw.complete.Load() || nw.list.DisableGC || !speaks11(nw.list) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, gcLimit)
	defer cancel()
	errs := []error{n.detachOrphans(ctx, nw, keep)}
	gc, valid, done, err := n.beginGC(ctx, keep)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer done()
	past, err := n.lib.GetCachedAttachments("")
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("read libcni's cache: %w", err))...)
	}
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for id := range valid {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: ifName})
	}
	for _, a := range past {
		if a.Network == nw.list.Name && (!valid[a.ContainerID] || a.IfName != ifName) {
			args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: a.ContainerID, IfName: a.IfName})
		}
	}
	if err := n.lib.GCNetworkList(gc, nw.list, args); err != nil {
		if gc.Err() != nil {
			err = context.Cause(gc)
		}
		errs = append(errs, fmt.Errorf("network %q: %w", nw.list.Name, err))
	}
	return errors.Join(errs...)
}

// detachOrphans detaches the pods that are attached and neither in keep nor attached since
// the daemon's start. libcni's GC would do so itself, but in a network namespace that may
// have become another pod's.
func (n *CNI) detachOrphans(ctx context.Context, nw *network, keep []string) error {
	past, err := n.lib.GetCachedAttachments("")
	if err != nil {
		return fmt.Errorf("read libcni's cache: %w", err)
	}
	n.mu.Lock()
	valid := n.validLocked(keep)
	n.mu.Unlock()
	var errs []error
	for _, a := range past {
		if a.Network != nw.list.Name || valid[a.ContainerID] && a.IfName == ifName || !n.ours(a) {
			continue
		}
		errs = append(errs, n.Detach(ctx, nil, a.ContainerID))
	}
	return errors.Join(errs...)
}

// validLocked returns the pods that have, or are about to have, an attachment worth keeping.
func (n *CNI) validLocked(keep []string) map[string]bool {
	valid := map[string]bool{}
	for _, id := range keep {
		valid[id] = true
	}
	for id := range n.attached {
		valid[id] = true
	}
	return valid
}

// A collection is a GC that plugins are at work on.
type collection struct {
	over   chan struct{} // closed when it is
	cancel context.CancelCauseFunc
}

// errPreempted is why a GC was stopped.
var errPreempted = errors.New("stopped because a pod was waiting for its network")

// beginGC makes Attach wait until done is called, and returns the context of the GC, which
// ends when an Attach has waited for gcGrace, and what validLocked returns.
func (n *CNI) beginGC(ctx context.Context, keep []string) (_ context.Context, valid map[string]bool, done func(), err error) {
	if err := n.lockIdle(ctx, 0); err != nil {
		return nil, nil, nil, err
	}
	defer n.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	gc := &collection{make(chan struct{}), cancel}
	n.gc = gc
	return ctx, n.validLocked(keep), func() {
		cancel(nil)
		n.mu.Lock()
		defer n.mu.Unlock()
		n.gc = nil
		close(gc.over)
	}, nil
}

// speaks11 reports whether list is of CNI 1.1, which brought STATUS and GC.
func speaks11(list *libcni.NetworkConfigList) bool {
	ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "1.1.0")
	return ok && err == nil
}
