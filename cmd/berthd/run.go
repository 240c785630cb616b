package main

import (
	"fmt"
	"log/slog"
	"net"
	"strings"

	"berth/cmd/berthd/internal/config"
	"berth/core/cdi"
	"berth/core/daemon"
	"berth/core/image"
	"berth/core/image/pinning"
	"berth/core/image/verify"
	"berth/core/logs"
	"berth/network"
	"berth/network/cnitemplate"
	"berth/streaming"
)

// newDaemon returns the daemon that the options describe. It serves the debug socket on debug unless that is nil.
func newDaemon(cfg config.Config, debug net.Listener, log *slog.Logger) (*daemon.Daemon, error) {
	warnOfOpenAddresses(cfg, log)
	daemonCfg, err := daemonConfig(cfg)
	if err != nil {
		return nil, err
	}
	daemonCfg.Debug = debug
	return daemon.New(daemonCfg, log)
}

// daemonConfig translates the options into the configuration of the daemon. It reads the template of the
// network.
func daemonConfig(cfg config.Config) (daemon.Config, error) {
	var template *cnitemplate.Template
	if cfg.CNIConfTemplate != "" {
		var err error
		if template, err = cnitemplate.Load(cfg.CNIConfTemplate); err != nil {
			return daemon.Config{}, fmt.Errorf("cni-conf-template: %w", err)
		}
	}
	return daemon.Config{
		Version: version, Commit: commit, Endpoint: cfg.Endpoint, RootDir: cfg.RootDir, RunDir: cfg.RunDir,
		DockerHost: cfg.DockerEndpoint, RequestTimeout: cfg.RequestTimeout, ContainerLogs: logs.Mode(cfg.ContainerLogs), LogBuffer: logs.Buffer(cfg.LogBuffer),
		PauseImage: cfg.PauseImage, PullProgress: cfg.PullProgress, NodeCredentials: cfg.NodeCredentials,
		RegistryMirrors: cfg.RegistryMirrors, ImageVerifiers: imageVerifiers(cfg),
		PodOptions: cfg.PodOptions(), SpecFiles: cfg.SpecFiles(), NRI: cfg.NRIOptions(), Restore: cfg.Restore(),
		Pin:    image.PinConfig{Policy: pinPolicy(cfg)},
		CDI:    cdi.Config{SpecDirs: cfg.CDISpecDirs, Annotations: cfg.CDIAnnotations},
		Bridge: cfg.NetworkPlugin == config.NoCNI,
		Network: network.Config{
			ConfDir: cfg.CNIConfDir, BinDirs: cfg.CNIBinDirs, CacheDir: cfg.CNICacheDir, RunDir: cfg.RunDir, NetNSDir: cfg.NetNSDir(), PodCIDR: cfg.PodCIDR,
			DefaultNetwork: cfg.CNIDefaultNetwork, Template: template,
		},
		Streaming: daemon.Streaming{Addr: cfg.StreamingAddr, TLS: cfg.StreamingTLS},
		Tracing:   daemon.Tracing(cfg.Tracing),
		Metrics:   daemon.Metrics{Addr: cfg.MetricsAddr, Profiles: cfg.Profiles},
	}, nil
}

// warnOfOpenAddresses warns if streams or metrics are served to other hosts without protection.
func warnOfOpenAddresses(cfg config.Config, log *slog.Logger) {
	if cfg.StreamingTLS == (streaming.TLSFiles{}) && cfg.StreamingAddr != "" && !config.IsLoopback(hostOf(cfg.StreamingAddr)) {
		log.Warn("exec, attach and port-forward are served over the network without TLS: others on the network can read and change them; set streaming-tls-cert-file and streaming-tls-private-key-file, or leave streaming-bind-addr empty",
			slog.String("streaming-bind-addr", cfg.StreamingAddr))
	}
	if cfg.StreamingTLS.ClientCA != "" {
		log.Warn("exec, attach and port-forward are served only to clients with a certificate: the kubelet has none and cannot reach them itself",
			slog.String("streaming-tls-client-ca-file", cfg.StreamingTLS.ClientCA))
	}
	if cfg.MetricsAddr != "" && !config.IsLoopback(hostOf(cfg.MetricsAddr)) {
		log.Warn("metrics are served to other hosts without authentication", slog.String("metrics-bind-addr", cfg.MetricsAddr))
	}
	if e := cfg.Tracing.Endpoint; e != "" && !strings.HasPrefix(e, "unix:") && !config.IsLoopback(hostOf(e)) {
		log.Warn("traces are sent over the network without TLS: others on the network can read the names of pods, containers and images in them; use a collector on this node",
			slog.String("tracing-endpoint", e))
	}
}

// hostOf returns the host of an address that may have a port.
func hostOf(addr string) string {
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return addr
}

// pinPolicy translates the options that pin images.
func pinPolicy(cfg config.Config) pinning.Policy {
	return pinning.Policy{KeepLocal: cfg.KeepLocalImages, Labels: pinning.Labels(cfg.PinLabels), Patterns: cfg.PinnedPatterns()}
}

// imageVerifiers translates the options of image verifiers.
func imageVerifiers(cfg config.Config) verify.Config {
	return verify.Config{Dir: cfg.VerifierDir, Timeout: cfg.VerifierTimeout, Max: cfg.VerifierMax}
}
