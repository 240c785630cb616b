package network

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
)

const (
	// statusTimeout is how long the plugins may take to answer STATUS. The kubelet waits
	// for the status of the whole runtime, and calls the node not ready without it.
	statusTimeout = 800 * time.Millisecond
	// goodFor and badFor are how long an answer is believed.
	goodFor = 5 * time.Second
	badFor  = time.Second
	// slowFor is how long after their last answer plugins are taken to be as they
	// said. A busy node starts programs slowly; it must not be called not ready for
	// that, for then it loses its pods.
	slowFor = time.Minute
)

// health is what the plugins of a network have last said about themselves.
type health struct {
	asking chan struct{} // holds one token while somebody asks; guards following
	until  time.Time
	err    error
	heard  time.Time // when they last answered; zero for never
}

func newHealth() health { return health{asking: make(chan struct{}, 1)} }

// Status returns nil if pods can be attached. If not, the error, one line of
// kind Unavailable, says what is in the way.
//
// Plugins that can (CNI 1.1) are asked, and what they say is believed for some
// seconds, so that Status may be called often.
func (n *CNI) Status(ctx context.Context) error {
	nw, err := n.complete()
	if err != nil {
		return err
	}
	if !speaks11(nw.list) {
		return nil
	}
	h := &nw.health
	limited, cancel := context.WithTimeout(ctx, n.statusTimeout)
	defer cancel()
	select {
	case h.asking <- struct{}{}:
		defer func() { <-h.asking }()
	case <-limited.Done():
		return n.unwell(nw, limited.Err()) // another caller is still waiting for the plugins
	}
	if time.Now().Before(h.until) {
		return h.err
	}
	err = n.ask(limited, nw)
	if ctx.Err() != nil {
		return n.unwell(nw, ctx.Err()) // the caller's doing says nothing about the plugins
	}
	now := time.Now()
	switch {
	case err == nil:
		h.err, h.until = nil, now.Add(goodFor)
	case limited.Err() != nil && now.Sub(h.heard) < slowFor:
		h.until = now.Add(badFor) // err is still what they said
	default:
		h.err, h.until = n.unwell(nw, err), now.Add(badFor)
	}
	if limited.Err() == nil {
		h.heard = now
	}
	return h.err
}

// Installed returns nil if there is a configuration and all of its plugins are there. Unlike
// Status it runs none of them.
func (n *CNI) Installed() error {
	_, err := n.complete()
	return err
}

// complete returns the network that pods are attached to, if all of its plugins are there.
func (n *CNI) complete() (*network, error) {
	nw, err := n.choose()
	if err != nil {
		return nil, err
	}
	if plugin := n.missing(nw); plugin != "" {
		return nil, n.lacks(nw, plugin)
	}
	return nw, nil
}

// ask asks each plugin of nw for its status.
func (n *CNI) ask(ctx context.Context, nw *network) error {
	for i := range nw.list.Plugins {
		one := *nw.list
		one.Plugins = nw.list.Plugins[i : i+1]
		err := n.lib.GetStatusNetworkList(ctx, &one)
		var said *types.Error
		if errors.As(err, &said) && said.Code == types.ErrInvalidEnvironmentVariables {
			continue // so answers a plugin that does not know the command
		}
		if err != nil {
			return fmt.Errorf("plugin %q: %w", nw.list.Plugins[i].Network.Type, err)
		}
	}
	return nil
}

func (n *CNI) unwell(nw *network, err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %v", n.statusTimeout)
	}
	return errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("CNI network %q of %s is not ready: %v", nw.list.Name, nw.file, err))
}
