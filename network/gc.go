package network

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"berth/network/cniconf"
)

// errPreempted is why a GC was canceled.
var errPreempted = errors.New("stopped because a pod was waiting for its network")

// A gcRun is a GC that plugins are working on.
type gcRun struct {
	done   chan struct{} // closed when the GC has ended
	cancel context.CancelCauseFunc
}

// GC has the plugins of the network that new pods get release the resources of all pods
// except those in keep, those attached since the start of the daemon, and those that other
// runtimes have attached on this node. Pods that Attached lists besides these are detached.
// It does nothing for networks older than CNI 1.1, which have no GC.
//
// The plugins must not collect a pod that is being attached, so Attach waits for a GC, but
// no longer than gcGrace: then it cancels the GC, and the next one does the rest.
func (n *CNI) GC(ctx context.Context, keep []string) error {
	nw, err := n.conf.Select()
	if err != nil || !nw.Complete() || nw.List.DisableGC || !isCNI11(nw.List) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, gcTimeout)
	defer cancel()
	errs := []error{n.detachOrphans(ctx, nw, keep)}
	gcCtx, valid, done, err := n.beginGC(ctx, keep)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer done()
	attachments, err := n.lib.GetCachedAttachments("")
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("read libcni's cache: %w", err))...)
	}
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for id := range valid {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: ifName})
	}
	for _, a := range attachments {
		if a.Network == nw.List.Name && (!valid[a.ContainerID] || a.IfName != ifName) {
			args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: a.ContainerID, IfName: a.IfName})
		}
	}
	if err := n.lib.GCNetworkList(gcCtx, nw.List, args); err != nil {
		if gcCtx.Err() != nil {
			err = context.Cause(gcCtx)
		}
		errs = append(errs, fmt.Errorf("network %q: %w", nw.List.Name, err))
	}
	return errors.Join(errs...)
}

// detachOrphans detaches the pods that are attached, but neither in keep nor attached since
// the start of the daemon. libcni's GC would do that itself, but in the network namespace
// of its cache, which may by now be that of another pod.
func (n *CNI) detachOrphans(ctx context.Context, nw *cniconf.Network, keep []string) error {
	attachments, err := n.lib.GetCachedAttachments("")
	if err != nil {
		return fmt.Errorf("read libcni's cache: %w", err)
	}
	n.mu.Lock()
	valid := n.validPodsLocked(keep)
	n.mu.Unlock()
	var errs []error
	for _, a := range attachments {
		if a.Network != nw.List.Name || valid[a.ContainerID] && a.IfName == ifName || !isOwn(a) {
			continue
		}
		errs = append(errs, n.Detach(ctx, nil, a.ContainerID))
	}
	return errors.Join(errs...)
}

// validPodsLocked returns the pods whose attachments GC must keep.
func (n *CNI) validPodsLocked(keep []string) map[string]bool {
	valid := map[string]bool{}
	for _, id := range keep {
		valid[id] = true
	}
	for id := range n.attached {
		valid[id] = true
	}
	return valid
}

// beginGC makes Attach wait until done is called. It returns the context for the plugins,
// which is canceled once an Attach has waited for gcGrace, and the pods to keep.
func (n *CNI) beginGC(ctx context.Context, keep []string) (_ context.Context, valid map[string]bool, done func(), err error) {
	if err := n.lockUnlessGC(ctx, 0); err != nil {
		return nil, nil, nil, err
	}
	defer n.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	gc := &gcRun{make(chan struct{}), cancel}
	n.gc = gc
	return ctx, n.validPodsLocked(keep), func() {
		cancel(nil)
		n.mu.Lock()
		defer n.mu.Unlock()
		n.gc = nil
		close(gc.done)
	}, nil
}

// markAttached records that the pod id must be kept by GC. It is called before the plugins
// have anything to collect.
func (n *CNI) markAttached(ctx context.Context, id string) error {
	if err := n.lockUnlessGC(ctx, gcGrace); err != nil {
		return err
	}
	defer n.mu.Unlock()
	n.attached[id] = true
	n.detached.remove(id)
	return nil
}

// lockUnlessGC locks n.mu while no GC is in progress, which would not know the pod that is
// about to be attached. A GC that has not ended after grace is canceled, unless grace is 0.
func (n *CNI) lockUnlessGC(ctx context.Context, grace time.Duration) error {
	var preempt <-chan time.Time
	if grace > 0 {
		t := time.NewTimer(grace)
		defer t.Stop()
		preempt = t.C
	}
	for {
		n.mu.Lock()
		gc := n.gc
		if gc == nil {
			return nil
		}
		n.mu.Unlock()
		select {
		case <-gc.done:
		case <-preempt:
			gc.cancel(errPreempted)
		case <-ctx.Done():
			return fmt.Errorf("wait for the GC of the network plugins: %w", ctx.Err())
		}
	}
}

// isCNI11 reports whether a network is of CNI 1.1 or newer, which added STATUS and GC.
func isCNI11(list *libcni.NetworkConfigList) bool {
	ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "1.1.0")
	return ok && err == nil
}
