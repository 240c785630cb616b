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

// The files of a pod, by their names in its directory, and where containers
// find them. A sandbox in the fast form gets none from the Engine.
var podFiles = []todocker.File{
	{Source: "hosts", Target: "/etc/hosts"},
	{Source: "hostname", Target: "/etc/hostname"},
	{Source: "resolv.conf", Target: "/etc/resolv.conf"},
}

// readOnlyMark is a file beside the files of a pod that containers may only read, for
// nothing bounds how large they could make them. Pods of earlier versions do not have it, and
// go on with files that can be written.
const readOnlyMark = "read-only"

// filesSlack is how much containers can write to the files of a pod, in all.
const filesSlack = 128 << 10

// writeFiles writes the files of the pod in sandbox id, whose pause container was
// inspected as seen.
//
// All containers of a pod can write to them, and the run directory is on the /run of the node,
// which systemd, Docker and all else need room in. So they are on a small file system of their own.
// Where that cannot be mounted, or Docker would not see it, containers can only read them.
// The files below the mount are for a dockerd that has mounts of its own and a containerd that
// does not: the former looks whether they are there, the latter's runtime mounts them.
func (s *Service) writeFiles(id string, pod *runtimeapi.PodSandboxConfig, addrs []netip.Addr, seen container.InspectResponse) error {
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
	if err := s.bound(dir, content, seen); err != nil {
		s.unbounded.Do(func() {
			s.log.Warn("no file system for the files of a pod: its containers can read /etc/hosts, /etc/hostname and /etc/resolv.conf, but not write to them; said once",
				slog.String("sandbox", id), slog.Any("err", err))
		})
		return nil
	}
	if err := writeAll(dir, content); err != nil {
		return fmt.Errorf("files of sandbox %s: %w", id, err)
	}
	return nil
}

// bound mounts a file system on dir that has room for content, and little more. Anyone who starts the
// containers of the pod, the parent of the pause process seen, must see the mount.
func (s *Service) bound(dir string, content map[string][]byte, seen container.InspectResponse) error {
	switch {
	case s.tmpfs == nil:
		return errors.ErrUnsupported
	case premount.InOtherMountNS(premount.ParentPID(seen.State.Pid)):
		return errors.New("the mount namespace of Docker is not the one of berthd (PrivateMounts=, MountFlags= and the like in its unit), or cannot be read")
	}
	page := int64(os.Getpagesize())
	size := int64(filesSlack)
	for _, text := range content {
		size += (int64(len(text))/page + 1) * page
	}
	return s.tmpfs.Mount(dir, size, seen.MountLabel)
}

// podContent returns the content of the files of a pod, by their names.
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

// writeAll writes files to dir. Containers of any user must be able to read them.
func writeAll(dir string, content map[string][]byte) error {
	for name, text := range content {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// removeFiles removes the files of the pod in sandbox id, and what they are on.
func (s *Service) removeFiles(id string) error {
	if s.tmpfs == nil {
		return os.RemoveAll(s.podDir(id))
	}
	return s.tmpfs.Remove(s.podDir(id))
}

// Files are the files of pods, below the run directory that it names.
type Files string

func (f Files) dir(id string) string { return filepath.Join(string(f), "pods", id) }

// Of returns the files that containers of the sandbox id are to find. A sandbox
// that cri-dockerd has made has none: there the Engine's are found.
func (f Files) Of(id string) []todocker.File {
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
