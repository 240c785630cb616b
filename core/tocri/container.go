// Package tocri translates what the Engine API returns to the CRI: inspected containers to
// the rows of lists and to statuses, and images. It is pure: values in, values out, no I/O.
//
// A container of berth has its CRI config in a label, which is returned as it was sent. The
// config of a container of cri-dockerd is restored from what Docker knows. The counterpart
// for requests is package todocker.
package tocri

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/labels"
	"berth/core/names"
)

// Reasons of exited containers. containerd uses the same words.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"
	reasonStartError = "StartError"
)

const (
	exitKilled     = 137 // 128 + SIGKILL
	exitStartError = 128 // for a failed start to which Docker gives no exit code
)

// unsetTimestamp is Docker's timestamp for something that has not happened.
const unsetTimestamp = "0001-01-01T00:00:00Z"

// A FailedStart is the record of a failed start. The zero value is no record.
type FailedStart struct {
	At time.Time
	// Message is the reason of a start that failed after Docker had started the
	// container, so that Docker has none.
	Message string
}

// UnmarshalJSON reads a record. berth 1.0 recorded only the time.
func (f *FailedStart) UnmarshalJSON(text []byte) error {
	if len(text) > 0 && text[0] == '"' {
		return json.Unmarshal(text, &f.At)
	}
	type fields FailedStart // without this method
	return json.Unmarshal(text, (*fields)(f))
}

// Container translates an inspected container with its metadata to a row of a list and to a status. failed is
// the record of its failed start, if there is one. The kubelet's back-off counts from
// finished_at, so without a record it is the time of creation.
func Container(c container.InspectResponse, set labels.Set, failed FailedStart) (*runtimeapi.Container, *runtimeapi.ContainerStatus, error) {
	if err := checkComplete(c); err != nil {
		return nil, nil, fmt.Errorf("container %s: %w", id(c), err)
	}
	config, err := containerConfig(c, set)
	if err != nil {
		return nil, nil, err
	}
	user, err := containerUser(c.ID, set)
	if err != nil {
		return nil, nil, err
	}
	phase, err := containerPhase(c, failed)
	if err != nil {
		return nil, nil, err
	}
	name := cmp.Or(set.Image, c.Config.Image)
	status := &runtimeapi.ContainerStatus{
		Id:         c.ID,
		Metadata:   config.GetMetadata(),
		State:      phase.state,
		CreatedAt:  phase.created,
		StartedAt:  phase.started,
		FinishedAt: phase.finished,
		ExitCode:   phase.exitCode,
		Image: &runtimeapi.ImageSpec{
			Image: name, UserSpecifiedImage: set.Image,
			Annotations: config.GetImage().GetAnnotations(), RuntimeHandler: config.GetImage().GetRuntimeHandler(),
		},
		ImageRef:    cmp.Or(set.ImageRef, c.Image),
		ImageId:     c.Image,
		Reason:      phase.reason,
		Message:     phase.message,
		Labels:      set.Labels,
		Annotations: set.Annotations,
		Mounts:      config.GetMounts(),
		LogPath:     set.LogPath,
		StopSignal:  stopSignal(c.Config.StopSignal),
		User:        user,
	}
	if r := config.GetLinux().GetResources(); r != nil {
		status.Resources = &runtimeapi.ContainerResources{Linux: r}
	}
	return containerRow(status, set.SandboxID), status, nil
}

// containerRow returns the row of a list for a container with the status.
func containerRow(s *runtimeapi.ContainerStatus, sandboxID string) *runtimeapi.Container {
	return &runtimeapi.Container{
		Id:           s.GetId(),
		PodSandboxId: sandboxID,
		Metadata:     s.GetMetadata(),
		Image:        s.GetImage(),
		ImageRef:     s.GetImageRef(),
		ImageId:      s.GetImageId(),
		State:        s.GetState(),
		CreatedAt:    s.GetCreatedAt(),
		Labels:       s.GetLabels(),
		Annotations:  s.GetAnnotations(),
	}
}

// checkComplete refuses an inspect result without the parts that are always translated.
func checkComplete(c container.InspectResponse) error {
	if c.ContainerJSONBase == nil || c.State == nil || c.Config == nil || c.HostConfig == nil {
		return errors.New("inspect result of Docker is incomplete")
	}
	return nil
}

// id returns the ID of c, also if the inspect result is incomplete.
func id(c container.InspectResponse) string {
	if c.ContainerJSONBase == nil {
		return "?"
	}
	return c.ID
}

// containerConfig returns the config of a container: from its label or, if cri-dockerd has
// created it, restored from what Docker knows.
func containerConfig(c container.InspectResponse, set labels.Set) (*runtimeapi.ContainerConfig, error) {
	config := &runtimeapi.ContainerConfig{}
	if set.CreatedByBerth() {
		err := unmarshalLabel(c.ID, set.Config, config)
		for _, m := range config.GetMounts() {
			m.HostPath = strings.ReplaceAll(m.GetHostPath(), labels.OwnID, c.ID)
		}
		return config, err
	}
	name, err := names.Parse(c.Name)
	if err != nil {
		return nil, err
	}
	config.Metadata = &runtimeapi.ContainerMetadata{Name: name.Container, Attempt: name.Attempt}
	for _, m := range c.Mounts {
		if m.Type == mount.TypeBind {
			config.Mounts = append(config.Mounts, &runtimeapi.Mount{
				ContainerPath: m.Destination, HostPath: m.Source, Readonly: !m.RW, Propagation: propagation(m.Propagation),
			})
		}
	}
	config.Linux = &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{
		CpuPeriod: c.HostConfig.CPUPeriod, CpuQuota: c.HostConfig.CPUQuota, CpuShares: c.HostConfig.CPUShares,
		CpusetCpus: c.HostConfig.CpusetCpus, CpusetMems: c.HostConfig.CpusetMems,
		MemoryLimitInBytes: c.HostConfig.Memory, OomScoreAdj: int64(c.HostConfig.OomScoreAdj),
	}}
	return config, nil
}

// containerUser returns the user in the label of a container, nil if it has no such label.
func containerUser(id string, set labels.Set) (*runtimeapi.ContainerUser, error) {
	if set.User == "" {
		return nil, nil
	}
	user := &runtimeapi.LinuxContainerUser{}
	if err := unmarshalLabel(id, set.User, user); err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerUser{Linux: user}, nil
}

// unmarshalLabel reads a message from the label of a container. It ignores unknown fields,
// which a newer berth may have written.
func unmarshalLabel(id, text string, into proto.Message) error {
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(text), into); err != nil {
		return fmt.Errorf("config label of container %s: %w", id, err)
	}
	return nil
}

// A phase is where a container is in its life cycle.
type phase struct {
	timestamps
	state           runtimeapi.ContainerState
	exitCode        int32
	reason, message string
}

func containerPhase(c container.InspectResponse, failed FailedStart) (phase, error) {
	at, err := parseTimestamps(c)
	if err != nil {
		return phase{}, fmt.Errorf("timestamps of container %s: %w", c.ID, err)
	}
	p := phase{timestamps: at, message: c.State.Error}
	p.state, p.reason = containerState(c.State)
	if p.state != runtimeapi.ContainerState_CONTAINER_EXITED {
		return p, nil
	}
	p.exitCode = int32(c.State.ExitCode)
	switch {
	case p.reason == reasonStartError:
		p.started = 0
		if p.finished = p.created; !failed.At.IsZero() {
			p.finished = failed.At.UnixNano()
		}
		p.exitCode = cmp.Or(p.exitCode, exitStartError)
	case failed.Message != "":
		p.reason, p.message, p.exitCode = reasonStartError, failed.Message, exitStartError
	}
	return p, nil
}

// containerState returns the state of a container and, if it has exited, the reason.
func containerState(s *container.State) (runtimeapi.ContainerState, string) {
	switch {
	case s.Running || s.Paused || s.Restarting:
		return runtimeapi.ContainerState_CONTAINER_RUNNING, ""
	case isUnset(s.FinishedAt) && isUnset(s.StartedAt) && !s.Dead && (s.ExitCode == 0 && s.Error == "" || engine.ContainerdLost(s.Error)):
		// A container whose start did not reach containerd can be started again.
		return runtimeapi.ContainerState_CONTAINER_CREATED, ""
	case isUnset(s.StartedAt):
		return runtimeapi.ContainerState_CONTAINER_EXITED, reasonStartError
	case s.OOMKilled && s.ExitCode == exitKilled:
		return runtimeapi.ContainerState_CONTAINER_EXITED, reasonOOMKilled
	case s.ExitCode == 0:
		return runtimeapi.ContainerState_CONTAINER_EXITED, reasonCompleted
	default:
		return runtimeapi.ContainerState_CONTAINER_EXITED, reasonError
	}
}

// isUnset reports whether a timestamp of Docker is for something that has not happened.
func isUnset(timestamp string) bool {
	return timestamp == "" || timestamp == unsetTimestamp
}

// Times returns when a Docker container was created, last started and last finished, in
// Unix nanoseconds; 0 for what has not happened.
func Times(c container.InspectResponse) (created, started, finished int64, err error) {
	at, err := parseTimestamps(c)
	return at.created, at.started, at.finished, err
}

type timestamps struct{ created, started, finished int64 } // Unix nanoseconds, 0 for unset

func parseTimestamps(c container.InspectResponse) (timestamps, error) {
	var out timestamps
	for _, f := range []struct {
		field *int64
		text  string
	}{
		{&out.created, c.Created},
		{&out.started, c.State.StartedAt},
		{&out.finished, c.State.FinishedAt},
	} {
		if isUnset(f.text) {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, f.text)
		if err != nil {
			return timestamps{}, err
		}
		*f.field = at.UnixNano()
	}
	if c.State.Running {
		out.finished = 0 // of the previous run, if the container was restarted
	}
	return out, nil
}

func propagation(p mount.Propagation) runtimeapi.MountPropagation {
	switch p {
	case mount.PropagationRShared, mount.PropagationShared:
		return runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	case mount.PropagationRSlave, mount.PropagationSlave:
		return runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	default:
		return runtimeapi.MountPropagation_PROPAGATION_PRIVATE
	}
}
