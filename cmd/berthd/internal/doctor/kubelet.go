package doctor

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"berth/cmd/berthd/internal/config"
)

// Files in which kubeadm configures the kubelet.
const (
	kubeletConfig   = "/var/lib/kubelet/config.yaml"
	kubeletInstance = "/var/lib/kubelet/instance-config.yaml" // kubeadm >= 1.32: the socket
	kubeletFlags    = "/var/lib/kubelet/kubeadm-flags.env"
)

// kubeletExtraFlags are the files of the units of Kubernetes' packages (deb, rpm) with more flags; those win.
var kubeletExtraFlags = []string{"/etc/default/kubelet", "/etc/sysconfig/kubelet"}

// otherSockets are the CRI sockets that kubeadm finds by itself, besides that of cri-dockerd.
var otherSockets = []string{"/run/containerd/containerd.sock", "/run/crio/crio.sock"}

// kubeletSettings are the settings of the kubelet that concern berthd.
type kubeletSettings struct {
	Endpoint     string `yaml:"containerRuntimeEndpoint"`
	CgroupDriver string `yaml:"cgroupDriver"`
	Tracing      *struct {
		Endpoint string `yaml:"endpoint"`
	} `yaml:"tracing"`
	pauseImage   string // of the flag --pod-infra-container-image
	endpointFile string // with the flag that gives Endpoint; empty if there is no flag
}

// checkKubelet checks that the kubelet's settings fit to those of berthd and Docker.
func (c *checker) checkKubelet() {
	endpoint := c.daemon.ClientEndpoint()
	settings, err := c.readKubelet()
	switch {
	case err != nil:
		c.fail("kubelet", err.Error(), "correct the file, or: kubeadm upgrade node phase kubelet-config")
		return
	case settings == nil:
		fix := "kubeadm init --cri-socket " + endpoint
		other := slices.IndexFunc(otherSockets, func(path string) bool { _, err := os.Stat(c.path(path)); return err == nil })
		if other >= 0 {
			fix += " (the flag is needed: there is a " + otherSockets[other] + " too)"
		}
		c.warn("kubelet", "it was not set up yet, or not by kubeadm", fix)
		return
	case settings.Endpoint == "":
		c.fail("kubelet", "no socket is configured, so it uses that of containerd",
			"kubeadm init or join --cri-socket "+endpoint+", or set containerRuntimeEndpoint in "+kubeletConfig)
	case socketPath(settings.Endpoint) != socketPath(endpoint):
		c.fail("kubelet", fmt.Sprintf("it uses %s, berthd serves %s", settings.Endpoint, endpoint),
			fmt.Sprintf("set --container-runtime-endpoint=%s in %s, or containerRuntimeEndpoint in the file that has it, and: systemctl restart kubelet", endpoint, cmp.Or(settings.endpointFile, kubeletFlags)))
	default:
		c.ok("kubelet", "it uses "+settings.Endpoint)
	}
	c.checkKubeletCgroups(settings)
	if settings.pauseImage != "" && settings.pauseImage != c.daemon.PauseImage {
		c.warn("pause image", fmt.Sprintf("the kubelet is configured with %s, berthd uses %s", settings.pauseImage, c.daemon.PauseImage),
			"set pod-infra-container-image: "+settings.pauseImage+" in "+config.DefaultFile+" and: systemctl restart berth.service")
	} else {
		c.ok("pause image", c.daemon.PauseImage+", or the built-in one where it cannot be pulled")
	}
}

// checkKubeletCgroups checks that the kubelet and Docker have the same cgroup driver. Kubelets >= 1.31
// ask the CRI for it (KEP-4033, KubeletCgroupDriverFromCRI).
func (c *checker) checkKubeletCgroups(settings *kubeletSettings) {
	if c.engine == nil {
		return
	}
	dockers := c.engine.CgroupDriver
	driver := cmp.Or(settings.CgroupDriver, "cgroupfs")
	switch {
	case driver == dockers:
		c.ok("kubelet cgroups", driver+", as Docker")
	case settings.CgroupDriver == "":
		c.warn("kubelet cgroups", "its configuration names no cgroupDriver: before 1.31 the kubelet uses cgroupfs, Docker uses "+dockers,
			fmt.Sprintf("set cgroupDriver: %s in %s", dockers, kubeletConfig))
	default:
		c.fail("kubelet cgroups", fmt.Sprintf("it is configured with %s, Docker uses %s (from 1.31 on the kubelet uses what berthd reports)", driver, dockers),
			fmt.Sprintf("set cgroupDriver: %s in %s and: systemctl restart kubelet", dockers, kubeletConfig))
	}
}

// socketPath returns the path of an endpoint, with /run for its alias /var/run.
func socketPath(endpoint string) string {
	path := filepath.Clean(strings.TrimPrefix(endpoint, "unix://"))
	if rest, ok := strings.CutPrefix(path, "/var/run/"); ok {
		return "/run/" + rest
	}
	return path
}

// readKubelet reads the kubelet's settings; nil if there are no files of kubeadm.
func (c *checker) readKubelet() (*kubeletSettings, error) {
	var settings *kubeletSettings
	for _, file := range []string{kubeletConfig, kubeletInstance} {
		text, err := os.ReadFile(c.path(file))
		if err != nil {
			continue
		}
		settings = cmp.Or(settings, new(kubeletSettings))
		if err := yaml.Unmarshal(text, settings); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	if text, err := os.ReadFile(c.path(kubeletFlags)); err == nil {
		settings = cmp.Or(settings, new(kubeletSettings))
		settings.readFlags(kubeletFlags, string(text))
	}
	for _, file := range kubeletExtraFlags {
		if text, err := os.ReadFile(c.path(file)); err == nil && settings != nil {
			settings.readFlags(file, string(text))
		}
	}
	return settings, nil
}

// readFlags reads the flags in a file of environment variables, as the kubelet's unit does.
func (k *kubeletSettings) readFlags(file, text string) {
	for line := range strings.Lines(text) {
		variable, flags, _ := strings.Cut(strings.TrimSpace(line), "=")
		if variable != "KUBELET_KUBEADM_ARGS" && variable != "KUBELET_EXTRA_ARGS" {
			continue
		}
		args := strings.Fields(strings.Trim(flags, `"'`))
		for i, arg := range args {
			name, value, joined := strings.Cut(arg, "=")
			if !joined && i+1 < len(args) {
				value = args[i+1]
			}
			switch name {
			case "--container-runtime-endpoint":
				k.Endpoint, k.endpointFile = value, file
			case "--cgroup-driver":
				k.CgroupDriver = value
			case "--pod-infra-container-image":
				k.pauseImage = value
			}
		}
	}
}
