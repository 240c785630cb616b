package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/premount"
	"berth/core/todocker"
)

// podFiles are the files in the directory of a pod and their paths in containers. For a
// sandbox with NetworkDisabled, as CNI pods have, the Engine creates none.
var podFiles = []todocker.File{
	{Source: "hosts", Target: "/etc/hosts"},
	{Source: "hostname", Target: "/etc/hostname"},
	{Source: "resolv.conf", Target: "/etc/resolv.conf"},
}

// readOnlyMark is a file in the directory of a pod whose files are mounted read-only,
// because nothing bounds their size. Pods of berth 1.0 do not have it: their files stay
// writable.
const readOnlyMark = "read-only"

// filesSlack is how many bytes all containers of a pod together can add to its files.
const filesSlack = 128 << 10

// writeFiles writes the files of the pod in the sandbox id; found is its pause container.
//
// All containers of a pod can write to its files, and the run directory is on the /run of the
// node, where systemd and Docker need space too. Therefore they are on a small file system
// of their own. If that cannot be mounted, or Docker would not see the mount, containers can
// only read them.
//
// The same files are written below the mount too, for a dockerd in a mount namespace of its
// own with a containerd in the node's: dockerd checks that they exist, and containerd's
// runtime mounts them.
func (s *Service) writeFiles(id string, pod *runtimeapi.PodSandboxConfig, addrs []netip.Addr, found container.InspectResponse) error {
	content, err := podContent(id, pod, addrs)
	if err != nil {
		return fmt.Errorf("files of sandbox %s: %w", id, err)
	}
	dir := s.podDir(id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	below := maps.Clone(content)
	below[readOnlyMark] = nil
	if err := writeAll(dir, below); err != nil {
		return fmt.Errorf("files of sandbox %s: %w", id, err)
	}
	if err := s.mountBounded(dir, content, found); err != nil {
		s.readOnlyWarning.Do(func() {
			s.log.Warn("tmpfs for the files of a pod cannot be mounted: in its containers /etc/hosts, /etc/hostname and /etc/resolv.conf are read-only; logged once",
				slog.String("sandbox", id), slog.Any("err", err))
		})
		return nil
	}
	if err := writeAll(dir, content); err != nil {
		return fmt.Errorf("files of sandbox %s: %w", id, err)
	}
	return nil
}

// mountBounded mounts a file system on dir large enough for content and filesSlack. The process
// that starts the containers of the pod, which is the parent of its pause process, must see
// the mount.
func (s *Service) mountBounded(dir string, content map[string][]byte, found container.InspectResponse) error {
	switch {
	case s.tmpfs == nil:
		return errors.ErrUnsupported
	case premount.InOtherMountNS(premount.ParentPID(found.State.Pid)):
		return errors.New("docker has a mount namespace of its own (see PrivateMounts= and MountFlags= in its systemd unit), or its mount namespace cannot be read")
	}
	page := int64(os.Getpagesize())
	size := int64(filesSlack)
	for _, text := range content {
		size += (int64(len(text))/page + 1) * page
	}
	return s.tmpfs.Mount(dir, size, found.MountLabel)
}

// podContent returns the content of the files of a pod, by name.
func podContent(id string, pod *runtimeapi.PodSandboxConfig, addrs []netip.Addr) (map[string][]byte, error) {
	node, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	resolv, err := todocker.ResolvConf(pod.GetDnsConfig(), node)
	if err != nil {
		return nil, err
	}
	name := todocker.Hostname(pod, id)
	content := map[string][]byte{
		"hosts":       todocker.Hosts(name, addrs),
		"hostname":    []byte(name + "\n"),
		"resolv.conf": resolv,
	}
	if todocker.HostNetwork(pod) {
		if content["hosts"], err = os.ReadFile("/etc/hosts"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		name, err := os.Hostname()
		if err != nil {
			return nil, err
		}
		content["hostname"] = []byte(name + "\n")
	}
	return content, nil
}

// writeAll writes files to dir. They are world-readable: containers run as any user.
func writeAll(dir string, content map[string][]byte) error {
	for name, text := range content {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// removeFiles removes the files of the pod in the sandbox id, and their file system.
func (s *Service) removeFiles(id string) error {
	if s.tmpfs == nil {
		return os.RemoveAll(s.podDir(id))
	}
	return s.tmpfs.Remove(s.podDir(id))
}

// Files is a run directory, which has the files of pods.
type Files string

func (f Files) dir(id string) string { return filepath.Join(string(f), "pods", id) }

// FilesOf returns the files to mount into the containers of the sandbox id. A sandbox of
// cri-dockerd has none: its containers get those that the Engine creates.
func (f Files) FilesOf(id string) []todocker.File {
	_, err := os.Stat(filepath.Join(f.dir(id), readOnlyMark))
	readOnly := err == nil
	var files []todocker.File
	for _, file := range podFiles {
		path := filepath.Join(f.dir(id), file.Source)
		if _, err := os.Stat(path); err == nil {
			files = append(files, todocker.File{Source: path, Target: file.Target, ReadOnly: readOnly})
		}
	}
	return files
}
