// Package tocri says in the kubelet's words what the Docker Engine has told
// us. It is pure: values in, values out, no I/O.
//
// Its counterpart is package todocker.
package tocri

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/labels"
	"berth/core/names"
)

// Reasons of containers at rest, the words that other runtimes use too.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"
	reasonStartError = "StartError"
)

// Exit codes that are not the process's own.
const (
	exitKilled     = 137 // 128 + SIGKILL
	exitCannotRun  = 128 // where a start failed and the Engine gives no code
	neverTimestamp = "0001-01-01T00:00:00Z"
)

// A FailedStart is what is recorded of a container whose start failed. The zero
// FailedStart stands for nothing known.
type FailedStart struct {
	At time.Time
	// Message says why, where Docker had started the container before it failed and
	// so does not say it.
	Message string
}

// UnmarshalJSON reads what is recorded. berth 1.0 recorded the time alone.
func (f *FailedStart) UnmarshalJSON(text []byte) error {
	if len(text) > 0 && text[0] == '"' {
		return json.Unmarshal(text, &f.At)
	}
	type fields FailedStart // without this method
	return json.Unmarshal(text, (*fields)(f))
}

// Container translates an inspected container into a row of a list and into a
// status. failed is what is recorded if its start failed; the kubelet's back-off
// counts from that time, so the time of creation stands in where it is not known.
func Container(c container.InspectResponse, failed FailedStart) (*runtimeapi.Container, *runtimeapi.ContainerStatus, error) {
	if c.ContainerJSONBase == nil || c.State == nil || c.Config == nil || c.HostConfig == nil {
		return nil, nil, fmt.Errorf("container %s: the Engine's answer is not whole", id(c))
	}
	said, err := labels.Read(c)
	if err != nil {
		return nil, nil, fmt.Errorf("container %s: %w", c.ID, err)
	}
	config, err := containerConfig(c, said)
	if err != nil {
		return nil, nil, err
	}
	at, err := parseTimes(c)
	if err != nil {
		return nil, nil, fmt.Errorf("times of container %s: %w", c.ID, err)
	}
	state, reason := containerState(c.State)
	exit := int32(0)
	if state == runtimeapi.ContainerState_CONTAINER_EXITED {
		exit = int32(c.State.ExitCode)
	}
	if reason == reasonStartError {
		at.started = 0
		if at.finished = at.created; !failed.At.IsZero() {
			at.finished = failed.At.UnixNano()
		}
		if exit == 0 {
			exit = exitCannotRun
		}
	}
	message := c.State.Error
	if failed.Message != "" && state == runtimeapi.ContainerState_CONTAINER_EXITED && reason != reasonStartError {
		reason, message, exit = reasonStartError, failed.Message, exitCannotRun
	}
	image := &runtimeapi.ImageSpec{
		Image: said.Image, UserSpecifiedImage: said.Image,
		Annotations: config.GetImage().GetAnnotations(), RuntimeHandler: config.GetImage().GetRuntimeHandler(),
	}
	if image.Image == "" {
		image.Image = c.Config.Image
	}
	ref := said.ImageRef
	if ref == "" {
		ref = c.Image
	}
	status := &runtimeapi.ContainerStatus{
		Id:          c.ID,
		Metadata:    config.GetMetadata(),
		State:       state,
		CreatedAt:   at.created,
		StartedAt:   at.started,
		FinishedAt:  at.finished,
		ExitCode:    exit,
		Image:       image,
		ImageRef:    ref,
		ImageId:     c.Image,
		Reason:      reason,
		Message:     message,
		Labels:      said.Labels,
		Annotations: said.Annotations,
		Mounts:      config.GetMounts(),
		LogPath:     said.LogPath,
		StopSignal:  stopSignal(c.Config.StopSignal),
	}
	if said.User != "" {
		user := &runtimeapi.LinuxContainerUser{}
		if err := fromJSON(c.ID, said.User, user); err != nil {
			return nil, nil, err
		}
		status.User = &runtimeapi.ContainerUser{Linux: user}
	}
	if r := config.GetLinux().GetResources(); r != nil {
		status.Resources = &runtimeapi.ContainerResources{Linux: r}
	}
	row := &runtimeapi.Container{
		Id:           c.ID,
		PodSandboxId: said.SandboxID,
		Metadata:     status.Metadata,
		Image:        image,
		ImageRef:     ref,
		ImageId:      c.Image,
		State:        state,
		CreatedAt:    at.created,
		Labels:       said.Labels,
		Annotations:  said.Annotations,
	}
	return row, status, nil
}

// id is that of c, also where the Engine's answer is not whole.
func id(c container.InspectResponse) string {
	if c.ContainerJSONBase == nil {
		return "?"
	}
	return c.ID
}

// containerConfig reads back what the kubelet asked for. Of a container that
// cri-dockerd has made it is put together from what Docker knows.
func containerConfig(c container.InspectResponse, said labels.Set) (*runtimeapi.ContainerConfig, error) {
	config := &runtimeapi.ContainerConfig{}
	if said.Ours() {
		return config, fromJSON(c.ID, said.Config, config)
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

// fromJSON reads a config label. A newer berth may have written fields that
// this one does not know.
func fromJSON(id, text string, into proto.Message) error {
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(text), into); err != nil {
		return fmt.Errorf("config label of container %s: %w", id, err)
	}
	return nil
}

// containerState names the state of a container and, once it is at rest, why.
func containerState(s *container.State) (runtimeapi.ContainerState, string) {
	switch {
	case s.Running || s.Paused || s.Restarting:
		return runtimeapi.ContainerState_CONTAINER_RUNNING, ""
	case never(s.FinishedAt) && never(s.StartedAt) && !s.Dead && (s.ExitCode == 0 && s.Error == "" || engine.ContainerdLost(s.Error)):
		// Where a start never reached containerd the container can be started again.
		return runtimeapi.ContainerState_CONTAINER_CREATED, ""
	case never(s.StartedAt):
		return runtimeapi.ContainerState_CONTAINER_EXITED, reasonStartError
	case s.OOMKilled && s.ExitCode == exitKilled:
		return runtimeapi.ContainerState_CONTAINER_EXITED, reasonOOMKilled
	case s.ExitCode == 0:
		return runtimeapi.ContainerState_CONTAINER_EXITED, reasonCompleted
	default:
		return runtimeapi.ContainerState_CONTAINER_EXITED, reasonError
	}
}

// never reports whether an Engine timestamp stands for "not yet".
func never(stamp string) bool {
	return stamp == "" || stamp == neverTimestamp
}

// Times returns when the process of a Docker container was created, started
// and ended the last time, in Unix nanoseconds, 0 for not.
func Times(c container.InspectResponse) (created, started, finished int64, err error) {
	t, err := parseTimes(c)
	return t.created, t.started, t.finished, err
}

type times struct{ created, started, finished int64 } // Unix nanoseconds, 0 for never

func parseTimes(c container.InspectResponse) (times, error) {
	var t times
	for _, f := range []struct {
		to    *int64
		stamp string
	}{
		{&t.created, c.Created},
		{&t.started, c.State.StartedAt},
		{&t.finished, c.State.FinishedAt},
	} {
		if never(f.stamp) {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, f.stamp)
		if err != nil {
			return times{}, err
		}
		*f.to = at.UnixNano()
	}
	if c.State.Running {
		t.finished = 0 // that of an earlier run, if Docker restarted it
	}
	return t, nil
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

// stopSignal returns the CRI's signal for the Engine's; without one, Docker sends
// SIGTERM. A signal that the CRI does not have is SIGNAL_RUNTIME_DEFAULT.
func stopSignal(name string) runtimeapi.Signal {
	if name == "" {
		return runtimeapi.Signal_SIGNAL_SIGTERM
	}
	if number, err := strconv.Atoi(name); err == nil {
		name = signalName(number)
	}
	name = strings.TrimPrefix(strings.ToUpper(name), "SIG")
	name = strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(name)
	return runtimeapi.Signal(runtimeapi.Signal_value["SIGNAL_SIG"+name])
}

// Numbers of real-time signals as the C libraries count them, which keep the first two for
// themselves, and as Docker does (moby/sys/signal).
const (
	rtMin = 34
	rtMax = 64
)

// signalName returns the name of the signal with that number on this node, "" if there is
// none. Of the real-time signals the lower half counts from SIGRTMIN, the upper
// from SIGRTMAX.
func signalName(number int) string {
	switch {
	case number == rtMin:
		return "SIGRTMIN"
	case number == rtMax:
		return "SIGRTMAX"
	case number > rtMin && number <= rtMin+15:
		return fmt.Sprintf("SIGRTMIN+%d", number-rtMin)
	case number > rtMin && number < rtMax:
		return fmt.Sprintf("SIGRTMAX-%d", rtMax-number)
	default:
		return unix.SignalName(unix.Signal(number))
	}
}
