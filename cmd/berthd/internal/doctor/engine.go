package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"berth/core/engine"
)

// cgroupDriverFix sets Docker's cgroup driver.
const cgroupDriverFix = `set "exec-opts": ["native.cgroupdriver=systemd"] in /etc/docker/daemon.json and restart Docker`

// checkEngine checks that Docker answers, and its settings.
func (c *checker) checkEngine(ctx context.Context) {
	host := cmp.Or(c.daemon.DockerEndpoint, os.Getenv("DOCKER_HOST"), "the default of DOCKER_HOST")
	docker, err := engine.New(engine.Config{Host: c.daemon.DockerEndpoint}, slog.New(slog.DiscardHandler))
	if err != nil {
		c.fail("docker", err.Error(), "correct docker-endpoint")
		return
	}
	features, err := docker.Probe(ctx)
	if err != nil {
		c.engineFailed(host, err)
		return
	}
	c.engine = &features
	c.ok("docker", fmt.Sprintf("Docker %s, API %s, at %s", features.Version, features.API, host))
	c.checkCgroups(features)
	c.checkImageStore(features)
	c.checkPodOptions(features)
	c.checkSpecFiles(features)
	c.checkMirrors(features)
	if features.LiveRestore {
		c.ok("live-restore", "pods survive a restart of Docker")
	} else {
		c.warn("live-restore", "a restart or upgrade of Docker stops all pods",
			`set "live-restore": true in /etc/docker/daemon.json and: systemctl reload docker`)
	}
}

// engineFailed adds the result for an Engine that cannot be used because of err.
func (c *checker) engineFailed(host string, err error) {
	path, isUnix := strings.CutPrefix(host, "unix://")
	switch {
	case isUnix && errors.Is(unix.Access(path, unix.F_OK), fs.ErrNotExist):
		c.fail("docker", "nothing is at "+host, "install Docker Engine 20.10 or newer and: systemctl enable --now docker.service; if it listens elsewhere, set docker-endpoint")
	case isUnix && errors.Is(unix.Access(path, unix.W_OK), fs.ErrPermission):
		c.fail("docker", "this user may not use "+host, "run the doctor as root")
	case engine.IsUnavailable(err):
		c.fail("docker", fmt.Sprintf("Docker at %s does not answer: %v", host, err), "see: systemctl status docker.service")
	default:
		c.fail("docker", fmt.Sprintf("Docker at %s cannot be used: %v", host, err), "do what the message says")
	}
}

// checkCgroups checks Docker's cgroup driver and the version of cgroups.
func (c *checker) checkCgroups(features engine.Features) {
	_, err := os.Stat(c.path("/run/systemd/system")) // sd_booted(3)
	setup := fmt.Sprintf("%s, cgroup v%d", features.CgroupDriver, features.CgroupVersion)
	switch {
	case features.CgroupDriver != "systemd" && features.CgroupDriver != "cgroupfs":
		c.fail("cgroup driver", setup+": no kubelet supports this driver", cgroupDriverFix)
	case features.CgroupDriver == "cgroupfs" && err == nil && features.CgroupVersion == 2:
		c.warn("cgroup driver", setup+": systemd and Docker both manage the same cgroups", "on a node without pods "+cgroupDriverFix)
	case features.CgroupVersion == 1:
		c.warn("cgroup driver", setup+": kubelets from 1.35 do not start on v1",
			"boot with cgroup v2, or set failCgroupV1: false in the kubelet's configuration")
	default:
		c.ok("cgroup driver", setup)
	}
}

// checkImageStore checks Docker's storage driver.
func (c *checker) checkImageStore(features engine.Features) {
	store := "Docker's own store"
	if features.Snapshotter {
		store = "containerd image store"
	}
	setup := fmt.Sprintf("%s, %s, in %s", store, features.StorageDriver, features.ImageFS())
	switch features.StorageDriver {
	case "vfs", "native":
		c.warn("image store", setup+": each container is a full copy of its image",
			`move /var/lib/docker to ext4, or to xfs with ftype=1, and set "storage-driver": "overlay2"`)
	case "devicemapper", "aufs", "overlay":
		c.warn("image store", setup+": newer versions of Docker cannot read it", `set "storage-driver": "overlay2" before an upgrade of Docker; images are pulled again`)
	default:
		c.ok("image store", setup)
	}
}
