package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/pflag"
)

// printManual prints the manual page, in the language of man(7).
func printManual(c call, table []group) error {
	var options, commands strings.Builder
	for _, v := range verbs {
		fmt.Fprintf(&commands, ".TP\n.B %s\n%s.\n", manual.Replace(strings.TrimSpace("berthd "+v.words)), manual.Replace(v.usage))
	}
	for _, g := range table {
		fmt.Fprintf(&options, ".SS %s\n", manual.Replace(g.title))
		for _, o := range g.options {
			what, usage := pflag.UnquoteUsage(&pflag.Flag{Usage: o.usage, Value: o.value})
			if o.idle != "" {
				usage = o.idle
			}
			name := "\\-\\-" + manual.Replace(o.name)
			if o.short != "" {
				name = "\\-" + o.short + ", " + name
			}
			if o.value.Type() != "bool" {
				name += "=" + manual.Replace(what)
			}
			if o.initial != "" && o.value.Type() != "bool" {
				usage += " (default " + o.initial + ")"
			}
			fmt.Fprintf(&options, ".TP\n.B %s\n%s.\n", name, manual.Replace(usage))
		}
	}
	page := strings.NewReplacer("@commands@\n", commands.String(), "@options@\n", options.String(), "@version@", manual.Replace(version))
	_, err := io.WriteString(c.out, page.Replace(manualPage))
	return err
}

// manual makes the language of man(7) take text as it is.
var manual = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\n", " ")

const manualPage = `.TH BERTHD 8 "" "berth @version@" "System Administration"
.SH NAME
berthd \- Kubernetes pods on Docker Engine
.SH SYNOPSIS
.B berthd
.RI [ command ]
.RI [ options ]
.SH DESCRIPTION
.B berthd
lets a kubelet run its pods on a Docker Engine: it serves the Kubernetes Container Runtime Interface (CRI)
on a Unix socket and speaks the Docker Engine API to Docker. It takes the place of dockershim and of
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
Each option but those for doctor and the general ones may stand, without the dashes, in a configuration file too.
An option on the command line wins.
@options@
.SH SIGNALS
.TP
.BR TERM ", " INT
Stop. Pods go on, and are known again after the next start.
.TP
.B HUP
Read the configuration again and take over its log\-level; all else takes a restart.
.SH EXIT STATUS
.TP
.B 0
Stopped when told to.
.TP
.B 1
Could not do its work, or
.B doctor
has found something wrong.
.TP
.B 2
An option, an argument or a configuration file makes no sense.
.SH FILES
.TP
.I /etc/berth/config.yaml
Options, as YAML.
.TP
.I /etc/berth/config.d/*.yaml
More of them, read by name; the last one to say something wins.
.TP
.I /run/cri\-dockerd.sock
Where the kubelet finds the CRI.
.TP
.I /var/lib/cri\-dockerd
What must outlive a reboot.
.TP
.I /run/berth
Files of the pods that run.
.TP
.I /run/netns/berth\-*
Their network namespaces.
.SH ENVIRONMENT
.TP
.B DOCKER_HOST
Where Docker listens, if docker\-endpoint is empty.
.TP
.BR DOCKER_TLS_VERIFY ", " DOCKER_CERT_PATH
The certificates for a Docker at tcp://HOST:PORT.
.SH EXAMPLES
.nf
systemctl status berth.service
berthd doctor
berthd config print
kubeadm init \-\-cri\-socket unix:///var/run/cri\-dockerd.sock
.fi
.SH SEE ALSO
.BR dockerd (8),
.BR systemd.socket (5)
`
