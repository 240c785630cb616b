package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"berth/cmd/berthd/internal/config"
)

// commandUsage returns how a command is called: its path, and its arguments if it has any.
func commandUsage(cmd *cobra.Command) string {
	return strings.TrimSuffix(cmd.CommandPath(), cmd.Name()) + cmd.Use + " [flags]"
}

// printHelp prints the help of a command. Each flag is one line with its default: scripts for cri-dockerd
// search for that.
func printHelp(cmd *cobra.Command, options *config.Options, configFile string) {
	var text strings.Builder
	defer func() { _, _ = io.WriteString(cmd.OutOrStdout(), text.String()) }() // cobra has no place for an error of a help function
	if cmd.HasParent() {
		writeCommandHelp(&text, cmd, options)
		return
	}
	fmt.Fprintf(&text, `%s runs the pods of Kubernetes on Docker Engine. It serves the Container
Runtime Interface for a kubelet:

  kubeadm init --cri-socket unix:///var/run/cri-dockerd.sock

Usage:
`, cmd.Root().Name())
	for _, sub := range actionCommands(cmd) {
		fmt.Fprintf(&text, "  %-42s%s\n", commandUsage(sub), sub.Short)
	}
	for _, g := range options.Groups() {
		fmt.Fprintf(&text, "\n%s:\n%s", g.Title, g.Flags.FlagUsages())
	}
	fmt.Fprintf(&text, `
Files:
  %s may set each option, except those of General and of single commands,
  as YAML with the names of the flags as keys. Files config.d/*.yaml beside it are read
  after it, by name, and the last one that sets an option wins; flags win over all files.
  The file that --config names must exist; the default one may be missing.

    log-level: debug
    cni-bin-dir: [/opt/cni/bin, /usr/lib/cni]

Signals:
  TERM, INT   stop; running pods are not affected
  HUP         read the configuration again and apply %s;
              changes of other options take a restart

Exit codes:
  0   stopped by a signal
  1   failure; doctor: a check has failed; images copy: an image was not copied
  2   error in a flag, an argument or a configuration file
`, configFile, wordList(options.Reloadable()))
}

// writeCommandHelp writes the help of a command below the root: the flags of the daemon are only in that of the root.
func writeCommandHelp(w io.Writer, cmd *cobra.Command, options *config.Options) {
	root := cmd.Root().Name()
	var names []string
	fmt.Fprintln(w, "Usage:")
	for _, sub := range actionCommands(cmd) {
		names = append(names, commandName(sub))
		fmt.Fprintf(w, "  %s\n      %s\n", commandUsage(sub), sub.Short)
	}
	fmt.Fprintf(w, "\nFlags:\n%s\nOptions of the daemon are taken from its configuration files, or as flags such as --docker-endpoint and --run-dir:\n%s --help lists them.\n",
		options.CommandFlags(names).FlagUsages(), root)
}

// commandName returns the name of a command without that of the program: "runtime install".
func commandName(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
}

// wordList returns words as they are in a sentence: a, b and c.
func wordList(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " and " + words[last]
}
