package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth/cmd/berthd/internal/config"
)

// shells are the shells that have a completion script. The scripts ask the program for completions, with the
// hidden command __complete.
var shells = []struct {
	name  string
	print action
}{
	{"bash", printBashCompletion},
	{"zsh", func(cmd *cobra.Command, _ *config.Options) error {
		return cmd.Root().GenZshCompletion(cmd.OutOrStdout())
	}},
	{"fish", func(cmd *cobra.Command, _ *config.Options) error {
		return cmd.Root().GenFishCompletion(cmd.OutOrStdout(), true)
	}},
	{"powershell", func(cmd *cobra.Command, _ *config.Options) error {
		return cmd.Root().GenPowerShellCompletionWithDesc(cmd.OutOrStdout())
	}},
}

// printBashCompletion prints one script for both names of the program: packages link it to both. It has no
// descriptions, which are too long for a line beside the flag.
func printBashCompletion(cmd *cobra.Command, _ *config.Options) error {
	root, alias := cmd.Root(), "cri-dockerd"
	if root.Name() == alias {
		alias = "berthd"
	}
	if err := root.GenBashCompletionV2(cmd.OutOrStdout(), false); err != nil {
		return err
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "complete -o default -F __start_%s %s\n", root.Name(), alias)
	return err
}

// completeFlags registers the completion of the values of all flags, by their choices or by the name of their
// value in the help.
func completeFlags(root *cobra.Command, options *config.Options) error {
	var err error
	for _, g := range options.Groups() {
		g.Flags.VisitAll(func(f *pflag.Flag) {
			var complete cobra.CompletionFunc
			switch valueName, _ := pflag.UnquoteUsage(f); {
			case err != nil:
				return
			case config.Choices(f) != nil:
				complete = cobra.FixedCompletions(config.Choices(f), cobra.ShellCompDirectiveNoFileComp)
			case valueName == "DIR", valueName == "DIRS":
				err = root.MarkPersistentFlagDirname(f.Name)
				return
			case valueName == "FILE":
				return // the shell's default
			case valueName == "PATH":
				complete = completeSocket
			default:
				complete = cobra.NoFileCompletions
			}
			err = root.RegisterFlagCompletionFunc(f.Name, complete)
		})
	}
	return err
}

// completeSocket completes unix://PATH; a path without the scheme is completed by the shell.
func completeSocket(_ *cobra.Command, _ []string, text string) (found []cobra.Completion, _ cobra.ShellCompDirective) {
	const scheme = "unix://"
	path, isUnix := strings.CutPrefix(text, scheme)
	switch {
	case text != "" && strings.HasPrefix(scheme, text):
		return []cobra.Completion{scheme + "/"}, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
	case !isUnix:
		return nil, cobra.ShellCompDirectiveDefault
	}
	dir, prefix := filepath.Split(path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		name := scheme + dir + e.Name()
		if e.IsDir() {
			name += "/"
		}
		found = append(found, name)
	}
	return found, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}
