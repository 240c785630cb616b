package config

import (
	"strings"

	"berth/core/containerd"
	"berth/core/dockerconfig"
	"berth/core/ociinstall"
	"berth/core/podpolicy"
	"berth/core/restore"
	"berth/core/specfiles"
)

// configGroups returns the options that set cfg. Names and defaults that cri-dockerd has too are
// those of cri-dockerd 0.4, whose units and drop-ins must go on working.
func configGroups(cfg *Config) []*Group {
	return []*Group{
		{Title: "Docker and the kubelet", options: dockerOptions(cfg)},
		{Title: "Pods and images", options: []*option{
			{name: "pod-infra-container-image", value: newValue(&cfg.PauseImage, parseImage), initial: "registry.k8s.io/pause:3.10", reloadable: true,
				usage: "`IMAGE` of the pause container; if it cannot be pulled, a built-in one is used"},
			{name: "image-pull-progress-deadline", value: newValue(&cfg.PullProgress, parsePositiveDuration), initial: "1m0s",
				usage: "a pull that waits for the registry without progress for so long is cancelled; unpacking does not count"},
			{name: "node-credentials", value: newValue(&cfg.NodeCredentials, parseBool), initial: "false",
				usage: "pull images of pods without credentials of their own with those of root's docker login and credential helpers on this node; everyone who may create a pod can then run every image that they give access to"},
			{name: "registry-mirrors", value: newValue(&cfg.RegistryMirrors, parseMirrors), initial: "", reloadable: true,
				usage: "`MIRRORS` that images are pulled from before the registry in their name, as HOST=MIRROR separated by commas, like quay.io=https://mirror.example:5000/quay; several of a HOST are tried in this order"},
			{name: "image-verifier-dir", value: newValue(&cfg.VerifierDir, parseOptionalDir), initial: "", reloadable: true,
				usage: "`DIR` of programs that must all allow an image before it is pulled, called as containerd calls its image verifiers; empty for none. It must exist, and only root may be able to write to it"},
			{name: "image-verifier-timeout", value: newValue(&cfg.VerifierTimeout, parsePositiveDuration), initial: "10s", reloadable: true,
				usage: "how long each of these programs may take"},
			{name: "image-verifier-max", value: newValue(&cfg.VerifierMax, parseVerifierMax), initial: "10", reloadable: true,
				usage: "how many of them are called, in the order of their names; the rest is skipped. -1 for all"},
			{name: "keep-local-images", value: newValue(&cfg.KeepLocalImages, parseBool), initial: "true", reloadable: true,
				usage: "have the kubelet's garbage collection spare images that were built, loaded or tagged on this node and those that containers outside of Kubernetes use"},
			{name: "pinned-images", value: newValue(&cfg.PinnedImages, parsePinnedImages), initial: "", reloadable: true,
				usage: "names of `IMAGES` that the kubelet's garbage collection spares, separated by commas, with or without tag and docker.io; * stands for any characters, ? for one"},
			{name: "pin-labels", value: newEnum(&cfg.PinLabels, "built", "all", "none"), initial: "built", reloadable: true,
				usage: "images whose label berth.pin=true has the kubelet's garbage collection spare them: built, those built on this node; all, also those that are pulled; or none"},
			{name: "cdi-annotations", value: newValue(&cfg.CDIAnnotations, parseBool), initial: "true",
				usage: "annotations cdi.k8s.io/... of containers, which device plugins set, request CDI devices"},
			{name: "cdi-spec-dirs", value: newValue(&cfg.CDISpecDirs, parseDirs), initial: "/etc/cdi,/var/run/cdi",
				usage: "`DIRS` of CDI specifications, separated by commas, for a Docker without CDI; one with CDI uses those of its daemon.json"},
		}},
		{Title: "What pods may have beyond the Kubernetes API", options: policyOptions(cfg)},
		{Title: "Changes of OCI specs, with berthd runtime install", options: specOptions(cfg)},
		{Title: "Node Resource Interface (NRI)", options: nriOptions(cfg)},
		{Title: "Container logs", options: []*option{
			{name: "container-logs", value: newEnum(&cfg.ContainerLogs, "cri", "symlink", "follow"), initial: "cri",
				usage: "how new containers get the log file that the kubelet reads: cri, written by berthd from Docker's log files and rotated by the kubelet; symlink, a link to the json-file; or follow, written by berthd from Docker's log stream, with any log-driver in daemon.json"},
			{name: "log-buffer", value: newEnum(&cfg.LogBuffer, "local", "json-file"), initial: "local",
				usage: "Docker's log driver of new containers with container-logs cri, whose files berthd reads: local, which keeps all bytes and needs less CPU and disk; or json-file, for other programs that read Docker's files"},
		}},
		{Title: "Network", options: networkOptions(cfg)},
		{Title: "Files and log", options: []*option{
			{name: "cri-dockerd-root-directory", value: newValue(&cfg.RootDir, parseDir), initial: "/var/lib/cri-dockerd",
				usage: "`DIR` of the state that must survive a reboot"},
			{name: "run-dir", value: newValue(&cfg.RunDir, parseDir), initial: DefaultRunDir,
				usage: "`DIR` of the files of running pods. If it is not the default, their network namespaces are bound below it too, and not in /var/run/netns where network agents look for them"},
			{name: "debug-socket", value: newValue(&cfg.DebugSocket, parseDebugSocket), initial: "debug.sock",
				usage: "`SOCKET`, only for root, that berthd pulls reads the state of the daemon from: an absolute path, or one relative to run-dir; empty for none"},
			{name: "log-level", value: &parsedValue[string]{target: &cfg.LogLevel, parse: parseLogLevel, choices: logLevels}, initial: "info", reloadable: true,
				usage: "lowest level that is logged: trace, debug, info, warn, error, fatal or panic"},
			{name: "log-format", value: newEnum(&cfg.LogFormat, "text", "json"), initial: "text",
				usage: "text or json"},
		}},
		{Title: "Metrics", options: []*option{
			{name: "metrics-bind-addr", value: newValue(&cfg.MetricsAddr, parseMetricsAddr), initial: "",
				usage: "`IP:PORT` to serve /metrics for Prometheus and /healthz on, or only a port for 127.0.0.1; empty for none. There is no authentication"},
			{name: "profiling", value: newValue(&cfg.Profiles, parseBool), initial: "false",
				usage: "serve profiles of the daemon itself at /debug/pprof/ of metrics-bind-addr, which must be on the loopback"},
		}},
		{Title: "Traces", options: tracingOptions(cfg)},
		{Title: "Without effect, accepted with a warning", options: ignoredOptions()},
	}
}

func dockerOptions(cfg *Config) []*option {
	return []*option{
		{name: "container-runtime-endpoint", value: newValue(&cfg.Endpoint, parseEndpoint), initial: "unix:///var/run/cri-dockerd.sock",
			usage: "socket that the kubelet connects to: unix:///`PATH`, also if systemd passes a socket at that path; fd:// for the first socket that systemd passes, or fd://NAME for the one of that name"},
		{name: "docker-endpoint", value: newValue(&cfg.DockerEndpoint, parseDockerHost), initial: "unix:///var/run/docker.sock",
			usage: "Docker's address: unix:///`PATH` or tcp://HOST:PORT, with TLS as DOCKER_CERT_PATH and DOCKER_TLS_VERIFY of the environment say; empty for DOCKER_HOST of the environment"},
		{name: "runtime-request-timeout", value: newValue(&cfg.RequestTimeout, parseRequestTimeout), initial: "0s",
			usage: "timeout of short calls to Docker; 0 for 1m59s"},
		{name: "streaming-bind-addr", value: newValue(&cfg.StreamingAddr, parseStreamingAddr), initial: "",
			usage: "`IP` or IP:PORT to serve exec, attach and port-forward on; empty for 127.0.0.1 (cri-dockerd: all addresses); without a port any free one"},
		{name: "streaming-tls-cert-file", value: newValue(&cfg.StreamingTLS.Cert, parseOptionalPath), initial: "",
			usage: "`FILE` with the certificate chain to serve exec, attach and port-forward with; the kubelet must trust it. Empty for no TLS"},
		{name: "streaming-tls-private-key-file", value: newValue(&cfg.StreamingTLS.Key, parseOptionalPath), initial: "",
			usage: "`FILE` with the key of that certificate"},
		{name: "streaming-tls-client-ca-file", value: newValue(&cfg.StreamingTLS.ClientCA, parseOptionalPath), initial: "",
			usage: "`FILE` with the CAs of clients: exec, attach and port-forward are only for those with a certificate of one of them. The kubelet shows none, so kubectl exec and port-forward fail then. Empty for no client certificates"},
	}
}

func tracingOptions(cfg *Config) []*option {
	return []*option{
		{name: "tracing-endpoint", value: newValue(&cfg.Tracing.Endpoint, parseCollector), initial: "",
			usage: "`HOST:PORT` of an OpenTelemetry collector (OTLP over gRPC, without TLS) for traces, or unix:///PATH of its socket; as tracing.endpoint of the kubelet. Empty for no traces"},
		{name: "tracing-sampling-rate-per-million", value: newValue(&cfg.Tracing.SamplesPerMillion, parsePerMillion), initial: "0",
			usage: "how many of a million calls without a trace context are traced; as tracing.samplingRatePerMillion of the kubelet. Calls with one are traced if their caller has sampled them"},
	}
}

func networkOptions(cfg *Config) []*option {
	return []*option{
		{name: "network-plugin", value: newValue(&cfg.NetworkPlugin, parseNetworkPlugin), initial: "cni",
			usage: "network of pods: cni, or \"\" or no-op for Docker's own bridge"},
		{name: "cni-conf-dir", value: newValue(&cfg.CNIConfDir, parseDir), initial: "/etc/cni/net.d",
			usage: "`DIR` of CNI configurations; the first valid one by name is used, or the network cni-default-network"},
		{name: "cni-default-network", value: newValue(&cfg.CNIDefaultNetwork, parseNetworkName), initial: "",
			usage: "`NAME` of the CNI network of pods, as in its configuration; empty for the first one by file name"},
		{name: "cni-conf-template", value: newValue(&cfg.CNIConfTemplate, parseConfTemplate), initial: "",
			usage: "write a CNI configuration for the pod CIDR while cni-conf-dir has no other: \"bridge\" for a built-in one, or the absolute path of a `TEMPLATE` as for containerd; empty for none. For single nodes: on others the network of the cluster installs one"},
		{name: "cni-bin-dir", value: newValue(&cfg.CNIBinDirs, parseDirs), initial: "/opt/cni/bin",
			usage: "`DIRS` of CNI plugins, separated by commas"},
		{name: "cni-cache-dir", value: newValue(&cfg.CNICacheDir, parseDir), initial: "/var/lib/cni/cache",
			usage: "`DIR` of the cached results of CNI plugins"},
		{name: "pod-cidr", value: newValue(&cfg.PodCIDR, parseCIDRs), initial: "",
			usage: "`CIDRS` for cni-conf-template and for CNI plugins that ask for address ranges, separated by commas, until the kubelet sends some"},
	}
}

func policyOptions(cfg *Config) []*option {
	oci := podpolicy.Parse(func(o *podpolicy.Options, list []string) { o.OCIAnnotations = list })
	allow := podpolicy.Parse(func(o *podpolicy.Options, list []string) { o.AllowAnnotations = list })
	shims := podpolicy.Parse(func(o *podpolicy.Options, list []string) { o.ShimRuntimes = list })
	return []*option{
		{name: podpolicy.OCIAnnotationsOption, value: newValue(&cfg.OCIAnnotations, oci), initial: strings.Join(podpolicy.DefaultOCIAnnotations, ","),
			usage: "annotations of pods and containers that low-level runtimes get, as `GLOBS` or RUNTIME=GLOB for a runtime of daemon.json or a shim, separated by commas (Docker 24 or newer)"},
		{name: podpolicy.AllowAnnotationsOption, value: newValue(&cfg.AllowAnnotations, allow), initial: "",
			usage: "annotations that may set limits of pods, as `ANNOTATION=NAMESPACE`, separated by commas; the namespace * is all. The annotations are " + podpolicy.Ulimits + ", " + podpolicy.ShmSize + ", " + podpolicy.WritableCgroups + " and " + podpolicy.RootfsSize},
		{name: podpolicy.ShimRuntimesOption, value: newValue(&cfg.ShimRuntimes, shims), initial: "",
			usage: "containerd shims that pods may use as runtimes, as `HANDLER=SHIM` like gvisor=io.containerd.runsc.v1 with the handler of a RuntimeClass, separated by commas (Docker 23 or newer)"},
		{name: podpolicy.ShimPerPodOption, value: newValue(&cfg.ShimPerPod, parseBool), initial: "true",
			usage: "the containers of a pod share one process of containerd's shim for runc (Docker 24 or newer); false for one per container"},
	}
}

// specOptions returns the options that need berth's OCI runtime. Names that other runtimes have too are theirs.
func specOptions(cfg *Config) []*option {
	without := podpolicy.Parse(func(o *podpolicy.Options, list []string) { o.WithoutHostDevices = list })
	return []*option{
		{name: podpolicy.DeviceOwnershipOption, value: newValue(&cfg.DeviceOwnership, parseBool), initial: "false",
			usage: "devices of a container belong to its runAsUser and runAsGroup, as with the option of containerd"},
		{name: podpolicy.WithoutHostDevicesOption, value: newValue(&cfg.WithoutHostDevices, without), initial: "",
			usage: "`HANDLERS` of RuntimeClasses, separated by commas, whose privileged containers have only the devices that they request; " + podpolicy.DefaultHandlerName + " is Docker's default runtime"},
		{name: podpolicy.PodUTSNamespaceOption, value: newValue(&cfg.PodUTSNamespace, parseBool), initial: "false",
			usage: "the containers of a pod share its UTS namespace, so that a host name that one of them sets holds in all"},
		{name: specfiles.SpecDirOption, value: newValue(&cfg.SpecDir, parseOptionalDir), initial: specfiles.DefaultSpecDir,
			usage: "`DIR` of JSON merge patches of config.json, HANDLER.json for the containers of a runtime handler and " + podpolicy.DefaultHandlerName + ".json for the default one; only root may be able to write to it. Empty for none"},
		{name: specfiles.HooksDirsOption, value: newValue(&cfg.HooksDirs, parseOptionalDirs), initial: "",
			usage: "`DIRS` of OCI hooks, separated by commas, in the format of oci-hooks(5) 1.0.0; they must exist, and only root may be able to write to them"},
		{name: restore.ArchiveDirOption, value: newValue(&cfg.RestoreArchiveDir, parseOptionalDir), initial: "",
			usage: "`DIR` of checkpoints: a container whose image is the path of an archive below it is restored from that, and RestorePod takes checkpoints of pods from there. They can do what root can; only root may be able to write to it. Empty for none"},
		{name: restore.ImagesOption, value: newValue(&cfg.RestoreImages, parsePinnedImages), initial: "",
			usage: "names of `IMAGES` that are checkpoints, separated by commas, as for pinned-images: containers are restored from them. They can do what root can"},
	}
}

// ignoredOptions returns the options of cri-dockerd, and of dockershim before it, that have no effect.
func ignoredOptions() []*option {
	return []*option{
		{name: "ipv6-dual-stack", value: newValue(new(bool), parseBool), initial: "false",
			ignored: "all addresses that CNI gives to a pod are reported"},
		{name: "network-plugin-mtu", value: newValue(new(int), parseInt), initial: "0",
			ignored: "it was for kubenet; set the MTU in the CNI configuration"},
		{name: "hairpin-mode", value: newEnum(new(string), "none", "hairpin-veth", "promiscuous-bridge"), initial: "none",
			ignored: "it was for kubenet; set hairpinMode in the CNI configuration"},
		{name: "runtime-cgroups", value: newValue(new(string), parseString), initial: "",
			ignored: "Docker's cgroup is left to its service manager"},
		{name: "network-plugin-dir", value: newValue(new(string), parseString), initial: "",
			ignored: "use cni-bin-dir"},
		{name: "non-masquerade-cidr", value: newValue(new(string), parseString), initial: "",
			ignored: "it was for kubenet; set ipMasq in the CNI configuration"},
		{name: "experimental-dockershim-root-directory", value: newValue(new(string), parseString), initial: "",
			ignored: "use cri-dockerd-root-directory"},
		{name: "docker-exec-handler", value: newValue(new(string), parseString), initial: "",
			ignored: "commands are always run by Docker itself"},
		{name: "cgroup-driver", value: newValue(new(string), parseString), initial: "",
			ignored: "the driver is that of Docker, and berthd reports it to the kubelet"},
	}
}

// invocationGroups returns the options that set i.
func invocationGroups(i *Invocation, defaultFile string) []*Group {
	return []*Group{
		{Title: "For single commands", options: []*option{
			{name: "json", commands: []string{DoctorCommand, PodsCommand, PullsCommand, ImagesCopyCommand, RuntimeStatusCommand}, value: newValue(&i.JSON, parseBool), initial: "false",
				usage: "print JSON; images copy prints one object per line"},
			{name: "root", commands: []string{DoctorCommand}, value: newValue(&i.Root, parseDir), initial: "/", usage: "doctor: `DIR` with the files of the node"},
			{name: "namespace", shorthand: "n", commands: []string{PodsCommand}, value: newValue(&i.Namespace, parseString), initial: "",
				usage: "pods: only those of the `NAMESPACE`"},
			{name: "output", shorthand: "o", commands: []string{PodsCommand, RuntimeStatusCommand}, value: newEnum(&i.Output, "table", "wide", "json"), initial: "table",
				usage: "pods, runtime status: table; wide, only for pods, with Docker's names, network namespaces and log files; or json"},
			{name: "dry-run", commands: []string{ImagesCopyCommand, RuntimeInstallCommand, RuntimeRemoveCommand}, value: newValue(&i.DryRun, parseBool), initial: "false",
				usage: "images copy, runtime install, runtime remove: print what would be done, and do nothing"},
			{name: "watch", commands: []string{PullsCommand}, value: newValue(&i.Watch, parseBool), initial: "false", usage: "pulls: go on until interrupted, also while no image is pulled"},
		}},
		{Title: "For images copy", options: copyOptions(&i.Copy)},
		{Title: "For runtime install, status and remove", options: runtimeOptions(&i.Runtime)},
		{Title: "General", options: []*option{
			{name: "config", value: newValue(&i.ConfigFile, parseFile), initial: defaultFile, usage: "configuration `FILE`"},
			{name: "help", shorthand: "h", value: newValue(&i.Help, parseBool), initial: "false", usage: "print this help"},
			{name: "version", value: newValue(&i.Version, parseBool), initial: "false", usage: "print the version"},
			{name: "buildinfo", value: newValue(&i.Buildinfo, parseBool), initial: "false", usage: "print the version, the commit and the version of Go"},
		}},
	}
}

// runtimeOptions returns the options of the commands runtime install, status and remove.
func runtimeOptions(r *Runtime) []*option {
	all := []string{RuntimeInstallCommand, RuntimeStatusCommand, RuntimeRemoveCommand}
	return []*option{
		{name: "docker-config", commands: all, value: newValue(&r.ConfigFile, parsePath), initial: dockerconfig.DefaultFile,
			usage: "`FILE` that dockerd reads its configuration from"},
		{name: "runtime-program", commands: all, value: newValue(&r.Program, parsePath), initial: ociinstall.DefaultProgram,
			usage: "`FILE` that is the OCI runtime to install"},
		{name: "runtime-dir", commands: all, value: newValue(&r.Dir, parseDir), initial: ociinstall.DefaultDir,
			usage: "`DIR` that it is copied to, where no package changes it"},
	}
}

// copyOptions returns the options of the command images copy.
func copyOptions(c *Copy) []*option {
	options := []*option{
		{name: "to", value: newRuntime(&c.To), initial: "", usage: "copy images of Docker to this `RUNTIME`: containerd"},
		{name: "from", value: newRuntime(&c.From), initial: "", usage: "copy images of this `RUNTIME` to Docker: containerd"},
		{name: "containerd-address", value: newValue(&c.Address, parseSocket), initial: containerd.DefaultAddress,
			usage: "`FILE` that is the socket of containerd"},
		{name: "containerd-namespace", value: newValue(&c.Namespace, parseNamespace), initial: containerd.KubernetesNamespace,
			usage: "`NAMESPACE` of the images in containerd; that of the kubelet's images is k8s.io"},
		{name: "used", value: newValue(&c.Used, parseBool), initial: "false",
			usage: "copy only images that containers use, running or not: run it before the node is drained"},
	}
	for _, opt := range options {
		opt.commands = []string{ImagesCopyCommand}
	}
	return options
}
