package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"berth/core/nri"
	"berth/core/trust"
)

// checkNRI checks who serves NRI plugins. Pods do not depend on it, unless plugins are required.
func (c *checker) checkNRI() {
	const check = "NRI"
	o := c.daemon.NRIOptions()
	if !o.Enable || c.isForeign() {
		return
	}
	if err := trust.Check(o.PluginPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.warn(check, fmt.Sprintf("no plugins are served: nri-plugin-path: %v", err), "correct the directory, and: systemctl restart berth.service")
		return
	}
	pid, listens := nri.SocketOwner(o.SocketPath)
	switch owner := nri.Process(pid); {
	case !listens:
		c.ok(check, "nothing listens on "+o.SocketPath+" now")
	case strings.HasPrefix(owner, "berthd ") || strings.HasPrefix(owner, "cri-dockerd "):
		c.ok(check, owner+" listens on "+o.SocketPath)
	default:
		c.warn(check, fmt.Sprintf("%s listens on %s: plugins that connect there are not sent the pods of berthd", owner, o.SocketPath),
			`turn NRI off there (containerd: disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri"]) and restart it and berth.service, or set nri-socket-path`)
	}
}
