package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"

	"berth/network/cniconf"
)

const (
	// statusTimeout is how long the plugins may take to answer STATUS. The kubelet waits
	// for the status of the whole runtime, and marks the node not ready without it.
	statusTimeout = 800 * time.Millisecond
	// readyTTL and notReadyTTL are how long a result is cached.
	readyTTL    = 5 * time.Second
	notReadyTTL = time.Second
	// slowPluginGrace is how long the last answer stays in force when the plugins no longer
	// answer in time. A busy node starts programs slowly, and must not be marked not ready
	// for that, because then its pods are evicted.
	slowPluginGrace = time.Minute
)

// health is the cached STATUS of a network's plugins.
type health struct {
	sem        chan struct{} // has one element while a caller runs the plugins; guards following
	expires    time.Time
	err        error
	lastAnswer time.Time // zero if the plugins have never answered
}

// healthOf returns the health of a network. That of networks that are no longer
// configured is deleted.
func (n *CNI) healthOf(nw *cniconf.Network) *health {
	n.mu.Lock()
	defer n.mu.Unlock()
	if h := n.health[nw]; h != nil {
		return h
	}
	configured := n.conf.Networks()
	maps.DeleteFunc(n.health, func(old *cniconf.Network, _ *health) bool { return !slices.Contains(configured, old) })
	h := &health{sem: make(chan struct{}, 1)}
	n.health[nw] = h
	return h
}

// Status returns nil if pods can be attached. If not, the error, one line of kind
// Unavailable, says why.
//
// It runs STATUS of plugins that have it (CNI 1.1) and caches the result for some
// seconds, so that it may be called often.
func (n *CNI) Status(ctx context.Context) error {
	nw, err := n.installedNetwork()
	if err != nil {
		return err
	}
	if !isCNI11(nw.List) {
		return nil
	}
	h := n.healthOf(nw)
	statusCtx, cancel := context.WithTimeout(ctx, n.statusTimeout)
	defer cancel()
	select {
	case h.sem <- struct{}{}:
		defer func() { <-h.sem }()
	case <-statusCtx.Done():
		return n.notReady(nw, statusCtx.Err()) // another caller is still waiting for the plugins
	}
	if time.Now().Before(h.expires) {
		return h.err
	}
	err = n.pluginStatus(statusCtx, nw)
	if ctx.Err() != nil {
		return n.notReady(nw, ctx.Err()) // the caller has gone, which says nothing about the plugins
	}
	now := time.Now()
	switch {
	case err == nil:
		h.err, h.expires = nil, now.Add(readyTTL)
	case statusCtx.Err() != nil && now.Sub(h.lastAnswer) < slowPluginGrace:
		h.expires = now.Add(notReadyTTL) // and h.err stays what they answered last
	default:
		h.err, h.expires = n.notReady(nw, err), now.Add(notReadyTTL)
	}
	if statusCtx.Err() == nil {
		h.lastAnswer = now
	}
	return h.err
}

// Installed returns nil if there is a valid configuration and all of its plugins are
// installed. Unlike Status it runs no plugin.
func (n *CNI) Installed() error {
	_, err := n.installedNetwork()
	return err
}

// installedNetwork returns the network that new pods get, if all of its plugins are
// installed now.
func (n *CNI) installedNetwork() (*cniconf.Network, error) {
	nw, err := n.conf.Select()
	if err != nil {
		return nil, err
	}
	return nw, nw.CheckPlugins()
}

// pluginStatus runs STATUS of each plugin. libcni would stop at the first plugin that does
// not know the command.
func (n *CNI) pluginStatus(ctx context.Context, nw *cniconf.Network) error {
	for i := range nw.List.Plugins {
		single := *nw.List
		single.Plugins = nw.List.Plugins[i : i+1]
		err := n.lib.GetStatusNetworkList(ctx, &single)
		var cniError *types.Error
		if errors.As(err, &cniError) && cniError.Code == types.ErrInvalidEnvironmentVariables {
			continue // the plugin does not know STATUS
		}
		if err != nil {
			return fmt.Errorf("plugin %q: %w", nw.List.Plugins[i].Network.Type, err)
		}
	}
	return nil
}

func (n *CNI) notReady(nw *cniconf.Network, err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %v", n.statusTimeout)
	}
	return errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("CNI network %q of %s is not ready: %v", nw.List.Name, nw.File, err))
}
