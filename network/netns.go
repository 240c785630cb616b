package network

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/utils"
	"golang.org/x/sys/unix"
)

// prefix tells our bind mounts in NetNSDir from those of others.
const prefix = "berth-"

// aPod is the ID of a sandbox. Others may have names with our prefix, too:
// whoever calls ip netns add berth-test does.
var aPod = regexp.MustCompile(`^[0-9a-f]{64}$`)

// paths are where the network namespace of the pod id may be bound; new ones are
// at the first.
func (n *CNI) paths(id string) []string {
	paths := []string{filepath.Join(n.netnsDir, prefix+id)}
	if n.olderDir != n.netnsDir {
		paths = append(paths, filepath.Join(n.olderDir, prefix+id))
	}
	return paths
}

// path is where the network namespace of the pod id is bound, or is to be.
func (n *CNI) path(id string) string {
	paths := n.paths(id)
	for _, path := range paths {
		if bound(path) {
			return path
		}
	}
	return paths[0]
}

// NetNSOfProcess is the path of the network namespace that the process pid lives in.
func NetNSOfProcess(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/ns/net" }

// Bind keeps the network namespace of the process pid for the pod id, by a
// bind mount that outlives the process, and returns its path. Binding it again
// changes nothing; binding another one lets go of the first. The namespace
// must not be the one the daemon itself lives in.
func (n *CNI) Bind(id string, pid int) (string, error) {
	if wrong := utils.ValidateContainerID(id); wrong != nil {
		return "", fmt.Errorf("pod id %q: %w: %w", id, wrong, errdefs.ErrInvalidArgument)
	}
	if err := n.prepare(); err != nil {
		return "", fmt.Errorf("prepare %s for network namespaces: %w", n.netnsDir, err)
	}
	// An open file stays the same namespace, whoever has the pid next.
	source, err := os.Open(NetNSOfProcess(pid))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return "", fmt.Errorf("the process %d of pod %s has ended: %w", pid, id, errdefs.ErrFailedPrecondition)
		}
		return "", fmt.Errorf("network namespace of pod %s: %w", id, err)
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return "", err
	}
	its := identify(info)
	// The thread's own: Dial may have lent out the first one, which is /proc/self.
	if own, err := stat("/proc/thread-self/ns/net"); err != nil || own == its {
		return "", fmt.Errorf("the process %d of pod %s has no network namespace of its own: %w", pid, id, errdefs.ErrFailedPrecondition)
	}
	path := n.path(id)
	if bound(path) {
		if ours, err := stat(path); err == nil && ours == its {
			return path, nil
		}
	}
	if err := n.unbind(id); err != nil {
		return "", err
	}
	path = n.path(id)
	target, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return "", fmt.Errorf("bind network namespace: %w", err)
	}
	if err := target.Close(); err != nil {
		return "", err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", source.Fd()), path, "", unix.MS_BIND, ""); err != nil {
		return "", errors.Join(fmt.Errorf("bind network namespace to %s: %w", path, err), os.Remove(path))
	}
	return path, nil
}

// unbind lets go of the network namespace of the pod id, bound or not.
func (n *CNI) unbind(id string) error {
	var errs []error
	for _, path := range n.paths(id) {
		errs = append(errs, unbind(path))
	}
	return errors.Join(errs...)
}

func unbind(path string) error {
	for {
		err := os.Remove(path)
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist):
			return nil
		case !errors.Is(err, unix.EBUSY):
			return err
		}
		// Something is mounted there.
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// Bound returns the ids of all pods whose network namespaces have been bound
// and not let go of.
func (n *CNI) Bound() []string {
	var ids []string
	for _, path := range n.paths("") {
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.log.Warn("bound network namespaces cannot be listed", slog.Any("err", err))
		}
		for _, e := range entries {
			if id, ok := strings.CutPrefix(e.Name(), prefix); ok && aPod.MatchString(id) {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// InNetNS reports whether the process pid lives in the network namespace that is
// bound for the pod id. It is taken for granted where none is: cri-dockerd
// bound none.
func (n *CNI) InNetNS(id string, pid int) bool {
	path := n.path(id)
	if !bound(path) {
		return true
	}
	ours, err := stat(path)
	if err != nil {
		return false
	}
	its, err := stat(NetNSOfProcess(pid))
	return err == nil && ours == its
}

// NetNS returns a path of the network namespace of the pod id, in which the
// process pid lives.
func (n *CNI) NetNS(id string, pid int) string {
	if path := n.path(id); bound(path) {
		return path
	}
	return NetNSOfProcess(pid)
}

// bound reports whether path is a network namespace, rather than a file left
// where one was, or nothing.
func bound(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// An identity tells a namespace from all others that exist at the same time.
type identity struct{ dev, ino uint64 }

func stat(path string) (identity, error) {
	info, err := os.Stat(path)
	if err != nil {
		return identity{}, err
	}
	return identify(info), nil
}

func identify(info fs.FileInfo) identity {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}
	}
	return identity{st.Dev, st.Ino}
}

// prepare makes sure, once, that what is mounted in netnsDir is seen, and
// gone, wherever the directory is: in the mount namespaces of agents that run
// in containers. Where the mount it lies on is shared that is so already;
// otherwise it becomes a shared mount of its own.
func (n *CNI) prepare() error {
	n.mounting.Lock()
	defer n.mounting.Unlock()
	if n.mounted {
		return nil
	}
	if err := os.MkdirAll(n.netnsDir, 0o755); err != nil {
		return err
	}
	ok, err := shared(n.netnsDir)
	if err != nil {
		return err
	}
	if !ok {
		err := unix.Mount("", n.netnsDir, "", unix.MS_SHARED|unix.MS_REC, "")
		if errors.Is(err, unix.EINVAL) { // it is no mount point
			if err = unix.Mount(n.netnsDir, n.netnsDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
				return fmt.Errorf("make it a mount point: %w", err)
			}
			err = unix.Mount("", n.netnsDir, "", unix.MS_SHARED|unix.MS_REC, "")
		}
		if err != nil {
			return fmt.Errorf("share it: %w", err)
		}
	}
	n.mounted = true
	return nil
}

// shared reports whether the mount that dir lies on is shared.
func shared(dir string) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", f.Fd()))
	if err != nil {
		return false, err
	}
	mount := ""
	for line := range strings.Lines(string(info)) {
		if id, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			mount = strings.TrimSpace(id)
		}
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	defer mounts.Close()
	lines := bufio.NewScanner(mounts)
	for lines.Scan() {
		// id parent dev root mountpoint options [optional ...] - type source options
		fields := strings.Fields(lines.Text())
		if len(fields) < 7 || fields[0] != mount {
			continue
		}
		for _, field := range fields[6:] {
			if field == "-" {
				break
			}
			if strings.HasPrefix(field, "shared:") {
				return true, nil
			}
		}
		return false, nil
	}
	return false, lines.Err()
}
