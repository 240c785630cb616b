package doctor

import (
	"context"
	"net"
	"strings"
	"time"

	"berth/cmd/berthd/internal/config"
)

// collectorTimeout bounds the connection to the collector of traces.
const collectorTimeout = 2 * time.Second

// checkTracing checks that the collector of traces can be reached, and that any call is traced.
func (c *checker) checkTracing(ctx context.Context) {
	tracing := c.daemon.Tracing
	if tracing.Endpoint == "" {
		return
	}
	if settings, err := c.readKubelet(); err == nil && settings != nil && settings.Tracing == nil && tracing.SamplesPerMillion == 0 {
		c.warn("traces", "the kubelet traces nothing and tracing-sampling-rate-per-million is 0, so there are no traces",
			"set tracing in "+kubeletConfig+", or tracing-sampling-rate-per-million in "+config.DefaultFile)
		return
	}
	if c.isForeign() {
		c.ok("traces", "to "+tracing.Endpoint+", not tried with --root")
		return
	}
	address, isUnix := strings.CutPrefix(tracing.Endpoint, "unix://")
	network := "tcp"
	if isUnix {
		network = "unix"
	}
	conn, err := (&net.Dialer{Timeout: collectorTimeout}).DialContext(ctx, network, address)
	if err != nil {
		c.warn("traces", "the collector is not reached, so traces are lost: "+err.Error(), "start the collector, or correct tracing-endpoint")
		return
	}
	_ = conn.Close()
	c.ok("traces", "the collector at "+tracing.Endpoint+" accepts connections")
}
