package main

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/client"
	"github.com/spf13/pflag"
)

// The words for running pods on Docker's own bridge.
const noCNI = "no-op"

// bind makes the flags that set cfg. Their names and defaults are those of
// cri-dockerd, whose units and drop-ins must go on working.
func bind(cfg *Config) *pflag.FlagSet {
	f := pflag.NewFlagSet("berthd", pflag.ContinueOnError)
	f.SortFlags = false
	text := func(to *string, name, value, usage string, valid func(string) (string, error)) {
		*to = value
		f.Var(&word{to, valid}, name, usage)
	}
	text(&cfg.Endpoint, "container-runtime-endpoint", "unix:///var/run/cri-dockerd.sock", "where the kubelet finds us: unix://PATH, or fd:// for a socket of systemd's", anEndpoint)
	text(&cfg.DockerEndpoint, "docker-endpoint", "unix:///var/run/docker.sock", "where Docker listens; empty for what DOCKER_HOST says", aDockerHost)
	text(&cfg.PauseImage, "pod-infra-container-image", "registry.k8s.io/pause:3.10", "image of the process that holds a pod; where it cannot be pulled, a built-in one serves", nil)
	text(&cfg.NetworkPlugin, "network-plugin", "cni", `what gives pods their network: cni, or "" for Docker's own bridge`, aPlugin)
	text(&cfg.CNIConfDir, "cni-conf-dir", "/etc/cni/net.d", "directory of CNI configurations; the first valid one counts", nil)
	cfg.CNIBinDirs = []string{"/opt/cni/bin"}
	f.StringSliceVar(&cfg.CNIBinDirs, "cni-bin-dir", cfg.CNIBinDirs, "directories of CNI plugins, with commas")
	text(&cfg.CNICacheDir, "cni-cache-dir", "/var/lib/cni/cache", "directory of what CNI plugins have answered", nil)
	text(&cfg.PodCIDR, "pod-cidr", "", "address ranges for CNI plugins that ask for them, with commas", someCIDRs)
	text(&cfg.RootDir, "cri-dockerd-root-directory", "/var/lib/cri-dockerd", "directory of what must outlive a restart", nil)
	text(&cfg.RunDir, "run-dir", "/run/berth", "directory of network namespaces and files of pods that run", nil)
	f.DurationVar(&cfg.PullProgress, "image-pull-progress-deadline", time.Minute, "how long a pull may make no progress before it is given up")
	f.DurationVar(&cfg.RequestTimeout, "runtime-request-timeout", 0, "how long short calls to Docker may take; 0 for 1m59s")
	text(&cfg.StreamingAddr, "streaming-bind-addr", "", "address for exec, attach and port-forward: HOST or HOST:PORT; empty for any port of 127.0.0.1", anAddress)
	text(&cfg.LogLevel, "log-level", "info", "trace, debug, info, warn, error, fatal or panic", oneOf(slices.Sorted(maps.Keys(levels))...))
	text(&cfg.LogFormat, "log-format", "text", "text or json", oneOf("text", "json"))

	// What cri-dockerd knew and what has no meaning any more: a value must still
	// be one, and using it is answered with a warning.
	f.Bool("ipv6-dual-stack", false, "no meaning any more: all addresses that CNI gives are reported")
	f.Int("network-plugin-mtu", 0, "no meaning any more: it was for kubenet")
	hairpin := "none"
	f.Var(&word{&hairpin, oneOf("none", "hairpin-veth", "promiscuous-bridge")}, "hairpin-mode", "no meaning any more: it was for kubenet; CNI plugins have their own option")
	f.String("runtime-cgroups", "", "no meaning any more: Docker's cgroup is its service manager's")

	f.String("config", defaultConfigFile, "file of options, as YAML; flags win over it")
	f.Bool("version", false, "print the version")
	f.Bool("buildinfo", false, "print what this was built from")
	f.BoolP("help", "h", false, "print this")
	return f
}

// retired are the flags that are taken and do nothing, and why.
var retired = map[string]string{
	"ipv6-dual-stack":    "--ipv6-dual-stack has no meaning any more: all addresses that CNI gives to a pod are reported",
	"network-plugin-mtu": "--network-plugin-mtu has no meaning any more: set the MTU in the configuration of the CNI plugin",
	"hairpin-mode":       "--hairpin-mode has no meaning any more: set hairpinMode in the configuration of the CNI plugin",
	"runtime-cgroups":    "--runtime-cgroups has no meaning any more: Docker's cgroup is its service manager's",
}

// fileKeys are the flags that may stand in a configuration file.
func fileKeys(f *pflag.FlagSet) []string {
	var keys []string
	f.VisitAll(func(flag *pflag.Flag) {
		if !slices.Contains([]string{"config", "version", "buildinfo", "help"}, flag.Name) {
			keys = append(keys, flag.Name)
		}
	})
	return keys
}

// parse reads the command line and the configuration file. It is done when all
// that was wanted has been printed to out.
func parse(name string, args []string, out io.Writer) (cfg Config, done bool, err error) {
	f := bind(&cfg)
	f.Usage = func() {}
	if err := f.Parse(args); err != nil {
		return cfg, false, misuse("%v (see --help)", err)
	}
	given := func(flag string) bool {
		on, err := f.GetBool(flag)
		return err == nil && on
	}
	switch {
	case given("help"):
		return cfg, true, help(out, program(name), f)
	case given("version"):
		_, err := fmt.Fprintf(out, "%s %s (%s)\n", program(name), version, commit)
		return cfg, true, err
	case given("buildinfo"):
		return cfg, true, buildinfo(out, program(name))
	case f.NArg() > 0:
		return cfg, false, misuse("%q: no argument is expected (see --help)", f.Arg(0))
	}
	path, err := f.GetString("config")
	if err != nil {
		return cfg, false, err
	}
	if err := readFile(f, path); err != nil {
		return cfg, false, err
	}
	// What the file has set counts as changed only to us.
	f.VisitAll(func(flag *pflag.Flag) {
		if why, ok := retired[flag.Name]; ok && flag.Value.String() != flag.DefValue || ok && flag.Changed {
			cfg.warnings = append(cfg.warnings, why)
		}
	})
	return cfg, false, cfg.check()
}

// program is what we are called: by our own name, or cri-dockerd's where a
// link makes us stand in for it.
func program(arg0 string) string {
	if base := filepath.Base(arg0); base == "cri-dockerd" {
		return base
	}
	return "berthd"
}

func help(out io.Writer, name string, f *pflag.FlagSet) error {
	_, err := fmt.Fprintf(out, `%s lets Kubernetes run its pods on Docker Engine.

Usage: %s [flags]

It serves the Container Runtime Interface for a kubelet:
  kubeadm init --cri-socket unix:///var/run/cri-dockerd.sock

Flags (also as keys of %s):
%s`, name, name, defaultConfigFile, f.FlagUsagesWrapped(100))
	return err
}

// A word is a flag whose value must be a certain kind of word.
type word struct {
	to    *string
	valid func(string) (string, error)
}

func (w *word) String() string {
	if w.to == nil {
		return ""
	}
	return *w.to
}

func (w *word) Type() string { return "string" }

// Set takes s, or says what it should have been.
func (w *word) Set(s string) error {
	if w.valid != nil {
		var err error
		if s, err = w.valid(s); err != nil {
			return err
		}
	}
	*w.to = s
	return nil
}

func oneOf(words ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		if !slices.Contains(words, s) {
			return "", fmt.Errorf("must be one of %s", strings.Join(words, ", "))
		}
		return s, nil
	}
}

func anEndpoint(s string) (string, error) {
	path, isUnix := strings.CutPrefix(s, "unix://")
	switch {
	case isUnix && filepath.IsAbs(path):
	case strings.HasPrefix(s, "fd://"):
	case filepath.IsAbs(s):
		return "unix://" + s, nil
	case strings.HasPrefix(s, "tcp://"):
		return "", fmt.Errorf("the CRI has no authentication and is served on Unix sockets only")
	default:
		return "", fmt.Errorf("must be unix:///PATH or fd://")
	}
	return s, nil
}

func aDockerHost(s string) (string, error) {
	if s == "" {
		return s, nil
	}
	if _, err := client.ParseHostURL(s); err != nil {
		return "", fmt.Errorf("must be like unix:///var/run/docker.sock or tcp://HOST:PORT")
	}
	return s, nil
}

func aPlugin(s string) (string, error) {
	switch s {
	case "cni":
		return s, nil
	case "", noCNI:
		return noCNI, nil
	case "kubenet":
		return "", fmt.Errorf("kubenet has left Kubernetes: use cni with the bridge plugin")
	default:
		return "", fmt.Errorf(`must be cni or ""`)
	}
}

func someCIDRs(s string) (string, error) {
	if s == "" {
		return s, nil
	}
	for cidr := range strings.SplitSeq(s, ",") {
		if _, err := netip.ParsePrefix(strings.TrimSpace(cidr)); err != nil {
			return "", fmt.Errorf("%q is no address range like 10.244.0.0/24", cidr)
		}
	}
	return s, nil
}

func anAddress(s string) (string, error) {
	if s == "" {
		return s, nil
	}
	host, _, err := net.SplitHostPort(s)
	if err != nil {
		host = s
	}
	if net.ParseIP(host) == nil && host != "localhost" {
		return "", fmt.Errorf("must be an IP address, or one with a port")
	}
	return s, nil
}
