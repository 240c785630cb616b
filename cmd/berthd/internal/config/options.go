package config

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// Options are the flags of berthd and the Config that they and the configuration files
// make. The caller parses the flags of all Groups, then calls Load.
type Options struct {
	Config
	Invocation

	groups      []*Group
	options     []*option // those of Config
	defaultFile string
}

// A Group of flags is a section of the help.
type Group struct {
	Title string
	Flags *pflag.FlagSet

	options []*option
}

// An option is a flag and, if it is one of Config, a key of configuration files.
type option struct {
	name      string
	shorthand string // one letter, or empty
	value     value
	initial   string // the default, as it is written on a command line
	usage     string
	commands  []string // the only ones that have the flag; none for all

	// ignored is the reason why the option has no effect, or the option that replaces it. Such
	// options are accepted so that units and drop-ins for cri-dockerd go on working.
	ignored string

	// reloadable says that a reload applies the option; the others take a restart. The command has a function
	// for each that does it.
	reloadable bool

	flag   *pflag.Flag
	source string // where the value was given; empty for the default
}

// New returns Options with all defaults. defaultFile is the configuration file that is
// read if --config is not given; it need not exist.
func New(defaultFile string) (*Options, error) {
	o := &Options{defaultFile: defaultFile}
	o.groups = configGroups(&o.Config)
	for _, g := range o.groups {
		o.options = append(o.options, g.options...)
	}
	o.groups = append(o.groups, invocationGroups(&o.Invocation, defaultFile)...)
	for _, g := range o.groups {
		g.Flags = pflag.NewFlagSet(g.Title, pflag.ContinueOnError)
		g.Flags.SortFlags = false
		for _, opt := range g.options {
			if err := opt.addFlag(g.Flags); err != nil {
				return nil, err
			}
		}
	}
	return o, nil
}

// Groups returns all flags in the order of the help.
func (o *Options) Groups() []*Group { return o.groups }

// addFlag sets the default of the option and adds its flag to flags.
func (opt *option) addFlag(flags *pflag.FlagSet) error {
	if err := opt.value.Set(opt.initial); err != nil {
		return fmt.Errorf("default of --%s: %w", opt.name, err)
	}
	usage := opt.usage
	if opt.ignored != "" {
		usage = opt.ignored
	}
	opt.flag = flags.VarPF(opt.value, opt.name, opt.shorthand, usage)
	opt.flag.DefValue = opt.initial
	if opt.value.Type() == "bool" {
		opt.flag.NoOptDefVal = "true"
	}
	return nil
}

// Load reads the configuration files and applies the parsed flags again, which win over them.
// A file that --config names must exist.
func (o *Options) Load() error {
	given := map[*option]string{}
	for _, opt := range o.options {
		if opt.flag.Changed {
			given[opt] = opt.value.String()
		}
	}
	if err := o.readFiles(o.ConfigFile, slices.ContainsFunc(o.groups, func(g *Group) bool { return g.Flags.Changed("config") })); err != nil {
		return err
	}
	for opt, text := range given {
		if err := opt.value.Set(text); err != nil {
			return UsageErrorf("--%s %q: %w", opt.name, text, err)
		}
		opt.source = "command line"
	}
	o.defaultNRISocket()
	return o.validate()
}

// validate checks what concerns more than one option.
func (o *Options) validate() error {
	if (o.StreamingTLS.Cert == "") != (o.StreamingTLS.Key == "") {
		return UsageErrorf("streaming-tls-cert-file and streaming-tls-private-key-file: one needs the other")
	}
	if o.StreamingTLS.ClientCA != "" && o.StreamingTLS.Cert == "" {
		return UsageErrorf("streaming-tls-client-ca-file needs streaming-tls-cert-file: clients show certificates over TLS only")
	}
	if o.ContainerLogs != "cri" {
		buffer := o.option("log-buffer")
		if buffer.source != "" {
			return UsageErrorf("log-buffer %s needs container-logs cri: with %s the log files are not written from Docker's", o.LogBuffer, o.ContainerLogs)
		}
		buffer.ignored = "it is for container-logs cri"
	}
	if o.NetworkPlugin == NoCNI && o.CNIConfTemplate+o.CNIDefaultNetwork != "" {
		return UsageErrorf("cni-conf-template and cni-default-network need network-plugin cni: with Docker's own bridge there is no CNI network")
	}
	if o.Tracing.SamplesPerMillion > 0 && o.Tracing.Endpoint == "" {
		return UsageErrorf("--tracing-sampling-rate-per-million needs tracing-endpoint")
	}
	switch host, _, err := net.SplitHostPort(o.MetricsAddr); {
	case o.Profiles && o.MetricsAddr == "":
		return UsageErrorf("--profiling needs metrics-bind-addr")
	case o.Profiles && (err != nil || !IsLoopback(host)):
		return UsageErrorf("--profiling shows the memory of the daemon to every client: metrics-bind-addr must be on the loopback, not %s", o.MetricsAddr)
	}
	return nil
}

// CheckArgs checks the arguments of a berthd that serves, as they stand in a unit: the flags and the
// configuration files that it would read.
func CheckArgs(args []string, defaultFile string) error {
	o, err := New(defaultFile)
	if err != nil {
		return err
	}
	flags := pflag.NewFlagSet("berthd", pflag.ContinueOnError)
	flags.Usage = func() {}
	for _, g := range o.groups {
		flags.AddFlagSet(g.Flags)
	}
	if err := flags.Parse(args); err != nil {
		return FlagError(err)
	}
	if command := strings.Join(flags.Args(), " "); command != "" {
		return UsageErrorf("argument %q: a unit starts berthd with flags only", command)
	}
	return o.Load()
}

// enumerate returns "a", "a and b" or "a, b and c".
func enumerate(names []string) string {
	last := len(names) - 1
	if last == 0 {
		return names[0]
	}
	return strings.Join(names[:last], ", ") + " and " + names[last]
}

// CheckCommand returns a UsageError if a flag was given that the command of that name does not have.
func (o *Options) CheckCommand(command string) error {
	for _, g := range o.groups {
		for _, opt := range g.options {
			if opt.flag.Changed && len(opt.commands) > 0 && !slices.Contains(opt.commands, command) {
				return UsageErrorf("--%s is for %s", opt.name, enumerate(opt.commands))
			}
		}
	}
	return nil
}

// CommandFlags returns the flags that only some commands have, those of the given ones, and then the general flags.
func (o *Options) CommandFlags(commands []string) *pflag.FlagSet {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.SortFlags = false
	general := o.groups[len(o.groups)-1]
	for _, g := range o.groups {
		for _, opt := range g.options {
			if g == general || slices.ContainsFunc(commands, func(name string) bool { return slices.Contains(opt.commands, name) }) {
				flags.AddFlag(opt.flag)
			}
		}
	}
	return flags
}

// option returns the option of a name.
func (o *Options) option(name string) *option {
	return o.options[slices.IndexFunc(o.options, func(opt *option) bool { return opt.name == name })]
}

// Warnings returns the options that were given and have no effect.
func (o *Options) Warnings() (warnings []Warning) {
	for _, opt := range o.options {
		if opt.ignored != "" && opt.source != "" {
			warnings = append(warnings, Warning{opt.name, opt.source, opt.ignored})
		}
	}
	return warnings
}

// Print writes the options in effect as a configuration file that sets the same, with the place where it
// was given behind each that is not the default.
func (o *Options) Print(w io.Writer) error {
	root := &yaml.Node{Kind: yaml.MappingNode}
	for _, opt := range o.options {
		if opt.ignored != "" {
			continue
		}
		key, node := new(yaml.Node), new(yaml.Node)
		key.SetString(opt.name)
		if err := node.Encode(opt.value.yaml()); err != nil {
			return err
		}
		node.Style |= yaml.FlowStyle
		node.LineComment = opt.source
		root.Content = append(root.Content, key, node)
	}
	text, err := yaml.Marshal(root)
	if err != nil {
		return err
	}
	for _, warning := range o.Warnings() {
		text = fmt.Appendf(text, "# %s (%s) has no effect: %s\n", warning.Option, warning.Source, warning.Reason)
	}
	_, err = w.Write(text)
	return err
}
