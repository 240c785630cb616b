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

// Write keeps c as that of the sandbox id. Like the journal it is not synced to the disk.
func (d Dir) Write(id string, c Checkpoint) error {
	text, err := Encode(c)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	if err := os.MkdirAll(string(d), 0o755); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	temp := filepath.Join(string(d), "."+id) // cri-dockerd overlooks what begins with a dot
	err = os.WriteFile(temp, text, 0o600)
	if err == nil {
		err = os.Rename(temp, filepath.Join(string(d), id))
	}
	if err != nil {
		_ = os.Remove(temp) // where the disk is full it is in the way
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

// Remove removes the checkpoint of the sandbox id, also one that was being
// written when a daemon died; it need not be there.
func (d Dir) Remove(id string) error {
	for _, name := range []string{"." + id, id} {
		path := filepath.Join(string(d), name)
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			continue // a read-only file system refuses to remove even what does not exist
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("checkpoint: %w", err)
		}
	}
	return nil
}

var anID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// IDs returns the sandboxes that there are checkpoints of, also those that were
// being written when a daemon died. Files that are called otherwise are nobody's,
// or cri-dockerd's while it writes.
func (d Dir) IDs() (ids []string, err error) {
	entries, err := os.ReadDir(string(d))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("checkpoints: %w", err)
	}
	for _, e := range entries {
		if id := strings.TrimPrefix(e.Name(), "."); anID.MatchString(id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
