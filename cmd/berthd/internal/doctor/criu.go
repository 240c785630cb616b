package doctor

import (
	"context"
	"strings"

	"berth/core/criu"
	"berth/core/hostprobe"
	"berth/core/restore"
	"berth/core/specedit"
	"berth/core/trust"
)

// checkCRIU says whether containers can be checkpointed, which nothing but CheckpointContainer and restored containers need.
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
	restores := c.checkRestore()
	switch {
	case err == nil:
		c.ok(check, "version "+version+", for checkpoints of containers")
	case restores:
		c.fail(check, "checkpoints are refused, and containers that are to be restored: "+err.Error(), "do what the message says")
	default:
		c.ok(check, "checkpoints of containers are refused: "+err.Error())
	}
}

// checkRestore checks what the options for restored containers need besides CRIU, and reports whether one of them is set.
func (c *checker) checkRestore() (set bool) {
	if dir := c.daemon.RestoreArchiveDir; dir != "" {
		if err := trust.Check(dir); err != nil {
			c.fail(restore.ArchiveDirOption, "no container is restored from an archive: "+err.Error(), "create the directory for root alone, or correct its owner or mode")
		}
	}
	for _, option := range []string{restore.ArchiveDirOption, restore.ImagesOption} {
		if option == restore.ArchiveDirOption && c.daemon.RestoreArchiveDir == "" || option == restore.ImagesOption && len(c.daemon.RestoreImages) == 0 {
			continue
		}
		set = true
		if c.engine != nil && !specedit.Installed("", c.instructionsDir(), *c.engine) {
			c.fail(option, "containers that are to be restored are refused: Docker does not have the OCI runtime of berth", "berthd runtime install")
		}
	}
	return set
}
