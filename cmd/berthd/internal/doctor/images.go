package doctor

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"berth/core/engine"
	"berth/core/image/mirror"
	"berth/core/image/verify"
)

// checkMirrors checks the mirrors of registries, of Docker and of berthd.
func (c *checker) checkMirrors(features engine.Features) {
	const check = "mirrors"
	var found []string
	if len(features.HubMirrors) > 0 {
		found = append(found, "of docker.io in daemon.json: "+strings.Join(features.HubMirrors, " "))
	}
	if len(c.daemon.RegistryMirrors) > 0 {
		found = append(found, "in registry-mirrors: "+strings.Join(c.daemon.RegistryMirrors, " "))
	}
	hosts := c.hostsTOML()
	if len(hosts) > 0 && features.HostsTOML {
		found = append(found, "in hosts.toml: "+strings.Join(hosts, " "))
	}
	switch {
	case len(hosts) > 0 && !features.HostsTOML:
		c.warn(check, fmt.Sprintf("Docker does not read hosts.toml of %s: it must be 28.0 or newer, with the containerd image store", strings.Join(hosts, " ")),
			"set registry-mirrors of berthd, or change Docker")
	case len(hosts) > 0 && c.daemon.VerifierDir != "":
		c.warn(check, "Docker does not use hosts.toml when it looks up the digest for image-verifier-dir: the registry itself must be reachable",
			"set registry-mirrors of berthd in its place if it is not")
	case slices.ContainsFunc(hosts, c.hasMirror):
		c.warn(check, "a registry has mirrors in hosts.toml and in registry-mirrors: those of registry-mirrors are tried first", "remove one of the two")
	case len(features.HubMirrors) > 0 && c.hasMirror("docker.io"):
		c.warn(check, "docker.io has mirrors in daemon.json and in registry-mirrors: those of registry-mirrors are tried first", "remove one of the two")
	case len(found) > 0:
		c.ok(check, strings.Join(found, "; "))
	}
}

// hostsTOML returns the registries for which there is a hosts.toml where Docker looks for it.
func (c *checker) hostsTOML() (hosts []string) {
	files, _ := filepath.Glob(c.path("/etc/docker/certs.d/*/hosts.toml")) // the pattern is valid
	for _, file := range files {
		hosts = append(hosts, filepath.Base(filepath.Dir(file)))
	}
	return hosts
}

// hasMirror reports whether registry-mirrors has mirrors of a registry.
func (c *checker) hasMirror(host string) bool {
	table, err := mirror.Parse(c.daemon.RegistryMirrors)
	return err == nil && len(table[host]) > 0
}

// checkVerifiers checks the programs in image-verifier-dir.
func (c *checker) checkVerifiers() {
	const check = "image verifiers"
	dir := c.daemon.VerifierDir
	if dir == "" || c.isForeign() { // links in foreign files lead elsewhere
		return
	}
	programs, err := verify.Programs(dir)
	switch {
	case err != nil:
		c.fail(check, fmt.Sprintf("no image can be pulled: %v", err), "correct image-verifier-dir or the directory")
	case len(programs) == 0:
		c.warn(check, "all images may be pulled: "+dir+" is empty", "install a verifier there, or remove image-verifier-dir")
	case c.daemon.VerifierMax >= 0 && len(programs) > c.daemon.VerifierMax:
		c.warn(check, fmt.Sprintf("%d of %d programs in %s are skipped", len(programs)-c.daemon.VerifierMax, len(programs), dir), "increase image-verifier-max")
	default:
		c.ok(check, fmt.Sprintf("%d in %s", len(programs), dir))
	}
}
