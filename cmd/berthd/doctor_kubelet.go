package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Where kubeadm leaves what it tells the kubelet.
const (
	kubeletConfig   = "/var/lib/kubelet/config.yaml"
	kubeletInstance = "/var/lib/kubelet/instance-config.yaml" // from 1.32 on: the socket
	kubeletFlags    = "/var/lib/kubelet/kubeadm-flags.env"
)

// kubeletExtra are where the units of Kubernetes' packages have more flags from, which
// win: deb and rpm.
var kubeletExtra = []string{"/etc/default/kubelet", "/etc/sysconfig/kubelet"}

// otherSockets are those that kubeadm finds by itself, besides ours.
var otherSockets = []string{"/run/containerd/containerd.sock", "/run/crio/crio.sock"}

// kubelet is what we ask of its configuration.
type kubelet struct {
	Endpoint     string `yaml:"containerRuntimeEndpoint"`
	CgroupDriver string `yaml:"cgroupDriver"`
	pause        string
	endpointFrom string // the file with the flag for Endpoint, if one is given
}

// checkKubelet looks at what the kubelet was told.
func (p *patient) checkKubelet() {
	ours := p.endpoint()
	told, err := p.readKubelet()
	switch {
	case err != nil:
		p.tell("kubelet", wrong, err.Error(), "correct the file, or: kubeadm upgrade node phase kubelet-config")
		return
	case told == nil:
		do := "kubeadm init --cri-socket " + ours
		other := slices.IndexFunc(otherSockets, func(path string) bool { _, err := os.Stat(p.path(path)); return err == nil })
		if other >= 0 {
			do += " (it must be said: there is a " + otherSockets[other] + " too)"
		}
		p.tell("kubelet", doubt, "it was not set up yet, or not by kubeadm", do)
		return
	}
	switch {
	case told.Endpoint == "":
		p.tell("kubelet", wrong, "it is not told of a socket, and takes containerd's",
			"kubeadm init or join --cri-socket "+ours+", or set containerRuntimeEndpoint in "+kubeletConfig)
	case socketOf(told.Endpoint) != socketOf(ours):
		p.tell("kubelet", wrong, fmt.Sprintf("it uses %s, berthd serves %s", told.Endpoint, ours),
			fmt.Sprintf("set --container-runtime-endpoint=%s in %s, or containerRuntimeEndpoint in the file that has it, and: systemctl restart kubelet", ours, cmp.Or(told.endpointFrom, kubeletFlags)))
	default:
		p.tell("kubelet", fine, "it uses "+told.Endpoint, "")
	}
	if p.engine != nil {
		driver := cmp.Or(told.CgroupDriver, "cgroupfs")
		switch {
		case driver == p.engine.CgroupDriver:
			p.tell("kubelet cgroups", fine, driver+", as Docker", "")
		case told.CgroupDriver == "":
			p.tell("kubelet cgroups", doubt, "its configuration names no cgroupDriver: before 1.31 it takes cgroupfs, Docker uses "+p.engine.CgroupDriver,
				fmt.Sprintf("set cgroupDriver: %s in %s", p.engine.CgroupDriver, kubeletConfig))
		default:
			p.tell("kubelet cgroups", wrong, fmt.Sprintf("it was told %s, Docker uses %s (from 1.31 on it asks berthd instead)", driver, p.engine.CgroupDriver),
				fmt.Sprintf("set cgroupDriver: %s in %s and: systemctl restart kubelet", p.engine.CgroupDriver, kubeletConfig))
		}
	}
	if told.pause != "" && told.pause != p.cfg.PauseImage {
		p.tell("pause image", doubt, fmt.Sprintf("the kubelet was told %s, berthd uses %s", told.pause, p.cfg.PauseImage),
			"set pod-infra-container-image: "+told.pause+" in "+defaultConfigFile+" and: systemctl restart berth.service")
	} else {
		p.tell("pause image", fine, p.cfg.PauseImage+", or the built-in one where it cannot be pulled", "")
	}
}

// endpoint returns where we serve the kubelet, as it should be told.
func (p *patient) endpoint() string {
	if strings.HasPrefix(p.cfg.Endpoint, "unix://") {
		return p.cfg.Endpoint
	}
	return "unix:///run/cri-dockerd.sock" // of berth.socket, which passes it
}

// socketOf returns the file that an endpoint names: /var/run is /run.
func socketOf(endpoint string) string {
	path := filepath.Clean(strings.TrimPrefix(endpoint, "unix://"))
	if rest, ok := strings.CutPrefix(path, "/var/run/"); ok {
		return "/run/" + rest
	}
	return path
}

// readKubelet returns what the kubelet was told; nil if nobody has told it anything.
func (p *patient) readKubelet() (*kubelet, error) {
	var told *kubelet
	for _, file := range []string{kubeletConfig, kubeletInstance} {
		text, err := os.ReadFile(p.path(file))
		if err != nil {
			continue
		}
		if told == nil {
			told = new(kubelet)
		}
		if err := yaml.Unmarshal(text, told); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	if text, err := os.ReadFile(p.path(kubeletFlags)); err == nil {
		told = cmp.Or(told, new(kubelet))
		told.readFlags(kubeletFlags, string(text))
	}
	for _, file := range kubeletExtra {
		if text, err := os.ReadFile(p.path(file)); err == nil && told != nil {
			told.readFlags(file, string(text))
		}
	}
	return told, nil
}

// readFlags takes over the flags in a file of variables that kubeadm or the kubelet's
// packages have made.
func (k *kubelet) readFlags(file, text string) {
	for line := range strings.Lines(text) {
		variable, flags, _ := strings.Cut(strings.TrimSpace(line), "=")
		if variable != "KUBELET_KUBEADM_ARGS" && variable != "KUBELET_EXTRA_ARGS" {
			continue
		}
		words := strings.Fields(strings.Trim(flags, `"'`))
		for i, word := range words {
			name, value, joined := strings.Cut(word, "=")
			if !joined && i+1 < len(words) {
				value = words[i+1]
			}
			switch name {
			case "--container-runtime-endpoint":
				k.Endpoint, k.endpointFrom = value, file
			case "--cgroup-driver":
				k.CgroupDriver = value
			case "--pod-infra-container-image":
				k.pause = value
			}
		}
	}
}
