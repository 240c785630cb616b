package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/coreos/go-systemd/v22/unit"
)

// checkKernel looks at the settings that networks of pods need.
func (p *patient) checkKernel() {
	const conf = "/etc/sysctl.d/99-kubernetes.conf"
	if value := p.sysctl("net/ipv4/ip_forward"); value == "1" {
		p.tell("ip_forward", fine, "packets are forwarded", "")
	} else {
		p.tell("ip_forward", wrong, "net.ipv4.ip_forward is not 1: pods reach nobody on other nodes",
			"put net.ipv4.ip_forward = 1 into "+conf+" and: sysctl --system")
	}
	switch p.sysctl("net/bridge/bridge-nf-call-iptables") {
	case "1":
		p.tell("br_netfilter", fine, "packets on bridges go through iptables", "")
	case "":
		p.tell("br_netfilter", doubt, "the module br_netfilter is not loaded: with a network on bridges, Services do not reach pods on their own node",
			"put br_netfilter into /etc/modules-load.d/kubernetes.conf and: modprobe br_netfilter")
	default:
		p.tell("br_netfilter", doubt, "net.bridge.bridge-nf-call-iptables is not 1: with a network on bridges, Services do not reach pods on their own node",
			"put net.bridge.bridge-nf-call-iptables = 1 into "+conf+" and: sysctl --system")
	}
}

// propagated are the directories below which pods see mounts come and go if they ask for
// mountPropagation: the node's root, and where the kubelet and CSI drivers mount volumes.
var propagated = []string{"/", "/var/lib/kubelet"}

// checkPropagation looks whether mounts below those directories reach pods. systemd makes / shared
// at boot; a node without systemd, or a Docker in a container or in unshare(1), may not have that.
func (p *patient) checkPropagation() {
	list, err := os.ReadFile(p.path("/proc/self/mountinfo"))
	if err != nil {
		return // the files of another root have no processes
	}
	checked := map[string]bool{}
	for _, dir := range propagated {
		point, shared := mountOf(string(list), dir)
		if point == "" || checked[point] {
			continue
		}
		checked[point] = true
		if !shared {
			p.tell("propagation", doubt, "the mount "+point+" is not shared: pods with a volume of "+dir+" that has mountPropagation HostToContainer or Bidirectional, as those of CSI drivers and node-exporter, do not start",
				"mount --make-rshared "+point)
		}
	}
	if !slices.ContainsFunc(p.report, func(f finding) bool { return f.Check == "propagation" }) {
		p.tell("propagation", fine, "mounts of the node reach pods that ask for it", "")
	}
}

// mountOf returns where the file system that dir is on is mounted, by the content of a
// mountinfo file, and whether that mount is shared; "" if it is not there.
func mountOf(mountinfo, dir string) (point string, shared bool) {
	for line := range strings.Lines(mountinfo) {
		// number, parent, device, root, mount point, options, shared:N and the like, -, ...
		fields := strings.Fields(line)
		if len(fields) < 7 {
			continue
		}
		at := fields[4]
		if at != dir && !strings.HasPrefix(dir, strings.TrimSuffix(at, "/")+"/") || len(at) < len(point) {
			continue
		}
		point, shared = at, false
		for _, tag := range fields[6:] {
			if tag == "-" {
				break
			}
			shared = shared || strings.HasPrefix(tag, "shared:")
		}
	}
	return point, shared
}

// sysctl returns a setting of the kernel, "" if there is none of that name.
func (p *patient) sysctl(name string) string {
	text, err := os.ReadFile(p.path("/proc/sys/" + name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// restart is how a changed unit comes into force.
const restart = "systemctl daemon-reload && systemctl restart berth.service"

// checkUnits looks at what the operator has put beside the packages' units, which are
// called like cri-dockerd's too.
func (p *patient) checkUnits() {
	for _, kind := range []string{".service", ".socket"} {
		made, packaged := "/etc/systemd/system/berth"+kind, "/usr/lib/systemd/system/berth"+kind
		if !p.isFile(made) {
			continue
		}
		if p.isFile(packaged) {
			p.tell("units", doubt, made+" comes before that of the package, whose upgrades it hides", "remove it and: "+restart)
		}
		p.checkCommands(made)
	}
	for _, name := range []string{"cri-docker", "cri-dockerd"} {
		for _, kind := range []string{".service", ".socket"} {
			if made := "/etc/systemd/system/" + name + kind; p.isFile(made) {
				p.tell("units", wrong, made+" comes before the unit of berth of that name",
					"remove it and: systemctl daemon-reload && systemctl enable --now berth.socket berth.service")
			}
		}
	}
	for _, name := range []string{"berth", "cri-docker", "cri-dockerd"} {
		dir := "/etc/systemd/system/" + name + ".service.d"
		drops, _ := os.ReadDir(p.path(dir)) // it need not be there
		for _, drop := range drops {
			if filepath.Ext(drop.Name()) == ".conf" {
				p.checkCommands(filepath.Join(dir, drop.Name()))
			}
		}
	}
	if !slices.ContainsFunc(p.report, func(f finding) bool { return f.Check == "units" }) {
		p.tell("units", fine, "none is in the way, and berthd takes what drop-ins tell it", "")
	}
}

// isFile says whether that is a file of the node, and no link.
func (p *patient) isFile(name string) bool {
	info, err := os.Lstat(p.path(name))
	return err == nil && info.Mode().IsRegular()
}

// checkCommands looks at what a unit or a drop-in has the service run.
func (p *patient) checkCommands(file string) {
	text, err := os.ReadFile(p.path(file))
	if err != nil {
		p.tell("units", doubt, err.Error(), "")
		return
	}
	options, err := unit.DeserializeOptions(bytes.NewReader(text))
	if err != nil {
		p.tell("units", wrong, file+": "+err.Error(), "correct it and: "+restart)
		return
	}
	for _, o := range options {
		words := commandWords(o.Value)
		if o.Section != "Service" || o.Name != "ExecStart" || len(words) == 0 {
			continue
		}
		program := strings.TrimLeft(words[0], "-@:+!")
		found, err := filepath.EvalSymlinks(p.path(program))
		switch {
		case err != nil:
			p.tell("units", wrong, file+" starts "+program+", which is not there", "name /usr/bin/berthd there and: "+restart)
			continue
		case filepath.Base(found) != "berthd":
			p.tell("units", wrong, file+" starts "+program+", which is not berthd", "name /usr/bin/berthd there and: "+restart)
			continue
		case strings.ContainsAny(o.Value, "$%"):
			continue // only systemd knows what these words become
		}
		if _, _, err := parse(call{name: "berthd", args: words[1:], file: p.cfg.doctor.file, out: io.Discard}); err != nil {
			p.tell("units", wrong, file+": "+err.Error(), "correct it and: "+restart)
		}
	}
}

// commandWords splits the value of an ExecStart= as systemd does, but for escapes.
func commandWords(value string) (words []string) {
	var word []rune
	var quote rune
	begun := false
	for _, r := range strings.ReplaceAll(value, "\\\n", " ") + " " {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '"' || r == '\''):
			quote, begun = r, true
		case quote == 0 && unicode.IsSpace(r):
			if begun {
				words = append(words, string(word))
			}
			word, begun = nil, false
		default:
			word, begun = append(word, r), true
		}
	}
	return words
}

// checkLeftovers looks for what is left of the adapters before us.
func (p *patient) checkLeftovers() {
	before := len(p.report)
	if pids := p.running("cri-dockerd"); len(pids) > 0 {
		p.tell("cri-dockerd", wrong, fmt.Sprintf("it runs (process %s): two adapters do not get on on one node", strings.Join(pids, ", ")),
			"find its unit with: systemctl status "+pids[0]+", stop and disable it; pods go on")
	}
	if held, _ := filepath.Glob(p.path("/var/lib/dockershim/sandbox/*")); len(held) > 0 && p.cfg.RootDir != "/var/lib/dockershim" {
		p.tell("dockershim", doubt, fmt.Sprintf("%d pods have checkpoints of dockershim", len(held)),
			"nothing needs them; once no pod from before the migration runs: rm -r /var/lib/dockershim")
	}
	if len(p.report) == before {
		p.tell("cri-dockerd", fine, "it does not run, and has left nothing", "")
	}
}

// running returns the processes of that program which are not berthd by another name.
func (p *patient) running(program string) (pids []string) {
	names, _ := filepath.Glob(p.path("/proc/[0-9]*/comm"))
	for _, file := range names {
		text, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(text)) != program {
			continue
		}
		exe, err := os.Readlink(filepath.Join(filepath.Dir(file), "exe"))
		// After an upgrade the program of a process is "/usr/bin/berthd (deleted)".
		if err != nil || filepath.Base(strings.TrimSuffix(exe, " (deleted)")) == "berthd" {
			continue
		}
		pids = append(pids, filepath.Base(filepath.Dir(file)))
	}
	return pids
}
