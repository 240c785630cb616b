package engine

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/api/types/versions"
	"github.com/docker/docker/client"

	"berth/core/hostprobe"
	"berth/core/names"
	"berth/core/ocifeatures"
	"berth/core/premount"
)

// Features are the features and the configuration of one Engine. They are read once per connection; after the Engine has
// reloaded its configuration there is a new connection. Whatever depends on the Engine's version is decided by them.
type Features struct {
	Version string // of the Engine, for example 20.10.24+dfsg1
	API     string // negotiated version, for example 1.41
	Kernel  string // release of the kernel

	RootDir        string   // data directory of the Engine
	StorageDriver  string   // overlay2, overlayfs, ...
	ContainerdRoot string   // data directory of its containerd, with the containerd image store; "" if unknown
	Snapshotter    bool     // images are in the containerd image store
	LoggingDriver  string   // the default, log-driver of daemon.json
	HubMirrors     []string // registry-mirrors of daemon.json, which are for docker.io

	CgroupDriver  string // systemd, cgroupfs or none
	CgroupVersion int    // 1 or 2
	LiveRestore   bool

	Runtimes       map[string]Runtime // by name, which is the runtime handler of the CRI
	DefaultRuntime string
	CDI            bool     // containers can request devices by CDI name
	CDISpecDirs    []string // where the Engine looks for CDI specifications, if CDI is set

	SeccompProfile string // of daemon.json: builtin, default, unconfined or a path; "" without seccomp
	AppArmor       bool
	SELinux        bool
	Rootless       bool // the whole Engine runs in a user namespace
	UserNSRemap    bool // containers run in a user namespace unless they request the host's

	// By API version; core/engine/enginelaws tries each on real Engines.
	SeccompBuiltin       bool // 1.42 (Docker 23.0): the seccomp profile "builtin" has that name
	Annotations          bool // 1.43 (Docker 24.0): HostConfig.Annotations
	ReadOnlyNonRecursive bool // 1.44 (Docker 25.0): BindOptions.ReadOnlyNonRecursive and ReadOnlyForceRecursive
	ImageMounts          bool // 1.48 (Docker 28.0): mounts of type image, with a sub-path
	ShimRuntimes         bool // 1.42 (Docker 23.0): HostConfig.Runtime can be the name of a containerd shim
	WritableCgroups      bool // 1.48 (Docker 28.0): the security option writable-cgroups
	LayerQuota           bool // HostConfig.StorageOpt can limit the size of a writable layer
	HostsTOML            bool // 1.48 (Docker 28.0), with the containerd image store: hosts.toml files below /etc/docker/certs.d

	// Premounts reports that berth can prepare mounts that the Engine API cannot express (core/premount): the kernel is
	// 5.12 or newer, and OtherMountNS is 0.
	Premounts    bool
	OtherMountNS int // PID of the Engine if it is known to run in another mount namespace than berthd

	// LowestOOMScore is the lowest oom_score_adj that the Engine can give a container, as far as can be found out without a start.
	LowestOOMScore int
}

// A Runtime is one of the Engine's OCI runtimes.
type Runtime struct {
	// RecursiveReadOnly reports that the runtime, the Engine and the kernel can make a mount read-only with all mounts below it.
	RecursiveReadOnly bool
	// RuncShim reports that containerd runs it, a program like runc, with its shim for runc.
	RuncShim     bool
	OCI          ocifeatures.Features
	Instructions string // names.InstructionsDir; "" for runtimes other than berth's own
}

// probeFeatures reads the features of the Engine behind c, which listens at host. readAt is a time before that by the Engine's own clock.
func probeFeatures(ctx context.Context, c *client.Client, host string) (f Features, readAt string, err error) {
	start := time.Now()
	info, err := c.Info(ctx)
	if err != nil {
		return Features{}, "", fmt.Errorf("docker info: %w", err)
	}
	f = newFeatures(info, c.ClientVersion())
	if f.Rootless {
		return Features{}, "", fmt.Errorf("this Docker Engine is rootless: berth needs one that runs as root")
	}
	f.LowestOOMScore = hostprobe.LowestOOMScore(host)
	f.LayerQuota = !f.Snapshotter && hostprobe.LayerQuota(f.StorageDriver, f.RootDir)
	if f.Snapshotter {
		address := ""
		if info.Containerd != nil { // since API 1.46
			address = info.Containerd.Address
		}
		f.ContainerdRoot = hostprobe.ContainerdRoot(f.RootDir, address)
	}
	if path, ok := strings.CutPrefix(host, "unix://"); ok {
		if pid, err := hostprobe.PeerPID(path); err == nil && premount.InOtherMountNS(pid) {
			f.Premounts, f.OtherMountNS = false, pid
		}
	}
	readAt = info.SystemTime
	// The configuration was read before that: Docker >= 23 counts its images in between (SystemInfo in daemon/info.go).
	if at, err := time.Parse(time.RFC3339Nano, readAt); err == nil {
		readAt = at.Add(-2*time.Since(start) - 100*time.Millisecond).Format(time.RFC3339Nano)
	}
	return f, readAt, nil
}

// newFeatures derives the features of an Engine from its GET /info and the negotiated API version.
func newFeatures(info system.Info, api string) Features {
	since := func(v string) bool { return versions.GreaterThanOrEqualTo(api, v) }
	f := Features{
		Version:        info.ServerVersion,
		API:            api,
		Kernel:         info.KernelVersion,
		RootDir:        info.DockerRootDir,
		StorageDriver:  info.Driver,
		LoggingDriver:  info.LoggingDriver,
		CgroupDriver:   info.CgroupDriver,
		LiveRestore:    info.LiveRestoreEnabled,
		DefaultRuntime: info.DefaultRuntime,
		Runtimes:       map[string]Runtime{},

		SeccompBuiltin:       since("1.42"),
		Annotations:          since("1.43"),
		ReadOnlyNonRecursive: since("1.44"),
		ImageMounts:          since("1.48"),
		ShimRuntimes:         since("1.42"),
		WritableCgroups:      since("1.48"),
	}
	f.CgroupVersion = 1
	if info.CgroupVersion == "2" {
		f.CgroupVersion = 2
	}
	for _, s := range info.DriverStatus {
		if s[0] == "driver-type" && strings.HasPrefix(s[1], "io.containerd.snapshotter") {
			f.Snapshotter = true
		}
	}
	f.HostsTOML = f.Snapshotter && since("1.48")
	if info.RegistryConfig != nil {
		f.HubMirrors = info.RegistryConfig.Mirrors
	}
	for _, option := range info.SecurityOptions {
		fields := strings.Split(option, ",")
		switch strings.TrimPrefix(fields[0], "name=") {
		case "seccomp":
			f.SeccompProfile = "builtin"
			for _, field := range fields[1:] {
				if profile, ok := strings.CutPrefix(field, "profile="); ok {
					f.SeccompProfile = profile
				}
			}
		case "apparmor":
			f.AppArmor = true
		case "selinux":
			f.SELinux = true
		case "rootless":
			f.Rootless = true
		case "userns":
			f.UserNSRemap = true
		}
	}
	f.Premounts = hostprobe.KernelAtLeast(info.KernelVersion, 5, 12) // mount_setattr(2)
	recursive := since("1.44") && f.Premounts
	for name, rt := range info.Runtimes {
		oci := ocifeatures.Parse(rt.Status)
		f.Runtimes[name] = Runtime{
			RecursiveReadOnly: recursive && oci.RecursiveReadOnly,
			OCI:               oci,
			RuncShim:          rt.Type == names.RuncShim || rt.Type == "" && rt.Path != "",
			Instructions:      names.InstructionsDir(rt.Path, rt.Args),
		}
	}
	// CDI is on by default since API 1.50 (Docker 28.2). Before, the Engine reports its directories only with features.cdi in daemon.json.
	f.CDI, f.CDISpecDirs = len(info.CDISpecDirs) > 0, info.CDISpecDirs
	return f
}

// RuncShim reports whether containerd's shim for runc runs a HostConfig.Runtime, "" for the default.
func (f Features) RuncShim(runtime string) bool {
	return f.Runtimes[cmp.Or(runtime, f.DefaultRuntime)].RuncShim
}

// ImageFS returns a directory on the file system of images and writable layers.
func (f Features) ImageFS() string {
	if f.Snapshotter && f.ContainerdRoot != "" {
		return f.ContainerdRoot
	}
	return f.RootDir
}
