package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// sysctl returns a setting of the kernel, "" if there is none of that name.
func (p *patient) sysctl(name string) string {
	text, err := os.ReadFile(p.path("/proc/sys/" + name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// checkLeftovers looks for a cri-dockerd that would be in the way.
func (p *patient) checkLeftovers() {
	before := len(p.report)
	for _, name := range []string{"cri-docker", "cri-dockerd"} {
		for _, kind := range []string{".service", ".socket"} {
			unit := "/etc/systemd/system/" + name + kind
			if info, err := os.Lstat(p.path(unit)); err == nil && info.Mode().IsRegular() {
				p.tell("cri-dockerd", wrong, unit+" comes before the unit of berth of that name",
					"remove it and: systemctl daemon-reload && systemctl enable --now berth.socket berth.service")
			}
			drops, _ := filepath.Glob(p.path(unit + ".d/*.conf"))
			for _, drop := range drops {
				p.checkDropIn(drop)
			}
		}
	}
	if pids := p.running("cri-dockerd"); len(pids) > 0 {
		p.tell("cri-dockerd", wrong, fmt.Sprintf("it runs (process %s): two adapters do not get on on one node", strings.Join(pids, ", ")),
			"find its unit with: systemctl status "+pids[0]+", stop and disable it; pods go on")
	}
	if held, _ := filepath.Glob(p.path("/var/lib/dockershim/sandbox/*")); len(held) > 0 && p.cfg.RootDir != "/var/lib/dockershim" {
		p.tell("dockershim", doubt, fmt.Sprintf("%d pods have checkpoints of dockershim", len(held)),
			"nothing needs them; once no pod from before the migration runs: rm -r /var/lib/dockershim")
	}
	if len(p.report) == before {
		p.tell("cri-dockerd", fine, "nothing of it is in the way", "")
	}
}

// checkDropIn looks at what a drop-in for a unit of cri-dockerd has it run.
func (p *patient) checkDropIn(file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		p.tell("cri-dockerd", doubt, err.Error(), "")
		return
	}
	for line := range strings.Lines(string(text)) {
		command, ok := strings.CutPrefix(strings.TrimSpace(line), "ExecStart=")
		words := strings.Fields(command)
		if !ok || len(words) == 0 {
			continue
		}
		program := strings.TrimLeft(words[0], "-@:+!")
		found, err := filepath.EvalSymlinks(p.path(program))
		switch {
		case err != nil:
			p.tell("cri-dockerd", wrong, file+" starts "+program+", which is not there", "name /usr/bin/berthd there")
		case filepath.Base(found) != "berthd":
			p.tell("cri-dockerd", wrong, file+" starts "+program+", which is not berthd", "name /usr/bin/berthd there and: systemctl daemon-reload && systemctl restart berth.service")
		case slices.Contains(words, "--network-plugin=kubenet"):
			p.tell("cri-dockerd", wrong, file+" asks for kubenet, which is gone", "use cni with the plugins bridge and host-local")
		}
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
		if err != nil || filepath.Base(exe) == "berthd" {
			continue
		}
		pids = append(pids, filepath.Base(filepath.Dir(file)))
	}
	return pids
}
