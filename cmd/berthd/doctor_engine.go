package main

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

// checkEngine looks at Docker.
func (p *patient) checkEngine(ctx context.Context) {
	host := cmp.Or(p.cfg.DockerEndpoint, os.Getenv("DOCKER_HOST"), "what DOCKER_HOST says")
	docker, err := engine.New(engine.Config{Host: p.cfg.DockerEndpoint}, slog.New(slog.DiscardHandler))
	if err != nil {
		p.tell("docker", wrong, err.Error(), "correct docker-endpoint")
		return
	}
	can, err := docker.Probe(ctx)
	if err != nil {
		do := "look at: systemctl status docker.service"
		var at string
		switch path, isUnix := strings.CutPrefix(host, "unix://"); {
		case isUnix && errors.Is(unix.Access(path, unix.F_OK), fs.ErrNotExist):
			at, do = "nothing is at "+host, "install Docker Engine 20.10 or newer and: systemctl enable --now docker.service; if it listens elsewhere, set docker-endpoint"
		case isUnix && errors.Is(unix.Access(path, unix.W_OK), fs.ErrPermission):
			at, do = host+" is not for this user", "run the doctor as root"
		case !engine.IsUnavailable(err):
			do = "do as it says"
		}
		p.tell("docker", wrong, cmp.Or(at, fmt.Sprintf("no use at %s: %v", host, err)), do)
		return
	}
	p.engine = &can
	p.tell("docker", fine, fmt.Sprintf("Docker %s, API %s, at %s", can.Version, can.API, host), "")
	p.checkCgroups(can)
	p.checkStore(can)
	if can.LiveRestore {
		p.tell("live-restore", fine, "pods outlive a restart of Docker", "")
	} else {
		p.tell("live-restore", doubt, "a restart or upgrade of Docker ends all pods",
			`set "live-restore": true in /etc/docker/daemon.json and: systemctl reload docker`)
	}
}

// checkCgroups looks at what Docker does with cgroups.
func (p *patient) checkCgroups(can engine.Features) {
	_, err := os.Stat(p.path("/run/systemd/system"))
	found := fmt.Sprintf("%s, cgroup v%d", can.CgroupDriver, can.CgroupVersion)
	switch {
	case can.CgroupDriver != "systemd" && can.CgroupDriver != "cgroupfs":
		p.tell("cgroup driver", wrong, found+": no kubelet can work with that",
			`set "exec-opts": ["native.cgroupdriver=systemd"] in /etc/docker/daemon.json and restart Docker`)
	case can.CgroupDriver == "cgroupfs" && err == nil && can.CgroupVersion == 2:
		p.tell("cgroup driver", doubt, found+": systemd and Docker both believe that cgroups are theirs",
			`on a node without pods set "exec-opts": ["native.cgroupdriver=systemd"] in /etc/docker/daemon.json and restart Docker`)
	case can.CgroupVersion == 1:
		p.tell("cgroup driver", doubt, found+": kubelets from 1.35 do not start on v1",
			"boot with cgroup v2, or set failCgroupV1: false in the kubelet's configuration")
	default:
		p.tell("cgroup driver", fine, found, "")
	}
}

// checkStore looks at where Docker keeps images.
func (p *patient) checkStore(can engine.Features) {
	store := "Docker's own store"
	if can.Snapshotter {
		store = "containerd image store"
	}
	found := fmt.Sprintf("%s, %s, in %s", store, can.StorageDriver, can.ImageFS())
	switch can.StorageDriver {
	case "vfs", "native":
		p.tell("image store", doubt, found+": each container is a full copy of its image",
			`move /var/lib/docker to ext4, or to xfs with ftype=1, and set "storage-driver": "overlay2"`)
	case "devicemapper", "aufs", "overlay":
		p.tell("image store", doubt, found+": newer Docker cannot read it", `set "storage-driver": "overlay2" before an upgrade of Docker; images are pulled again`)
	default:
		p.tell("image store", fine, found, "")
	}
}
