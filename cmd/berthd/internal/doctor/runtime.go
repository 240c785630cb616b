package doctor

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"berth/core/dockerconfig"
	"berth/core/engine"
	"berth/core/ociinstall"
)

// runtimeTimeout is for the inspects of all containers of the node.
const runtimeTimeout = 15 * time.Second

// checkRuntime checks the OCI runtime of berth and the runtimes in daemon.json that call it.
func (c *checker) checkRuntime(ctx context.Context) {
	const check = "oci runtime"
	ctx, cancel := context.WithTimeout(ctx, runtimeTimeout)
	defer cancel()
	report := ociinstall.Inspect(ctx, ociinstall.Config{
		Docker: engine.Config{Host: c.daemon.DockerEndpoint}, ConfigFile: dockerconfig.DefaultFile, Program: ociinstall.DefaultProgram, Dir: ociinstall.DefaultDir,
		Instructions: filepath.Join(c.daemon.RunDir, ociinstall.InstructionsName), Root: c.Root,
	})
	if !report.Installed() {
		c.ok(check, "not installed; pods that need it are refused until: berthd runtime install")
		return
	}
	for _, p := range report.Problems {
		add := c.warn
		if p.Severe {
			add = c.fail
		}
		add(check, p.Message, p.Fix)
	}
	var list []string
	for _, r := range report.Runtimes {
		list = append(list, r.Name)
	}
	if !c.has(check) {
		c.ok(check, fmt.Sprintf("version %s, for %s", report.Program.Version, strings.Join(list, ", ")))
	}
}
