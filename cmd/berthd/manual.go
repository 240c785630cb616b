package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth/cmd/berthd/internal/config"
)

// printManual prints one manual page, in the language of man(7), with the commands and flags of the
// tree. cobra/doc would print a page for each command, with one list of flags, and without the
// sections that a daemon needs.
func printManual(cmd *cobra.Command, options *config.Options) error {
	var commands, flags strings.Builder
	for _, sub := range actionCommands(cmd.Root()) {
		path := "berthd" + strings.TrimSuffix(strings.TrimPrefix(commandUsage(sub), cmd.Root().Name()), " [flags]")
		fmt.Fprintf(&commands, ".TP\n.B %s\n%s.\n", roff.Replace(path), roff.Replace(sub.Short))
	}
	for _, g := range options.Groups() {
		fmt.Fprintf(&flags, ".SS %s\n", roff.Replace(g.Title))
		g.Flags.VisitAll(func(f *pflag.Flag) { writeManualFlag(&flags, f) })
	}
	page := strings.NewReplacer("@commands@\n", commands.String(), "@options@\n", flags.String(), "@version@", roff.Replace(version),
		"@reloadable@", roff.Replace(wordList(options.Reloadable())))
	_, err := io.WriteString(cmd.OutOrStdout(), page.Replace(manualPage))
	return err
}

// writeManualFlag writes the paragraph of a flag.
func writeManualFlag(w io.Writer, f *pflag.Flag) {
	valueName, usage := pflag.UnquoteUsage(f)
	name := `\-\-` + roff.Replace(f.Name)
	if f.Shorthand != "" {
		name = `\-` + f.Shorthand + ", " + name
	}
	if f.Value.Type() != "bool" {
		name += "=" + roff.Replace(valueName)
		if f.DefValue != "" {
			usage += " (default " + f.DefValue + ")"
		}
	}
	fmt.Fprintf(w, ".TP\n.B %s\n%s.\n", name, roff.Replace(usage))
}

// roff escapes text for man(7).
var roff = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\n", " ")

const manualPage = `.TH BERTHD 8 "" "berth @version@" "System Administration"
.SH NAME
berthd \- Kubernetes pods on Docker Engine
.SH SYNOPSIS
.B berthd
.RI [ command ]
.RI [ options ]
.SH DESCRIPTION
.B berthd
lets a kubelet run its pods on Docker Engine: it serves the Kubernetes Container Runtime Interface (CRI)
on a Unix socket and calls the Docker Engine API. It replaces dockershim and
cri\-dockerd, whose socket, options, labels and container names it keeps; a link named
.B cri\-dockerd
calls the same program.
.PP
Pods go on running while
.B berthd
is stopped, restarted or upgraded.
.SH COMMANDS
@commands@
.SH OPTIONS
A configuration file may set each option, except the general ones and those of single commands; its keys are the names without
the dashes. An option on the command line wins.
@options@
.SH SIGNALS
.TP
.BR TERM ", " INT
Stop. Pods go on, and
.B berthd
finds them again after the next start.
.TP
.B HUP
Read the configuration again and apply @reloadable@; changes of other options take a restart.
.SH EXIT STATUS
.TP
.B 0
Stopped by a signal.
.TP
.B 1
Failure, or a check of
.B doctor
has failed, or
.B images copy
has not copied an image.
.TP
.B 2
Error in an option, an argument or a configuration file.
.SH FILES
.TP
.I /etc/berth/config.yaml
Options, as YAML.
.TP
.I /etc/berth/config.d/*.yaml
More options. The files are read by name; the last one that sets an option wins.
.TP
.I /run/cri\-dockerd.sock
Socket of the CRI.
.TP
.I /var/lib/cri\-dockerd
State that must survive a reboot.
.TP
.I /run/berth
Files of running pods.
.TP
.I /run/berth/debug.sock
Socket for
.BR "berthd pulls" ,
only for root.
.TP
.I /run/netns/berth\-*
Their network namespaces.
.SH ENVIRONMENT
.TP
.B DOCKER_HOST
Address of Docker, if docker\-endpoint is empty.
.TP
.BR DOCKER_TLS_VERIFY ", " DOCKER_CERT_PATH
Certificates for Docker at tcp://HOST:PORT.
.SH EXAMPLES
.nf
systemctl status berth.service
berthd doctor
berthd pods
berthd config print
berthd images copy \-\-to containerd
kubeadm init \-\-cri\-socket unix:///var/run/cri\-dockerd.sock
.fi
.SH SEE ALSO
.BR dockerd (8),
.BR systemd.socket (5)
`
