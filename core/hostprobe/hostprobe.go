// Package hostprobe finds out about the processes of Docker and containerd, and about the
// kernel, what the Engine API does not report: from /proc and by the peer credentials of
// their Unix sockets. Its functions have fallbacks: they only work for local processes and
// with root.
package hostprobe

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// LowestOOMScore returns the lowest oom_score_adj that the process that listens at host may
// give its children: any if it has CAP_SYS_RESOURCE, else its own. If that cannot be found
// out it returns the lowest of all, and a failed start will correct it (engine.Conn.RaiseOOMFloor).
func LowestOOMScore(host string) int {
	const anyScore = -1000
	path, ok := strings.CutPrefix(host, "unix://")
	if !ok {
		return anyScore
	}
	pid, err := PeerPID(path)
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

// localDialTimeout is how long a connect to a Unix socket may take. It blocks if the
// listener's backlog is full.
const localDialTimeout = time.Second

// PeerPID returns the process that listens on the Unix socket at path.
func PeerPID(path string) (int, error) {
	conn, err := net.DialTimeout("unix", path, localDialTimeout)
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
	if err = cmp.Or(err, credErr); err != nil {
		return 0, fmt.Errorf("peer of %s: %w", path, err)
	}
	return int(cred.Pid), nil
}

// ContainerdRoot returns the data directory of the containerd that listens at address, or,
// if address is not known, of the one that an Engine with data in rootDir uses; "" if it
// cannot be found. The Engine API does not have it, and it is often on another disk.
func ContainerdRoot(rootDir, address string) string {
	// The containerd that the Engine has started itself, and that of the system.
	own, system := filepath.Join(rootDir, "containerd", "daemon"), "/var/lib/containerd"
	if address == "" && !isDir(own) {
		address = "/run/containerd/containerd.sock"
	}
	if address != "" {
		if pid, err := PeerPID(address); err == nil {
			if dir := containerdRootOf(pid); isDir(dir) {
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

// containerdRootOf returns the data directory of the containerd with the process pid, or ""
// if there is none: containerd keeps the database of its plugin io.containerd.metadata.v1
// open, which is in that directory.
func containerdRootOf(pid int) string {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	fds, err := os.ReadDir(dir)
	if err != nil {
		return ""
	}
	for _, fd := range fds {
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

// KernelAtLeast reports whether a kernel release such as 6.1.0-18-amd64 is major.minor or
// newer.
func KernelAtLeast(release string, major, minor int) bool {
	var a, b int
	if _, err := fmt.Sscanf(release, "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}
