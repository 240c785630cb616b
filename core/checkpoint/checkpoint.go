// Package checkpoint reads and writes the files that dockershim and cri-dockerd keep of each
// sandbox: its name, its host ports, and whether it is on the node's network.
//
// We know all that from labels and need no file of our own. Theirs are read
// where nothing else tells of a pod's ports, and are written so that
// cri-dockerd, should it come back, finds our pods as it would find its own.
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

	"berth/core/atomicfile"
)

// A Checkpoint is what the file of one sandbox says.
type Checkpoint struct {
	Name, Namespace string // of the pod
	Ports           []Port
	HostNetwork     bool
}

// A Port is one that the pod's ContainerPort is to be reached at.
type Port struct {
	Protocol      string // tcp, udp or sctp
	ContainerPort int32
	HostPort      int32
	HostIP        string
}

// file is the form on disk, field by field.
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

// Encode returns c as cri-dockerd writes it. It throws away files with another
// checksum, and with them what it knows of the pod.
func Encode(c Checkpoint) ([]byte, error) {
	f := file{Version: version, Name: c.Name, Namespace: c.Namespace, Data: data{HostNetwork: c.HostNetwork}, Checksum: checksum(c)}
	for _, p := range c.Ports {
		f.Data.PortMappings = append(f.Data.PortMappings, portMapping(p))
	}
	return json.Marshal(f)
}

// Decode reads a file of cri-dockerd or dockershim. The checksum is not looked at:
// dockershim's is of other words, and what is torn is no JSON.
func Decode(text []byte) (Checkpoint, error) {
	var f file
	if err := json.Unmarshal(text, &f); err != nil {
		return Checkpoint{}, err
	}
	if f.Version != version || f.Name == "" {
		return Checkpoint{}, fmt.Errorf("version %q of pod %q is none that is known", f.Version, f.Name)
	}
	c := Checkpoint{Name: f.Name, Namespace: f.Namespace, HostNetwork: f.Data.HostNetwork}
	for _, p := range f.Data.PortMappings {
		c.Ports = append(c.Ports, Port(p))
	}
	return c, nil
}

// checksum is the 32-bit FNV-1a of the data as Go prints it for debugging, with the
// names of cri-dockerd's types.
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

// A Dir is a directory of checkpoints, one for each sandbox, by its ID.
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

// Read returns the checkpoint of the sandbox id, and whether there is one that
// can be read.
func (d Dir) Read(id string) (Checkpoint, bool) {
	text, err := os.ReadFile(filepath.Join(string(d), id))
	if err != nil {
		return Checkpoint{}, false
	}
	c, err := Decode(text)
	return c, err == nil
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
var fileName = regexp.MustCompile(`^(?:([0-9a-f]{64})|\.([0-9a-f]{64})(?:\.[0-9]+)?)$`)

// IDs returns the IDs of all sandboxes with a checkpoint or a temporary file of an
// interrupted Write. Other files are ignored, for example the temporary files of
// cri-dockerd. An ID can occur more than once.
func (d Dir) IDs() (ids []string, err error) {
	entries, err := os.ReadDir(string(d))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("checkpoints: %w", err)
	}
	for _, e := range entries {
		if m := fileName.FindStringSubmatch(e.Name()); m != nil {
			ids = append(ids, m[1]+m[2]) // one of them is empty
		}
	}
	return ids, nil
}
