package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/api/types/versions"
	"github.com/docker/docker/client"
	"golang.org/x/sys/unix"

	"berth/core/premount"
)

// A Features is what one Engine can do and how it is set up, decided once per
// connection; an Engine that reads its configuration again gets a new one. Everything that depends on the Engine's version asks here.
type Features struct {
	Version string // of the Engine, for example 20.10.24+dfsg1
	API     string // version agreed on, for example 1.41
	Kernel  string // release of the kernel

	RootDir        string // where the Engine keeps its data
	StorageDriver  string // overlay2, overlayfs, ...
	ContainerdRoot string // where its containerd keeps images and layers with the containerd image store, if it can be told
	Snapshotter    bool   // images are in the containerd image store
	LoggingDriver  string // the default of daemon.json

	CgroupDriver  string // systemd, cgroupfs or none
	CgroupVersion int    // 1 or 2
	LiveRestore   bool

	Runtimes       map[string]Runtime // the handlers there are
	DefaultRuntime string
	CDI            bool // devices can be asked for by CDI name

	SeccompProfile string // of daemon.json: builtin, default, unconfined or a path; "" without seccomp
	AppArmor       bool
	SELinux        bool
	Rootless       bool // the whole Engine runs in a user namespace
	UserNSRemap    bool // containers do unless they ask for the host's

	// Gates by API version (cri-on-docker 0.2).
	SeccompBuiltin       bool // 1.42: seccomp=builtin can be said
	Annotations          bool // 1.43: HostConfig.Annotations
	ReadOnlyNonRecursive bool // 1.44: a read-only mount says how deep it is
	ImageMounts          bool // 1.48: mounts of type image, with a sub-path

	// StagedMounts tells that we can prepare mounts that the Engine cannot be
	// asked for (core/premount): the kernel lets us, and the Engine has no mounts of
	// its own, as far as can be told.
	StagedMounts bool

	// LowestOOMScore is the lowest oom_score_adj that the Engine's processes
	// may give, as far as can be told from outside.
	LowestOOMScore int
}

// A Runtime is one of the Engine's low-level runtimes.
type Runtime struct {
	// RecursiveReadOnly tells that a mount can be made read-only with all
	// below it: by this runtime, this Engine and this kernel.
	RecursiveReadOnly bool
}

// inquire asks the Engine behind c for its record, and returns with it when it
// was made, by the Engine's own clock. host is where it listens.
func inquire(ctx context.Context, c *client.Client, host string) (r Features, at string, err error) {
	info, err := c.Info(ctx)
	if err != nil {
		return Features{}, "", fmt.Errorf("docker info: %w", err)
	}
	r = record(info, c.ClientVersion())
	if r.Rootless {
		return Features{}, "", fmt.Errorf("this Docker Engine is rootless: berth needs one that runs as root")
	}
	r.LowestOOMScore = lowestOOMScore(host)
	if r.Snapshotter {
		address := ""
		if info.Containerd != nil { // since API 1.46
			address = info.Containerd.Address
		}
		r.ContainerdRoot = containerdRoot(r.RootDir, address)
	}
	if path, ok := strings.CutPrefix(host, "unix://"); ok && r.StagedMounts {
		pid, err := listener(path)
		r.StagedMounts = err != nil || !premount.InOtherMountNS(pid)
	}
	return r, info.SystemTime, nil
}

// record makes the record of an Engine from what it says of itself.
func record(info system.Info, api string) Features {
	since := func(v string) bool { return versions.GreaterThanOrEqualTo(api, v) }
	r := Features{
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
	}
	r.CgroupVersion = 1
	if info.CgroupVersion == "2" {
		r.CgroupVersion = 2
	}
	for _, s := range info.DriverStatus {
		if s[0] == "driver-type" && strings.HasPrefix(s[1], "io.containerd.snapshotter") {
			r.Snapshotter = true
		}
	}
	for _, option := range info.SecurityOptions {
		fields := strings.Split(option, ",")
		switch strings.TrimPrefix(fields[0], "name=") {
		case "seccomp":
			r.SeccompProfile = "builtin"
			for _, f := range fields[1:] {
				if profile, ok := strings.CutPrefix(f, "profile="); ok {
					r.SeccompProfile = profile
				}
			}
		case "apparmor":
			r.AppArmor = true
		case "selinux":
			r.SELinux = true
		case "rootless":
			r.Rootless = true
		case "userns":
			r.UserNSRemap = true
		}
	}
	r.StagedMounts = kernelAtLeast(info.KernelVersion, 5, 12)
	deep := since("1.44") && r.StagedMounts
	for name, rt := range info.Runtimes {
		r.Runtimes[name] = Runtime{RecursiveReadOnly: deep && hasOption(rt.Status, "rro")}
	}
	// 1.50 turned CDI on by default; before, the Engine names its directories
	// only when the feature is on.
	r.CDI = len(info.CDISpecDirs) > 0
	return r
}

// hasOption reports whether the features that a runtime has told of
// (github.com/opencontainers/runtime-spec/features) name the mount option.
func hasOption(status map[string]string, option string) bool {
	var features struct {
		MountOptions []string `json:"mountOptions"`
	}
	text := status["org.opencontainers.runtime-spec.features"]
	return json.Unmarshal([]byte(text), &features) == nil && slices.Contains(features.MountOptions, option)
}

// kernelAtLeast compares a release such as 6.1.0-18-amd64 with major.minor.
func kernelAtLeast(release string, major, minor int) bool {
	var a, b int
	if _, err := fmt.Sscanf(release, "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}

// lowestOOMScore tells what oom_score_adj the process that listens at host may
// give its children: any if it has CAP_SYS_RESOURCE, else none below its own.
// Where nothing can be told it says any, and a failed start will tell.
func lowestOOMScore(host string) int {
	const anyScore = -1000
	path, ok := strings.CutPrefix(host, "unix://")
	if !ok {
		return anyScore
	}
	pid, err := listener(path)
	if err != nil || pid <= 0 {
		return anyScore
	}
	dir := "/proc/" + strconv.Itoa(pid)
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return anyScore
	}
	_, caps, ok := strings.Cut(string(status), "\nCapEff:")
	caps, _, _ = strings.Cut(caps, "\n")
	set, err := strconv.ParseUint(strings.TrimSpace(caps), 16, 64)
	if !ok || err != nil || set&(1<<unix.CAP_SYS_RESOURCE) != 0 {
		return anyScore
	}
	own, err := os.ReadFile(dir + "/oom_score_adj")
	if err != nil {
		return anyScore
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(own)))
	if err != nil {
		return anyScore
	}
	return score
}

// listenerTimeout is how long it may take to connect to a local socket.
const listenerTimeout = time.Second

// listener returns the process that listens on the Unix socket at path.
func listener(path string) (int, error) {
	conn, err := net.DialTimeout("unix", path, listenerTimeout)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err != nil || credErr != nil {
		return 0, fmt.Errorf("peer of %s: %w", path, firstError(err, credErr))
	}
	return int(cred.Pid), nil
}

// containerdRoot returns where the containerd that listens at address has its data,
// or that of the Engine with its data in rootDir if address is not known; "" if it
// cannot be told. The Engine does not say it, and it is often another disk.
func containerdRoot(rootDir, address string) string {
	// One that the Engine has started, and that of the system.
	own, system := filepath.Join(rootDir, "containerd", "daemon"), "/var/lib/containerd"
	if address == "" && !isDir(own) {
		address = "/run/containerd/containerd.sock"
	}
	if address != "" {
		if pid, err := listener(address); err == nil {
			if dir := openRoot(pid); isDir(dir) {
				return dir
			}
		}
	}
	for _, dir := range []string{own, system} {
		if isDir(dir) {
			return dir
		}
	}
	return ""
}

// openRoot returns where the containerd with the process pid has its data, told by
// the database in there that it has open as long as it runs; "" if there is none.
func openRoot(pid int) string {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	open, err := os.ReadDir(dir)
	if err != nil {
		return ""
	}
	for _, fd := range open {
		target, err := os.Readlink(filepath.Join(dir, fd.Name()))
		if err != nil {
			continue
		}
		if root, ok := strings.CutSuffix(target, "/io.containerd.metadata.v1.bolt/meta.db"); ok {
			return root
		}
	}
	return ""
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// ImageFS returns a directory on the device that images and the writable
// layers of containers are on.
func (r Features) ImageFS() string {
	if r.Snapshotter && r.ContainerdRoot != "" {
		return r.ContainerdRoot
	}
	return r.RootDir
}
