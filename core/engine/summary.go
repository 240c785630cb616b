package engine

import (
	"time"

	"github.com/docker/docker/api/types/container"
)

// BaseState maps a container state of the Engine API to created, running or exited: a
// paused or restarting container runs, a dead one or one being removed has exited.
func BaseState(state string) string {
	switch state {
	case container.StatePaused, container.StateRestarting:
		return container.StateRunning
	case container.StateDead, container.StateRemoving:
		return container.StateExited
	default:
		return state
	}
}

// exitCodeUnknown is reported for a container whose exit code is not known. It must not
// look like a success.
const exitCodeUnknown = 255

// InspectFromSummary makes an inspect result from a list entry, as far as one goes.
// runningSince is when the container was started, if it was known to be running before;
// else its creation time stands for the times that a list entry does not have.
func InspectFromSummary(row container.Summary, runningSince time.Time) container.InspectResponse {
	name := ""
	if len(row.Names) > 0 {
		name = row.Names[0]
	}
	format := func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }
	created := format(time.Unix(row.Created, 0))
	started, finished := created, created
	if !runningSince.IsZero() {
		started, finished = format(runningSince), format(time.Now())
	}
	state := &container.State{
		Status: row.State,
		Paused: row.State == container.StatePaused, Restarting: row.State == container.StateRestarting, Dead: row.State == container.StateDead,
	}
	switch BaseState(row.State) {
	case container.StateRunning:
		state.Running, state.StartedAt = true, started
	case container.StateExited:
		state.StartedAt, state.FinishedAt = started, finished
		var ok bool
		if state.ExitCode, ok = parseExitStatus(row.Status); !ok {
			state.ExitCode = exitCodeUnknown
		}
	}
	result := container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{
			ID: row.ID, Name: name, Created: created, Image: row.ImageID, State: state,
			HostConfig: &container.HostConfig{NetworkMode: container.NetworkMode(row.HostConfig.NetworkMode)},
		},
		Mounts: row.Mounts,
		Config: &container.Config{Image: row.Image, Labels: row.Labels},
	}
	if row.NetworkSettings != nil {
		result.NetworkSettings = &container.NetworkSettings{Networks: row.NetworkSettings.Networks}
	}
	return result
}
