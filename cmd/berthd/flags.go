package main

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// An option is one thing that an operator can choose, with a flag or with a key of
// that name in a configuration file.
type option struct {
	name    string
	short   string // one letter, if any
	value   value
	initial string // the default, as one would write it
	usage   string

	// idle, for an option that is only taken so that old command lines go on
	// working, says why it has no effect or what has it instead.
	idle string

	from string // where the value was given; empty for the default
}

// A group of options is a section of the help.
type group struct {
	title   string
	options []*option
}

// options is the table of all there is to choose, into cfg. The names and
// defaults of cri-dockerd's are cri-dockerd's, whose units and drop-ins must go
// on working.
func options(cfg *Config) []group {
	return []group{
		{"Docker and the kubelet", []*option{
			{name: "container-runtime-endpoint", value: set(&cfg.Endpoint, anEndpoint), initial: "unix:///var/run/cri-dockerd.sock",
				usage: "where the kubelet finds us: unix:///`PATH`, also where systemd passes a socket at that path, or fd:// or fd://NAME for the first socket or the one of that name that systemd passes"},
			{name: "docker-endpoint", value: set(&cfg.DockerEndpoint, aDockerHost), initial: "unix:///var/run/docker.sock",
				usage: "where Docker listens: unix:///`PATH` or tcp://HOST:PORT, with TLS by DOCKER_CERT_PATH and DOCKER_TLS_VERIFY of the environment; empty for what DOCKER_HOST there says"},
			{name: "runtime-request-timeout", value: set(&cfg.RequestTimeout, aTimeout), initial: "0s",
				usage: "how long calls to Docker that should be short may take; 0 for 1m59s"},
			{name: "streaming-bind-addr", value: set(&cfg.StreamingAddr, anAddress), initial: "",
				usage: "`IP` or IP:PORT to serve exec, attach and port-forward on; empty for 127.0.0.1 (unlike cri-dockerd's all addresses); without a port any free one"},
			{name: "streaming-tls-cert-file", value: set(&cfg.StreamingTLS.Cert, aPath), initial: "",
				usage: "`FILE` of the certificate, and those it is signed by, to serve exec, attach and port-forward with; the kubelet must trust it. Empty for no TLS"},
			{name: "streaming-tls-private-key-file", value: set(&cfg.StreamingTLS.Key, aPath), initial: "",
				usage: "`FILE` of the key of that certificate"},
		}},
		{"Pods and images", []*option{
			{name: "pod-infra-container-image", value: set(&cfg.PauseImage, anImage), initial: "registry.k8s.io/pause:3.10",
				usage: "`IMAGE` of the process that holds a pod; where it cannot be pulled, a built-in one serves"},
			{name: "image-pull-progress-deadline", value: set(&cfg.PullProgress, aWait), initial: "1m0s",
				usage: "how long a pull may wait for the registry without progress before it is given up; unpacking does not count"},
			{name: "node-credentials", value: set(&cfg.NodeCredentials, yesOrNo), initial: "false",
				usage: "pull images of pods that bring no credentials with those of root's docker login and credential helpers on this node; anyone who may create a pod can then run every image that they are good for"},
		}},
		{"Logs of containers", []*option{
			{name: "container-logs", value: choice(&cfg.ContainerLogs, "cri", "symlink", "follow"), initial: "cri",
				usage: "how new containers get the log file that the kubelet reads: cri, written by us from Docker's json-file and rotated by the kubelet; symlink, a link to the json-file; or follow, written by us from Docker's log stream, whatever log-driver daemon.json names"},
		}},
		{"Network", []*option{
			{name: "network-plugin", value: set(&cfg.NetworkPlugin, aPlugin), initial: "cni",
				usage: "what gives pods their network: cni, or \"\" or no-op for Docker's own bridge"},
			{name: "cni-conf-dir", value: set(&cfg.CNIConfDir, aDir), initial: "/etc/cni/net.d",
				usage: "`DIR` of CNI configurations; the first valid one by name counts"},
			{name: "cni-bin-dir", value: set(&cfg.CNIBinDirs, someDirs), initial: "/opt/cni/bin",
				usage: "`DIRS` of CNI plugins, separated by commas"},
			{name: "cni-cache-dir", value: set(&cfg.CNICacheDir, aDir), initial: "/var/lib/cni/cache",
				usage: "`DIR` where it is kept what CNI plugins have answered"},
			{name: "pod-cidr", value: set(&cfg.PodCIDR, someCIDRs), initial: "",
				usage: "`CIDRS` for CNI plugins that ask for address ranges, separated by commas, until the kubelet sends some"},
		}},
		{"Files and log", []*option{
			{name: "cri-dockerd-root-directory", value: set(&cfg.RootDir, aDir), initial: "/var/lib/cri-dockerd",
				usage: "`DIR` of what must outlive a reboot"},
			{name: "run-dir", value: set(&cfg.RunDir, aDir), initial: theRunDir,
				usage: "`DIR` of the files of pods that run. With another than the default, their network namespaces are bound below it too, rather than in /var/run/netns where agents of networks look for them"},
			{name: "log-level", value: &setting[string]{to: &cfg.LogLevel, read: aLogLevel, words: levelNames()}, initial: "info",
				usage: "the least that is logged: trace, debug, info, warn, error, fatal or panic"},
			{name: "log-format", value: choice(&cfg.LogFormat, "text", "json"), initial: "text",
				usage: "text or json"},
		}},
		{"Metrics", []*option{
			{name: "metrics-bind-addr", value: set(&cfg.MetricsAddr, aMetricsAddress), initial: "",
				usage: "`IP:PORT` to serve /metrics for Prometheus and /healthz on, or only a port for 127.0.0.1; empty for none. Anyone who reaches it is told, without authentication"},
			{name: "profiling", value: set(&cfg.Profiles, yesOrNo), initial: "false",
				usage: "serve profiles of the daemon itself at /debug/pprof/ of metrics-bind-addr, which must be on the loopback"},
		}},
		{"Without effect, taken with a warning", []*option{
			{name: "ipv6-dual-stack", value: set(new(bool), yesOrNo), initial: "false",
				idle: "all addresses that CNI gives to a pod are reported"},
			{name: "network-plugin-mtu", value: set(new(int), aNumber), initial: "0",
				idle: "it was for kubenet; set the MTU in the CNI configuration"},
			{name: "hairpin-mode", value: choice(new(string), "none", "hairpin-veth", "promiscuous-bridge"), initial: "none",
				idle: "it was for kubenet; set hairpinMode in the CNI configuration"},
			{name: "runtime-cgroups", value: set(new(string), anything), initial: "",
				idle: "Docker's cgroup is left to its service manager"},
			{name: "network-plugin-dir", value: set(new(string), anything), initial: "",
				idle: "use cni-bin-dir"},
			{name: "non-masquerade-cidr", value: set(new(string), anything), initial: "",
				idle: "it was for kubenet; set ipMasq in the CNI configuration"},
			{name: "experimental-dockershim-root-directory", value: set(new(string), anything), initial: "",
				idle: "use cri-dockerd-root-directory"},
			{name: "docker-exec-handler", value: set(new(string), anything), initial: "",
				idle: "commands are always run by Docker itself"},
			{name: "cgroup-driver", value: set(new(string), anything), initial: "",
				idle: "it is Docker's own, and the kubelet is told"},
		}},
	}
}

// A call is how the program was called.
type call struct {
	name string // it goes by
	args []string
	file string // of the configuration, unless args name another
	out  io.Writer
}

// parse returns what the operator has chosen: flags win over configuration files, and they over
// defaults. It is done when all that was wanted has been written to c.out.
// What makes no sense is a usageError.
func parse(c call) (cfg Config, done bool, err error) {
	table := options(&cfg)
	var file string
	var showHelp, showVersion, showBuildinfo bool
	doctor := group{"For doctor", []*option{
		{name: "json", value: set(&cfg.doctor.json, yesOrNo), initial: "false", usage: "tell it as JSON"},
		{name: "root", value: set(&cfg.doctor.root, aDir), initial: "/", usage: "`DIR` where the files of the node are"},
	}}
	general := group{"General", []*option{
		{name: "config", value: set(&file, aFile), initial: c.file, usage: "`FILE` of options"},
		{name: "help", short: "h", value: set(&showHelp, yesOrNo), initial: "false", usage: "print this"},
		{name: "version", value: set(&showVersion, yesOrNo), initial: "false", usage: "print the version"},
		{name: "buildinfo", value: set(&showBuildinfo, yesOrNo), initial: "false", usage: "print what this was built from"},
	}}
	flags := pflag.NewFlagSet(c.name, pflag.ContinueOnError)
	flags.Usage = func() {} // an error is one line
	for _, g := range append(table, doctor, general) {
		set, err := g.flags()
		if err != nil {
			return cfg, false, err
		}
		flags.AddFlagSet(set)
	}

	if err := flags.Parse(c.args); err != nil {
		return cfg, false, misuse("%v (--help tells what there is)", err)
	}
	cfg.verb = strings.Join(flags.Args(), " ")
	switch {
	case showHelp:
		return cfg, true, printHelp(c, append(table, doctor, general))
	case showVersion:
		return cfg, true, printVersion(c.out, c.name)
	case showBuildinfo:
		return cfg, true, printBuildinfo(c.out, c.name)
	case !slices.ContainsFunc(verbs, func(v verb) bool { return v.words == cfg.verb }):
		return cfg, false, misuse("unknown command %q: there are %s (--help tells more)", cfg.verb, commands())
	case cfg.verb != verbDoctor && (flags.Changed("json") || flags.Changed("root")):
		return cfg, false, misuse("--json and --root are for doctor")
	case cfg.verb == verbCompletion:
		return cfg, true, printCompletion(c, append(table, doctor, general))
	case cfg.verb == verbMan:
		return cfg, true, printManual(c, append(table, doctor, general))
	}

	cfg.doctor.file = file
	given := map[*option]string{}
	for _, o := range all(table) {
		if flags.Changed(o.name) {
			given[o] = o.value.String()
		}
	}
	if err := readFiles(table, file, flags.Changed("config")); err != nil {
		return cfg, false, err
	}
	for o, said := range given {
		if err := o.value.Set(said); err != nil {
			return cfg, false, misuse("--%s %q: %w", o.name, said, err)
		}
		o.from = "command line"
	}
	if (cfg.StreamingTLS.Cert == "") != (cfg.StreamingTLS.Key == "") {
		return cfg, false, misuse("streaming-tls-cert-file and streaming-tls-private-key-file: one needs the other")
	}
	for _, o := range all(table) {
		if o.idle != "" && o.from != "" {
			cfg.warnings = append(cfg.warnings, warning{o.name, o.from, o.idle})
		}
	}
	switch host, _, err := net.SplitHostPort(cfg.MetricsAddr); {
	case cfg.Profiles && cfg.MetricsAddr == "":
		return cfg, false, misuse("--profiling needs metrics-bind-addr")
	case cfg.Profiles && (err != nil || !onLoopback(host)):
		return cfg, false, misuse("--profiling shows what is in memory to anyone who asks: metrics-bind-addr must be on the loopback, not %s", cfg.MetricsAddr)
	}
	if cfg.verb == verbPrint {
		return cfg, true, printConfig(c.out, table, cfg.warnings)
	}
	return cfg, false, nil
}

// A verb is what the program does, by the words that ask for it.
type verb struct{ words, usage string }

const (
	verbServe      = ""
	verbPrint      = "config print"
	verbDoctor     = "doctor"
	verbCompletion = "completion bash"
	verbMan        = "man"
)

var verbs = []verb{
	{verbServe, "serve until told to stop"},
	{verbPrint, "print the options in force, and where they were given"},
	{verbDoctor, "look over this node, and tell what is wrong and what to do; --json for programs"},
	{verbCompletion, "print what lets bash complete commands"},
	{verbMan, "print the manual page"},
}

// commands names all verbs that have words.
func commands() string {
	var names []string
	for _, v := range verbs {
		if v.words != verbServe {
			names = append(names, v.words)
		}
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}

// all returns the options of all groups.
func all(table []group) (found []*option) {
	for _, g := range table {
		found = append(found, g.options...)
	}
	return found
}

// flags gives the options of the group their defaults and returns their flags.
func (g group) flags() (*pflag.FlagSet, error) {
	set := pflag.NewFlagSet(g.title, pflag.ContinueOnError)
	set.SortFlags = false
	for _, o := range g.options {
		if err := o.value.Set(o.initial); err != nil {
			return nil, fmt.Errorf("default of --%s: %w", o.name, err)
		}
		usage := o.usage
		if o.idle != "" {
			usage = o.idle
		}
		f := set.VarPF(o.value, o.name, o.short, usage)
		f.DefValue = o.initial
		if o.value.Type() == "bool" {
			f.NoOptDefVal = "true"
		}
	}
	return set, nil
}

// program is what we are called: by our own name, or cri-dockerd's where a
// link makes us stand in for it.
func program(arg0 string) string {
	if base := filepath.Base(arg0); base == "cri-dockerd" {
		return base
	}
	return "berthd"
}

// printHelp keeps each flag on one line, with its default: scripts look for that.
func printHelp(c call, table []group) error {
	var text strings.Builder
	fmt.Fprintf(&text, `%[1]s lets Kubernetes run its pods on Docker Engine. It serves the Container
Runtime Interface for a kubelet:

  kubeadm init --cri-socket unix:///var/run/cri-dockerd.sock

Usage:
`, c.name)
	for _, v := range verbs {
		call := strings.Join(strings.Fields(c.name+" "+v.words+" [flags]"), " ")
		fmt.Fprintf(&text, "  %-32s%s\n", call, v.usage)
	}
	for _, g := range table {
		set, err := g.flags()
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "\n%s:\n%s", g.title, set.FlagUsages())
	}
	fmt.Fprintf(&text, `
Files:
  %[1]s may hold any option but the general ones, as YAML with the names
  of the flags as keys. Files config.d/*.yaml beside it are read after it, by name,
  and the last one to say something wins; flags win over all of them. What --config names
  must exist; by default nothing need.

    log-level: debug
    cni-bin-dir: [/opt/cni/bin, /usr/lib/cni]

Signals:
  TERM, INT   stop; pods go on, and are known again after the next start
  HUP         read the configuration again and take over its log-level; all else
              takes a restart

Exit codes:
  0   stopped when told to
  1   could not do its work; doctor: something is wrong
  2   a flag, an argument or a configuration file makes no sense
`, c.file)
	_, err := io.WriteString(c.out, text.String())
	return err
}
