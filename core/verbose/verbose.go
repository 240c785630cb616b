// Package verbose has what the verbose status of sandboxes and containers adds: the OCI runtime specification and the
// HostConfig of Docker.
package verbose

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"berth/core/bundle"
	"berth/core/engine"
)

const (
	// inspectTimeout bounds the Engine call: a status must not fail, or wait for minutes, because of what it only adds.
	inspectTimeout = 2 * time.Second
	// maxHostConfig bounds the HostConfig, in bytes.
	maxHostConfig = 2 << 20
)

// Add adds to facts what there is of the container id, whose first process is pid (0 if it does not run), under the keys
// that containerd has and crictl and checkpointctl read: pid, runtimeSpec; and hostConfig, as docker inspect shows it. What
// cannot be read is replaced by its reason, under the key with Error appended. The environment of the container is in
// runtimeSpec, as with containerd.
func Add(ctx context.Context, docker *engine.Engine, id string, pid int, facts map[string]any) {
	facts["pid"] = pid
	if pid != 0 { // containerd has no bundle of others
		if spec, err := bundle.Spec(pid, id); err != nil {
			facts["runtimeSpecError"] = err.Error()
		} else {
			facts["runtimeSpec"] = spec
		}
	}
	if host, err := hostConfig(ctx, docker, id); err != nil {
		facts["hostConfigError"] = err.Error()
	} else {
		facts["hostConfig"] = host
	}
}

// hostConfig returns the HostConfig of the container id.
func hostConfig(ctx context.Context, docker *engine.Engine, id string) (json.RawMessage, error) {
	conn, err := docker.Conn()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	found, err := conn.ContainerInspect(ctx, id)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(found.HostConfig)
	if err == nil && len(text) > maxHostConfig {
		err = fmt.Errorf("it has %d bytes, more than %d", len(text), maxHostConfig)
	}
	return text, err
}
