// Package checkpoint reads and writes the checkpoint files of dockershim and cri-dockerd, one
// for each sandbox: the name of the pod, its host ports, and whether it uses the network of
// the node.
//
// berth has the same data in labels. It reads checkpoints of pods that cri-dockerd has
// created, to release their host ports, and writes checkpoints so that a node can be
// switched back to cri-dockerd with its pods.
package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/atomicfile"
)

// A Checkpoint is the content of the file of one sandbox.
type Checkpoint struct {
	Name, Namespace string // of the pod
	Ports           []Port
	HostNetwork     bool
}

// A Port maps a port of the node to the ContainerPort of the pod.
type Port struct {
	Protocol      string // tcp, udp or sctp
	ContainerPort int32
	HostPort      int32
	HostIP        string
}

// Of returns the checkpoint that cri-dockerd would write for a pod, which has the network of the node or one of its own.
func Of(pod *runtimeapi.PodSandboxConfig, hostNetwork bool) Checkpoint {
	c := Checkpoint{
		Name: pod.GetMetadata().GetName(), Namespace: pod.GetMetadata().GetNamespace(), HostNetwork: hostNetwork,
	}
	for _, p := range pod.GetPortMappings() {
		c.Ports = append(c.Ports, Port{
			Protocol: strings.ToLower(p.GetProtocol().String()), ContainerPort: p.GetContainerPort(), HostPort: p.GetHostPort(), HostIP: p.GetHostIp(),
		})
	}
	return c
}

// file is the format on disk.
type file struct {
	Version   string `json:"version"`
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Data      data   `json:"data"`
	Checksum  uint32 `json:"checksum"`
}

type data struct {
	PortMappings []portMapping `json:"port_mappings,omitempty"`
	HostNetwork  bool          `json:"host_network,omitempty"`
}

type portMapping struct {
	Protocol      string `json:"protocol"`
	ContainerPort int32  `json:"container_port"`
	HostPort      int32  `json:"host_port"`
	HostIP        string `json:"host_ip,omitempty"`
}

const version = "v1"

// Encode returns c in the format of cri-dockerd, with its checksum: cri-dockerd discards a
// checkpoint with another one.
func Encode(c Checkpoint) ([]byte, error) {
	f := file{Version: version, Name: c.Name, Namespace: c.Namespace, Data: data{HostNetwork: c.HostNetwork}, Checksum: checksum(c)}
	for _, p := range c.Ports {
		f.Data.PortMappings = append(f.Data.PortMappings, portMapping(p))
	}
	return json.Marshal(f)
}

// Decode decodes a file of cri-dockerd or dockershim. The checksum is ignored: that of
// dockershim is computed from other type names, and a torn file is no JSON.
func Decode(text []byte) (Checkpoint, error) {
	var f file
	if err := json.Unmarshal(text, &f); err != nil {
		return Checkpoint{}, err
	}
	if f.Version != version || f.Name == "" {
		return Checkpoint{}, fmt.Errorf("version %q of the checkpoint of pod %q: must be v1, with the name of a pod", f.Version, f.Name)
	}
	c := Checkpoint{Name: f.Name, Namespace: f.Namespace, HostNetwork: f.Data.HostNetwork}
	for _, p := range f.Data.PortMappings {
		c.Ports = append(c.Ports, Port(p))
	}
	return c, nil
}

// checksum returns the checksum that cri-dockerd computes: the 32-bit FNV-1a hash of the data
// as go-spew prints it, with the names of cri-dockerd's types.
func checksum(c Checkpoint) uint32 {
	ports := "<nil>"
	if len(c.Ports) > 0 {
		var each []string
		for _, p := range c.Ports {
			each = append(each, fmt.Sprintf("<*>{Protocol:(*config.Protocol)%s ContainerPort:(*int32)%d HostPort:(*int32)%d HostIP:(string)%s}",
				p.Protocol, p.ContainerPort, p.HostPort, p.HostIP))
		}
		ports = "[" + strings.Join(each, " ") + "]"
	}
	sum := fnv.New32a()
	fmt.Fprintf(sum, "(core.CheckpointData){PortMappings:([]*config.PortMapping)%s HostNetwork:(bool)%t}", ports, c.HostNetwork)
	return sum.Sum32()
}

// A Dir is a directory of checkpoints, one for each sandbox, with its ID as the file name.
type Dir string

// Write stores c as the checkpoint of the sandbox id. It is not synced to the disk, like the
// records of package state.
func (d Dir) Write(id string, c Checkpoint) error {
	text, err := Encode(c)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	if err := os.MkdirAll(string(d), 0o755); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	// cri-dockerd ignores files whose names begin with a dot, as those of temporary files do.
	if err := atomicfile.Write(filepath.Join(string(d), id), text); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// Read returns the checkpoint of the sandbox id, and false if there is none or it cannot be decoded. One that cannot be read
// now is an error.
func (d Dir) Read(id string) (c Checkpoint, found bool, err error) {
	text, err := os.ReadFile(filepath.Join(string(d), id))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Checkpoint{}, false, nil
	case err != nil:
		return Checkpoint{}, false, fmt.Errorf("checkpoint: %w", err)
	}
	if c, err = Decode(text); err != nil {
		return Checkpoint{}, false, nil //nolint:nilerr // torn
	}
	return c, true, nil
}

// Remove removes the checkpoint of the sandbox id, and temporary files of an interrupted
// Write. A checkpoint that does not exist is no error.
func (d Dir) Remove(id string) error {
	path := filepath.Join(string(d), id)
	temps, err := filepath.Glob(filepath.Join(string(d), atomicfile.TempPattern(id)))
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	oldTemp := filepath.Join(string(d), "."+id) // of berth before 1.1
	for _, path := range append(temps, oldTemp, path) {
		if err := atomicfile.Remove(path); err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
	}
	return nil
}

// fileName matches the checkpoint of a sandbox and the temporary files of Write, this
// release's and earlier ones'.
var fileName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(?:([0-9a-f]{64})|\.([0-9a-f]{64})(?:\.[0-9]+)?)$`) })

// IDs returns the IDs of all sandboxes with a checkpoint or a temporary file of an
// interrupted Write. Other files are ignored, for example the temporary files of
// cri-dockerd. An ID can occur more than once.
func (d Dir) IDs() (ids []string, err error) {
	entries, err := os.ReadDir(string(d))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("checkpoints: %w", err)
	}
	for _, e := range entries {
		if m := fileName().FindStringSubmatch(e.Name()); m != nil {
			ids = append(ids, m[1]+m[2]) // one of them is empty
		}
	}
	return ids, nil
}
