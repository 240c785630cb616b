// Package netns keeps the network namespaces of pods, dials into them and reads the
// counters of their interfaces.
//
// A [Store] holds each pod's namespace by a bind mount, which outlives the pod's pause
// process and the daemon. Its only state is these mounts. The package runs no CNI plugins.
package netns

import (
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
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// filePrefix distinguishes berth's bind mounts in Config.Dir from those of other programs.
const filePrefix = "berth-"

// FileName is the name, in its directory, of the bind mount for the pod id.
func FileName(id string) string { return filePrefix + id }

// sandboxIDPattern matches the ID of a sandbox. Other files may have the prefix too:
// "ip netns add berth-test" creates one.
var sandboxIDPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9a-f]{64}$`) })

// Config says where a Store keeps its mounts. All paths are absolute.
type Config struct {
	// Dir is where namespaces are bound. It is created when it is first needed. Symbolic links
	// in it are kept: network agents look for the literal path /var/run/netns, which is
	// /run/netns on most systems.
	Dir string
	// LegacyDir is where earlier versions bound them. What is bound there is found and
	// unbound, nothing new is bound there. It may be the same as Dir.
	LegacyDir string
	Log       *slog.Logger
}

// A Store keeps the network namespaces of pods. Its methods may be called concurrently,
// but for one pod only one of Bind and Unbind at a time.
type Store struct {
	dirs []string // the first is for new mounts
	log  *slog.Logger

	mu       sync.Mutex // guards prepared
	prepared bool       // the first of dirs exists and is on a shared mount
}

// New returns a Store. It does no I/O.
func New(cfg Config) *Store {
	s := &Store{dirs: []string{filepath.Clean(cfg.Dir)}, log: cfg.Log}
	if legacy := filepath.Clean(cfg.LegacyDir); cfg.LegacyDir != "" && legacy != s.dirs[0] {
		s.dirs = append(s.dirs, legacy)
	}
	return s
}

// ValidateID returns nil if id can be the ID of a pod's attachment (CNI specification,
// CNI_CONTAINERID), or an error of kind InvalidArgument.
func ValidateID(id string) error {
	if err := utils.ValidateContainerID(id); err != nil {
		return fmt.Errorf("pod id %q: %w: %w", id, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// ProcessPath is the path of the network namespace of the process pid.
func ProcessPath(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/ns/net" }

// Path returns where the network namespace of the pod id is bound. If it is not, bound
// is false and path is where Bind would bind it.
func (s *Store) Path(id string) (path string, bound bool) {
	paths := s.paths(id)
	for _, path := range paths {
		if IsNetNS(path) {
			return path, true
		}
	}
	return paths[0], false
}

// Names reports whether path is where the store binds, or would bind, the network namespace of a pod.
func (s *Store) Names(path string) bool {
	id, ok := strings.CutPrefix(filepath.Base(path), filePrefix)
	return ok && sandboxIDPattern().MatchString(id) && slices.Contains(s.dirs, filepath.Dir(path))
}

// PathOrProcess returns a path of the network namespace of the pod id, in which the
// process pid runs: that of the bind mount if there is one.
func (s *Store) PathOrProcess(id string, pid int) string {
	if path, bound := s.Path(id); bound {
		return path
	}
	return ProcessPath(pid)
}

// paths returns where the network namespace of the pod id may be bound.
func (s *Store) paths(id string) []string {
	paths := make([]string, len(s.dirs))
	for i, dir := range s.dirs {
		paths[i] = filepath.Join(dir, FileName(id))
	}
	return paths
}

// Bind binds the network namespace of the process pid for the pod id and returns the
// path. It is idempotent; another namespace that is bound for the pod is unbound first.
//
// The error is of kind FailedPrecondition if the process has ended, or is in the
// network namespace of the daemon.
func (s *Store) Bind(id string, pid int) (string, error) {
	if err := ValidateID(id); err != nil {
		return "", err
	}
	if err := s.prepareDir(); err != nil {
		return "", fmt.Errorf("prepare %s for network namespaces: %w", s.dirs[0], err)
	}
	// An open file keeps referring to the same namespace even if the pid is reused.
	source, err := os.Open(ProcessPath(pid))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return "", fmt.Errorf("process %d of pod %s has ended: %w", pid, id, errdefs.ErrFailedPrecondition)
		}
		return "", fmt.Errorf("network namespace of pod %s: %w", id, err)
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return "", err
	}
	podNS := identityOf(info)
	// Not /proc/self/ns/net: that is the first thread's, which Dial may have moved.
	if own, err := statIdentity("/proc/thread-self/ns/net"); err != nil || own == podNS {
		return "", fmt.Errorf("process %d of pod %s has no network namespace of its own: %w", pid, id, errdefs.ErrFailedPrecondition)
	}
	if path, bound := s.Path(id); bound {
		if boundNS, err := statIdentity(path); err == nil && boundNS == podNS {
			return path, nil
		}
	}
	if err := s.Unbind(id); err != nil {
		return "", err
	}
	path := s.paths(id)[0]
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

// Unbind removes the bind mount for the pod id. It is no error if there is none.
func (s *Store) Unbind(id string) error {
	var errs []error
	for _, path := range s.paths(id) {
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
		// EBUSY: something is mounted on it.
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// List returns the sorted IDs of all pods that there is a bind mount for, or the file of one.
func (s *Store) List() (ids []string, err error) {
	for _, dir := range s.dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("bound network namespaces: %w", err)
		}
		for _, e := range entries {
			if id, ok := strings.CutPrefix(e.Name(), filePrefix); ok && sandboxIDPattern().MatchString(id) {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// Contains reports whether the process pid is in the network namespace that is bound for
// the pod id. It is true for pods without a bind mount, such as those of cri-dockerd.
func (s *Store) Contains(id string, pid int) bool {
	path, bound := s.Path(id)
	if !bound {
		return true
	}
	boundNS, err := statIdentity(path)
	if err != nil {
		return false
	}
	processNS, err := statIdentity(ProcessPath(pid))
	return err == nil && boundNS == processNS
}

// IsNetNS reports whether path is a namespace file, and not, for example, the empty file
// that is left where one was bound before a reboot.
func IsNetNS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// An identity is unique among the namespaces that exist at the same time.
type identity struct{ dev, ino uint64 }

func statIdentity(path string) (identity, error) {
	info, err := os.Stat(path)
	if err != nil {
		return identity{}, err
	}
	return identityOf(info), nil
}

func identityOf(info fs.FileInfo) identity {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}
	}
	return identity{st.Dev, st.Ino}
}

// prepareDir creates the directory, once, and makes sure that its mounts propagate to the
// mount namespaces of network agents that run in containers. Where it is on a shared
// mount they do already; otherwise it becomes a shared mount itself.
func (s *Store) prepareDir() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.prepared {
		return nil
	}
	dir := s.dirs[0]
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	shared, err := isShared(dir)
	if err != nil {
		return err
	}
	if !shared {
		err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, "")
		if errors.Is(err, unix.EINVAL) { // it is not a mount point
			if err = unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
				return fmt.Errorf("make it a mount point: %w", err)
			}
			err = unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, "")
		}
		if err != nil {
			return fmt.Errorf("make it a shared mount: %w", err)
		}
	}
	s.prepared = true
	return nil
}

// isShared reports whether the mount that dir is on is shared. The mount is found by its
// ID (proc(5), mnt_id): by its path, a mount that is hidden by another one would be found too.
func isShared(dir string) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	fdinfo, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", f.Fd()))
	if err != nil {
		return false, err
	}
	mountID := -1
	for line := range strings.Lines(string(fdinfo)) {
		if value, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			if mountID, err = strconv.Atoi(strings.TrimSpace(value)); err != nil {
				return false, fmt.Errorf("mount of %s: %w", dir, err)
			}
		}
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		found := m.ID == mountID
		return !found, found
	})
	if err != nil || len(mounts) == 0 {
		return false, err
	}
	return strings.Contains(" "+mounts[0].Optional, " shared:"), nil
}
