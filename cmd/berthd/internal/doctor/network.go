package doctor

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"

	"berth/cmd/berthd/internal/config"
	"berth/network"
	"berth/network/cnitemplate"
)

// checkNetwork checks the CNI configuration and its plugins.
func (c *checker) checkNetwork(ctx context.Context) {
	if c.daemon.NetworkPlugin == config.NoCNI {
		c.warn("network", "pods are on Docker's own bridge, and cannot reach those of other nodes", "set network-plugin: cni for a cluster")
		return
	}
	if !c.checkTemplate() {
		return
	}
	var binDirs []string
	for _, dir := range c.daemon.CNIBinDirs {
		binDirs = append(binDirs, c.path(dir))
	}
	confDir := c.path(c.daemon.CNIConfDir)
	skipped := new(warnedFiles)
	cni := network.New(network.Config{ConfDir: confDir, BinDirs: binDirs, CacheDir: c.path(c.daemon.CNICacheDir), RunDir: c.path(c.daemon.RunDir), DefaultNetwork: c.daemon.CNIDefaultNetwork}, slog.New(skipped))
	var err error
	if c.isForeign() {
		err = cni.Installed() // Status would run the plugins
	} else {
		err = cni.Status(ctx)
	}
	files, _ := filepath.Glob(filepath.Join(confDir, "*"))
	switch {
	case err == nil:
		c.ok("network", "CNI configuration in "+confDir+" is valid and its plugins are there")
		for _, file := range skipped.files {
			c.warn("network", file+" is not valid and is skipped", "correct it or remove it")
		}
	case c.daemon.CNIDefaultNetwork != "" && strings.Contains(err.Error(), "(cni-default-network)"):
		c.fail("network", err.Error(), "set cni-default-network to the name of one of them, or install that network")
	case strings.Contains(err.Error(), "is not valid"):
		c.fail("network", err.Error(), "correct the file, or remove it and install the network of your cluster again")
	case len(files) == 0 && c.daemon.CNIConfTemplate != "":
		c.fail("network", err.Error(), "start berthd, which writes a file there once the kubelet has sent the pod CIDR (kubeadm --pod-network-cidr); if it has none, set pod-cidr")
	case len(files) == 0:
		c.fail("network", err.Error(), "install the network of your cluster (Calico, Cilium, Flannel, ...), which writes a file there; if it does so elsewhere, set cni-conf-dir")
	default:
		c.fail("network", err.Error(), "install the plugin (package kubernetes-cni or containernetworking-plugins), or add its directory to cni-bin-dir in "+config.DefaultFile)
	}
}

// checkTemplate checks cni-conf-template. It returns false if berthd would not start with it.
func (c *checker) checkTemplate() bool {
	source := c.daemon.CNIConfTemplate
	if source == "" {
		return true
	}
	if source != cnitemplate.Bridge {
		source = c.path(source)
	}
	if _, err := cnitemplate.Load(source); err != nil {
		c.fail("network", "cni-conf-template: "+err.Error(), "correct the template, or set cni-conf-template: "+cnitemplate.Bridge+" for the built-in one")
		return false
	}
	return true
}

// warnedFiles is a log handler that keeps the attribute "file" of each warning.
type warnedFiles struct{ files []string }

// Enabled reports whether level is a warning or more.
func (w *warnedFiles) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn
}

// Handle keeps the file of r, if there is one.
func (w *warnedFiles) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "file" {
			w.files = append(w.files, a.Value.String())
		}
		return true
	})
	return nil
}

// WithAttrs returns w: only attributes of a record are kept.
func (w *warnedFiles) WithAttrs([]slog.Attr) slog.Handler { return w }

// WithGroup returns w: the network package does not use groups.
func (w *warnedFiles) WithGroup(string) slog.Handler { return w }
