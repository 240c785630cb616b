package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/todocker"
)

// The files of a pod, by their names in its directory, and where containers
// find them. A sandbox in the fast form gets none from the Engine.
var podFiles = []todocker.File{
	{Source: "hosts", Target: "/etc/hosts"},
	{Source: "hostname", Target: "/etc/hostname"},
	{Source: "resolv.conf", Target: "/etc/resolv.conf"},
}

// writeFiles writes the files of the pod in sandbox id.
func (s *Service) writeFiles(id string, pod *runtimeapi.PodSandboxConfig, addrs []netip.Addr) error {
	node, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	resolv, err := todocker.ResolvConf(pod.GetDnsConfig(), node)
	if err != nil {
		return err
	}
	name := todocker.Hostname(pod, id)
	content := map[string][]byte{
		"hosts":       todocker.Hosts(name, addrs),
		"hostname":    []byte(name + "\n"),
		"resolv.conf": resolv,
	}
	if todocker.HostNetwork(pod) {
		if content["hosts"], err = os.ReadFile("/etc/hosts"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		name, err := os.Hostname()
		if err != nil {
			return err
		}
		content["hostname"] = []byte(name + "\n")
	}
	dir := s.podDir(id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, text := range content {
		// Containers of any user must be able to read them.
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return fmt.Errorf("files of sandbox %s: %w", id, err)
		}
	}
	return nil
}

// Files are the files of pods, below the run directory that it names.
type Files string

func (f Files) dir(id string) string { return filepath.Join(string(f), "pods", id) }

// Of returns the files that containers of the sandbox id are to find. A sandbox
// that cri-dockerd has made has none: there the Engine's are found.
func (f Files) Of(id string) []todocker.File {
	var files []todocker.File
	for _, file := range podFiles {
		path := filepath.Join(f.dir(id), file.Source)
		if _, err := os.Stat(path); err == nil {
			files = append(files, todocker.File{Source: path, Target: file.Target})
		}
	}
	return files
}
