// Package todocker translates requests of the CRI to what the Engine API takes: a pod
// sandbox or a container becomes a Spec, which is what ContainerCreate needs. It is pure:
// values in, values out, no I/O.
//
// Sandbox and Container also validate: what Docker cannot do is an error and never left
// out. Errors are of kind InvalidArgument where the request is the reason, and of kind
// FailedPrecondition where the Engine, its configuration or the node is.
//
// The resources of containers are translated by package limits, their users and groups
// by package identity. The counterpart for what Docker returns is package tocri.
package todocker

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"google.golang.org/protobuf/proto"

	"berth/core/names"
	"berth/core/ociedit"
	"berth/core/premount"
)

// A Spec holds the arguments of ContainerCreate.
type Spec struct {
	Name      names.Name
	Config    *container.Config
	Host      *container.HostConfig
	Premounts []premount.Mount // must be mounted before the container is created
	// Instructions are what berth's OCI runtime has to change, often nothing. They must be written after the
	// container is created and before it is started (core/ociruntime).
	Instructions ociedit.Instructions
	// Strict fails the creation if the Engine would leave out a setting, with a warning.
	Strict bool
}

// An Image is an image that a container runs or mounts.
type Image struct {
	ID         string
	Ref        string // repository@digest, of the repository in the request if it has one; else the ID
	HasCommand bool   // whether it has an entrypoint or a command
	// HasEntrypoint reports whether arguments of a container do not replace Program.
	HasEntrypoint bool
	Program       string   // the first word of its entrypoint or, if that is empty, of its command
	User          string   // Config.User: the default user, perhaps with a group
	Names         []string // tags and digests
	Size          int64    // bytes
	IsCheckpoint  bool     // it has the mark of a checkpoint (restore.HasMark)
	// Layers are the directories that hold its files, topmost first; empty if the
	// Engine does not report them.
	Layers []string
}

const hostMode = "host"

// shmSize is the size of /dev/shm in bytes. containerd and CRI-O use the same value, and
// daemon.json must not change it.
const shmSize = 64 << 20

// noHealthcheck disables the health check of the image: the kubelet probes containers.
func noHealthcheck() *container.HealthConfig {
	return &container.HealthConfig{Test: []string{"NONE"}}
}

// checkNoWindows refuses a message with fields for Windows.
func checkNoWindows(m proto.Message) error {
	if proto.Size(m) > 0 {
		return invalid("fields for Windows (%s): this node runs Linux", m.ProtoReflect().Descriptor().Name())
	}
	return nil
}

// checkOneLine refuses text that would add lines to the file that it is written to.
func checkOneLine(field, text string) error {
	if strings.ContainsAny(text, "\n\r\x00") {
		return invalid("%s %q: must not contain line breaks or NUL", field, text)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

func failed(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrFailedPrecondition)...)
}
