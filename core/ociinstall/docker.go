package ociinstall

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/system"
	"golang.org/x/sys/unix"

	"berth/core/dockerconfig"
	"berth/core/engine"
	"berth/core/names"
	"berth/core/sleep"
)

// An info is what Docker says about its runtimes.
type info struct {
	version        string
	defaultRuntime string
	shims          bool // Docker 23 or newer: names of shims are runtimes
	runtimes       map[string]system.RuntimeWithStatus
}

func getInfo(ctx context.Context, conn *engine.Conn) (info, error) {
	ctx, cancel := conn.WithRequestTimeout(ctx)
	defer cancel()
	found, err := conn.Info(ctx)
	if err != nil {
		return info{}, fmt.Errorf("docker info: %w", err)
	}
	return info{version: found.ServerVersion, defaultRuntime: found.DefaultRuntime, shims: conn.Features.ShimRuntimes, runtimes: found.Runtimes}, nil
}

// has reports whether Docker has the runtime as it is in the file.
func (i info) has(r dockerconfig.Runtime) bool {
	found, ok := i.runtimes[r.Name]
	return ok && found.Path == r.Path && slices.Equal(found.Args, r.Args)
}

// A User is a container with one of the runtimes.
type User struct {
	ID        string `json:"id"`
	Name      string `json:"name"`                // Docker's
	Pod       string `json:"pod,omitempty"`       // namespace and name
	Container string `json:"container,omitempty"` // in the pod
	State     string `json:"state"`
}

// listUsers returns all containers by their runtime.
func listUsers(ctx context.Context, conn *engine.Conn) (map[string][]User, error) {
	listCtx, cancel := conn.WithRequestTimeout(ctx)
	defer cancel()
	list, err := conn.ContainerList(listCtx, container.ListOptions{All: true})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	users := map[string][]User{}
	for _, row := range list {
		found, err := inspect(ctx, conn, row.ID)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("inspect %s: %w", row.ID, err)
		}
		if found.ContainerJSONBase == nil || found.HostConfig == nil || found.HostConfig.Runtime == "" {
			continue // one that is just being created, or was never started
		}
		u := User{ID: row.ID, Name: strings.TrimPrefix(found.Name, "/"), State: row.State}
		if n, err := names.Parse(found.Name); err == nil {
			u.Pod, u.Container = n.Namespace+"/"+n.Pod, n.Container
		}
		users[found.HostConfig.Runtime] = append(users[found.HostConfig.Runtime], u)
	}
	return users, nil
}

func inspect(ctx context.Context, conn *engine.Conn, id string) (container.InspectResponse, error) {
	ctx, cancel := conn.WithRequestTimeout(ctx)
	defer cancel()
	return conn.ContainerInspect(ctx, id)
}

// maxNamed is how many pods a message names.
const maxNamed = 5

// podsOf returns the pods of the containers, and the names of those that belong to none.
func podsOf(users []User) (pods []string) {
	for _, u := range users {
		name := u.Pod
		if name == "" {
			name = u.Name
		}
		if !slices.Contains(pods, name) {
			pods = append(pods, name)
		}
	}
	slices.Sort(pods)
	return pods
}

// describe returns a few names of containers for a message.
func describe(users []User) string {
	pods := podsOf(users)
	if more := len(pods) - maxNamed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(pods[:maxNamed], ", "), more)
	}
	return strings.Join(pods, ", ")
}

// reload has Docker read its configuration again and waits until it says what done accepts. The error is one line.
func (o *operation) reload(ctx context.Context, done func(info) bool) error {
	if err := o.dockerd.process.Signal(unix.SIGHUP); err != nil {
		return fmt.Errorf("SIGHUP for dockerd, process %d: %w", o.dockerd.PID, err)
	}
	return o.await(ctx, done)
}

// restore puts the original file back after err, which it returns with what became of the file. It has Docker read the
// file again, in case that it has read the other one after all, and does not wait for that.
func (o *operation) restore(original *dockerconfig.File, err error) error {
	if restoreErr := o.file.Restore(original); restoreErr != nil {
		return fmt.Errorf("%w; and %s could not be restored: %w", err, o.cfg.ConfigFile, restoreErr)
	}
	o.file = original
	_ = o.dockerd.process.Signal(unix.SIGHUP) // it may have ended
	return fmt.Errorf("%w; %s is as before", err, o.cfg.ConfigFile)
}

// await waits after SIGHUP until Docker says what done accepts.
func (o *operation) await(ctx context.Context, done func(info) bool) error {
	timeout := o.cfg.reloadTimeout
	wait, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for answered := false; ; {
		found, err := getInfo(wait, o.conn)
		if err == nil && done(found) {
			o.info = found
			return nil
		}
		answered = answered || err == nil
		if errors.Is(o.dockerd.process.Signal(unix.Signal(0)), os.ErrProcessDone) {
			return fmt.Errorf("dockerd, process %d, has ended after SIGHUP: see journalctl -u docker.service", o.dockerd.PID)
		}
		if sleep.WithContext(wait, reloadInterval) == nil {
			continue
		}
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("stopped while Docker was reading its configuration: %w", ctx.Err())
		case !answered:
			return fmt.Errorf("docker does not answer since SIGHUP: %w", err)
		default:
			return fmt.Errorf("docker has not read its configuration within %v after SIGHUP: its log says why (journalctl -u docker.service)", timeout)
		}
	}
}
