package doctor

import (
	"context"
	"strings"

	"berth/core/criu"
	"berth/core/hostprobe"
)

// checkCRIU says whether containers can be checkpointed, which nothing but CheckpointContainer needs.
func (c *checker) checkCRIU(ctx context.Context) {
	const check = "criu"
	socket, isUnix := strings.CutPrefix(c.daemon.DockerEndpoint, "unix://")
	if c.isForeign() || !isUnix {
		return // Docker runs on another node
	}
	dockerd, err := hostprobe.Dockerd("/proc", socket)
	if err != nil {
		return // others check it
	}
	version, err := criu.Probe(ctx, dockerd.PID)
	if err != nil {
		c.ok(check, "checkpoints of containers are refused: "+err.Error())
		return
	}
	c.ok(check, "version "+version+", for checkpoints of containers")
}
