package main

import (
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"berth/cmd/berthd/internal/config"
	"berth/cmd/berthd/internal/doctor"
	"berth/cmd/berthd/internal/pods"
	"berth/cmd/berthd/internal/pulls"
	"berth/core/ociinstall"
)

// An action is the work of a command, which takes flags only unless its Use names arguments.
type action func(cmd *cobra.Command, options *config.Options) error

// newCommand returns the tree of commands. All flags are flags of the root: units for cri-dockerd give
// them without a command, and each command accepts every flag of the daemon, before or after its name.
func (p *program) newCommand(options *config.Options) (*cobra.Command, error) {
	add := func(parent *cobra.Command, use, short string, run action) *cobra.Command {
		cmd := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: p.run(options, run), ValidArgsFunction: cobra.NoFileCompletions}
		if parent != nil {
			parent.AddCommand(cmd)
		}
		return cmd
	}
	root := add(nil, p.name, "serve the CRI until stopped by a signal", p.serve)
	add(add(root, "config", "show the configuration", nil), "print", "print the options in effect, and where they were given", printConfig)
	add(root, config.DoctorCommand, "check this node, and print what is wrong and how to fix it; --json for programs", runDoctor)
	add(root, config.PodsCommand, "print the pods of this node: Docker's names, addresses, logs, and why one is not ready", runPods)
	add(root, config.PullsCommand, "show how far the pulls of images are, until they have ended if on a terminal", runPulls)
	add(add(root, "images", "work with images", nil), copyUse, "copy images between Docker and containerd, before a change of the runtime", copyImages)
	runtime := add(root, "runtime", "install the OCI runtime for what the Docker API cannot express", nil)
	add(runtime, "install", "install the OCI runtime or update it, and have Docker know it; running containers are not affected", changeRuntime(ociinstall.Install))
	add(runtime, "status", "show the OCI runtime, which pods have it, and what is wrong with it", showRuntime)
	add(runtime, "remove", "remove the OCI runtime from Docker and from this node, unless containers have it", changeRuntime(ociinstall.Remove))
	completion := add(root, "completion", "print completion scripts", nil)
	for _, shell := range shells {
		add(completion, shell.name, "print the completion script for "+shell.name, shell.print)
	}
	add(root, "man", "print the manual page", printManual)

	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	root.SilenceErrors, root.SilenceUsage = true, true // main prints errors, in one line
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return config.FlagError(err) })
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { printHelp(cmd, options, p.configFile) })
	root.PersistentFlags().SortFlags = false
	for _, g := range options.Groups() {
		root.PersistentFlags().AddFlagSet(g.Flags)
	}
	return root, completeFlags(root, options)
}

// run returns the RunE of a command with that action; nil is for a command that only has subcommands.
// --version and --buildinfo win over all commands.
func (p *program) run(options *config.Options, run action) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case options.Version:
			return printVersion(p.stdout, p.name)
		case options.Buildinfo:
			return printBuildinfo(p.stdout, p.name)
		case run == nil, cmd.Use == cmd.Name() && strings.Join(args, "") != "": // systemd makes an empty argument of an empty ${VARIABLE}
			return unknownCommand(cmd, args)
		}
		if err := options.CheckCommand(commandName(cmd)); err != nil {
			return err
		}
		return run(cmd, options)
	}
}

// unknownCommand returns the error for arguments of cmd that name no command.
func unknownCommand(cmd *cobra.Command, args []string) error {
	root := cmd.Root().Name()
	var names []string
	for _, known := range actionCommands(cmd.Root())[1:] {
		names = append(names, commandName(known))
	}
	given := strings.TrimSpace(strings.TrimPrefix(cmd.CommandPath(), root) + " " + strings.Join(args, " "))
	last := len(names) - 1
	return config.UsageErrorf("unknown command %q: there are %s and %s (--help lists all commands)", given, strings.Join(names[:last], ", "), names[last])
}

// actionCommands returns cmd and the commands below it, without hidden ones and those that only have subcommands.
func actionCommands(cmd *cobra.Command) (commands []*cobra.Command) {
	if !cmd.HasParent() || !cmd.HasAvailableSubCommands() {
		commands = append(commands, cmd)
	}
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			commands = append(commands, actionCommands(sub)...)
		}
	}
	return commands
}

// printConfig prints the options in effect.
func printConfig(cmd *cobra.Command, options *config.Options) error {
	if err := options.Load(); err != nil {
		return err
	}
	return options.Print(cmd.OutOrStdout())
}

// runDoctor checks the node and prints the report. It fails if a check has failed.
func runDoctor(cmd *cobra.Command, options *config.Options) error {
	if err := options.Load(); err != nil {
		return err
	}
	report := doctor.Run(cmd.Context(), doctor.Config{Daemon: options.Config, ConfigFile: options.ConfigFile, Root: options.Root})
	write := report.WriteText
	if options.JSON {
		write = report.WriteJSON
	}
	if err := write(cmd.OutOrStdout()); err != nil {
		return err
	}
	return report.Err()
}

// runPods prints the pods of the node.
func runPods(cmd *cobra.Command, options *config.Options) error {
	if err := options.Load(); err != nil {
		return err
	}
	report, err := pods.Load(cmd.Context(), options.Config, options.Namespace)
	if err != nil {
		return err
	}
	if options.JSON || options.Output == "json" {
		return report.WriteJSON(cmd.OutOrStdout())
	}
	return report.WriteTable(cmd.OutOrStdout(), time.Now(), options.Output == "wide")
}

// runPulls prints the pulls of the berthd that runs on this node.
func runPulls(cmd *cobra.Command, options *config.Options) error {
	if err := options.Load(); err != nil {
		return err
	}
	if options.DebugSocket == "" {
		return config.UsageErrorf("debug-socket is empty: pulls needs the socket that berthd serves there")
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	return pulls.Show(ctx, pulls.Config{Socket: options.DebugSocketPath(), JSON: options.JSON, Watch: options.Watch, Out: cmd.OutOrStdout()})
}
