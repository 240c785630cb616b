package ociruntime

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth/core/engine"
	"berth/core/hostprobe"
	"berth/core/panics"
)

// A Prober finds out what the kernel and the file system of images can do, and remembers it.
type Prober struct {
	mu    sync.Mutex // guards known
	known map[probed]error

	idmap func(pid int, dir string) error // idmapDirOf, except in tests
}

// NewProber returns a Prober.
func NewProber() *Prober { return &Prober{known: map[probed]error{}, idmap: idmapDirOf} }

// probed is what a result depends on. pid is a process in the mount namespace of dir, 0 for that of berthd.
type probed struct {
	kernel, driver, dir string
	pid                 int
}

// The first Linux with id-mapped tmpfs, on which secrets, config maps and the files of a pod are. Overlays
// of id-mapped layers are older (5.19).
const kernelMajor, kernelMinor = 6, 3

// overlayDrivers are Docker's storage drivers whose containers are overlays of directories.
var overlayDrivers = []string{"overlay2", "overlayfs"}

// Probe returns why containers in user namespaces are not possible, nil if they are. It tries once for
// each kernel and file system.
func (p *Prober) Probe(features engine.Features) error {
	key := probed{features.Kernel, features.StorageDriver, features.ImageFS(), features.OtherMountNS}
	p.mu.Lock()
	err, ok := p.known[key]
	p.mu.Unlock()
	if ok {
		return err
	}
	err = p.probeNow(key)
	if err == nil || errdefs.IsFailedPrecondition(err) { // else it may be another time
		p.mu.Lock()
		defer p.mu.Unlock()
		p.known[key] = err
	}
	return err
}

func (p *Prober) probeNow(key probed) error {
	switch {
	case !hostprobe.KernelAtLeast(key.kernel, kernelMajor, kernelMinor):
		return fmt.Errorf("user namespaces need Linux %d.%d or newer, which can map the IDs of tmpfs, this is %s: %w", kernelMajor, kernelMinor, key.kernel, errdefs.ErrFailedPrecondition)
	case !slices.Contains(overlayDrivers, key.driver):
		return fmt.Errorf("user namespaces need the storage driver overlay2 or the snapshotter overlayfs, Docker has %s: %w", key.driver, errdefs.ErrFailedPrecondition)
	}
	if err := p.idmap(key.pid, key.dir); err != nil {
		return fmt.Errorf("user namespaces: the file system of Docker's images, %s, cannot be mounted with mapped IDs: %w", key.dir, err)
	}
	return nil
}

// idmapDirOf is idmapDir for a directory in the mount namespace of the process pid, or in that of berthd if pid is 0.
func idmapDirOf(pid int, dir string) error {
	if pid == 0 {
		return idmapDir(dir)
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return fmt.Errorf("mount namespace of Docker: %w", err)
	}
	defer ns.Close()
	return onThreadOfItsOwn(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil { // setns(2) refuses threads that share their working directory
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter the mount namespace of Docker: %w", err)
		}
		return idmapDir(dir)
	})
}

// onThreadOfItsOwn calls f on a thread that ends afterwards, so that f may change its namespaces. It is never the
// main thread, which does not end, and whose namespaces /proc/self shows.
func onThreadOfItsOwn(f func() error) error {
	g := panics.NewGroup(slog.Default())
	g.Go(func() error {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			defer runtime.UnlockOSThread()
			return onThreadOfItsOwn(f) // while this goroutine has the main thread
		}
		return f() // still locked: the thread ends with this goroutine
	})
	return g.Wait()
}

// idmapDir fails if the file system of a directory cannot be mounted with mapped IDs. It mounts nothing
// where anybody could see it.
func idmapDir(dir string) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(tree)
	ns, err := openUserNS()
	if err != nil {
		return fmt.Errorf("create a user namespace: %w", err)
	}
	defer ns.Close()
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return fmt.Errorf("mount_setattr: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// probeHostID is the first ID of the user namespace that the probe uses, as a kubelet gives it to pods.
const probeHostID, probeIDs = 65536, 65536

// openUserNS returns a new user namespace. Its only process is stopped before its first instruction
// and killed.
func openUserNS() (*os.File, error) {
	runtime.LockOSThread() // the process is traced by this thread
	defer runtime.UnlockOSThread()
	mapping := []syscall.SysProcIDMap{{ContainerID: 0, HostID: probeHostID, Size: probeIDs}}
	process, err := os.StartProcess("/proc/self/exe", []string{"userns"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, UidMappings: mapping, GidMappings: mapping, Ptrace: true, Pdeathsig: unix.SIGKILL,
	}})
	if err != nil {
		return nil, err
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", process.Pid))
	killErr := process.Kill()
	_, waitErr := process.Wait()
	if err := errors.Join(err, killErr, waitErr); err != nil {
		if ns != nil {
			ns.Close()
		}
		return nil, err
	}
	return ns, nil
}
