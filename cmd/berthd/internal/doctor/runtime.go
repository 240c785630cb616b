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
	"berth/core/ociruntime"
)

// runtimeTimeout is for the inspects of all containers of the node.
const runtimeTimeout = 15 * time.Second

// instructionsDir returns the directory of instructions for the OCI runtime of berth.
func (c *checker) instructionsDir() string {
	return filepath.Join(c.daemon.RunDir, ociinstall.InstructionsName)
}

// checkRuntime checks the OCI runtime of berth, the runtimes in daemon.json that call it, and what pods get from it.
func (c *checker) checkRuntime(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, runtimeTimeout)
	defer cancel()
	report := ociinstall.Inspect(ctx, ociinstall.Config{
		Docker: engine.Config{Host: c.daemon.DockerEndpoint}, ConfigFile: dockerconfig.DefaultFile, Program: ociinstall.DefaultProgram, Dir: ociinstall.DefaultDir,
		Instructions: c.instructionsDir(), Root: c.Root,
	})
	c.reportRuntime(report)
	c.checkUserNamespaces(report.Installed())
}

// reportRuntime adds the results for the OCI runtime.
func (c *checker) reportRuntime(report *ociinstall.Report) {
	const check = "oci runtime"
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

// checkUserNamespaces checks whether pods can have user namespaces. installed says that the OCI runtime is there, which is
// optional.
func (c *checker) checkUserNamespaces(installed bool) {
	const check = "userns"
	if c.engine == nil {
		return
	}
	probe, note := ociruntime.NewProber().Probe, ""
	if c.isForeign() { // the kernel and the file systems would be those of this node
		probe, note = func(engine.Features) error { return nil }, "; kernel and file systems are not tried with --root"
	}
	_, err := ociruntime.New(c.instructionsDir(), probe).Support().Runtime("", *c.engine)
	switch {
	case err == nil:
		c.ok(check, "pods can have user namespaces (hostUsers: false)"+note)
	case installed:
		c.warn(check, fmt.Sprintf("pods with hostUsers: false are refused: %v", err), "do what the message says, or run such pods on other nodes")
	default:
		c.ok(check, fmt.Sprintf("pods with hostUsers: false are refused: %v", err))
	}
}
