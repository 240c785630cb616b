// Package enginelaws states what this project relies on in a Docker Engine.
//
// A law (Run) is a rule about the Engine API that was found out by an error once. A Gate is
// a feature that depends on the Engine's version. Both are tests that run on the fake Engine
// of core/engine/enginetest and, with the flag -docker, on real Engines: so the fake stays
// true, and a new Docker release that breaks a rule is noticed.
package enginelaws

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/versions"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"

	"berth/core/logs/dockerlog"
	"berth/core/logs/localfile"
	"berth/core/pause"
)

// What Docker writes and returns, in every version from 20.10 to 29.
const (
	zeroTime      = "0001-01-01T00:00:00Z" // of StartedAt and FinishedAt before the first start and exit
	jsonLogDriver = "json-file"

	exitNotExecutable = 126
	exitNotFound      = 127
	exitKilled        = 128 + 9
)

// Run checks every law with docker, a client that has negotiated an API version. ref is an
// image with a busybox, or with what enginetest has in its place.
func Run(t *testing.T, docker *client.Client, ref string) {
	for _, law := range []struct {
		name  string
		check func(*lawTest)
	}{
		{"a created container has no start and no finish time", createLeavesStateEmpty},
		{"a name belongs to one container", nameIsUnique},
		{"a second start has no effect", secondStartIsNoOp},
		{"a start that fails leaves the container created", failedStartLeavesCreated},
		{"stop sends the stop signal and waits", stopSendsSignalAndWaits},
		{"a container that does not run can be stopped, not killed", stopAndKillOfStopped},
		{"a missing container is NotFound", missingIsNotFound},
		{"an invalid create is refused", invalidCreateIsRefused},
		{"a mount source that begins with the data root must not be private", mountSourceWithDataRootPrefix},
		{"a sub-path of an image is resolved when it is mounted", imageSubPathIsResolvedAtMount},
		{"wait returns the exit code", waitReturnsExitCode},
		{"wait returns for a container that does not run or is removed", waitReturnsWhenNotRunningOrRemoved},
		{"stop kills after its timeout", stopKillsAfterTimeout},
		{"an exit sets the finish time", exitSetsFinishedAt},
		{"a running container is removed only with force", removeOfRunningNeedsForce},
		{"a list filters by label", listFiltersByLabel},
		{"a list and an inspect report the same state", listAndInspectAgree},
		{"events follow the life cycle", eventsFollowLifecycle},
		{"the log is complete when the container has exited", logIsCompleteAtExit},
		{"a log file consists of lines of JSON", logFileIsJSONLines},
		{"a long line is split into entries of the same time", longLineIsSplit},
		{"the log driver local keeps entries between two lengths", localLogFileHasEntries},
		{"a pause container without a network can be joined", namespacesCanBeJoined},
		{"a container that has exited cannot be joined", stoppedCannotBeJoined},
		{"a PID namespace ends with its first process", pidNamespaceEndsWithInit},
		{"exec separates stdout and stderr and has an exit code", execSeparatesStreams},
		{"exec of a missing command exits with 126 or 127", execOfMissingCommand},
		{"exec needs a running container", execNeedsRunning},
		{"an exec ends with its container", execEndsWithContainer},
		{"attach receives new output", attachReceivesNewOutput},
		{"resources can be updated while a container runs", updateWhileRunning},
		{"an image is found by its name and its ID", imageByNameAndID},
		{"an image in use is not removed", usedImageIsNotRemoved},
		{"a missing image is NotFound", missingImageIsNotFound},
		{"a removed image has no names", removedImageHasNoNames},
		{"an image that no registry has has a digest with the containerd image store only", localImageHasDigestWithContainerd},
		{"a client with a newer API version is refused", newerClientIsRefused},
	} {
		t.Run(law.name, func(t *testing.T) {
			law.check(&lawTest{T: t, docker: docker, ref: ref, ctx: t.Context()})
		})
	}
}

// A lawTest is the test of one law.
type lawTest struct {
	*testing.T
	docker  *client.Client
	ref     string
	ctx     context.Context //nolint:containedctx // that of the test
	created int             // names that name has returned
}

// name returns a new container name.
func (c *lawTest) name() string {
	c.created++
	return fmt.Sprintf("law-%d-%d-%d", os.Getpid(), time.Now().UnixNano(), c.created)
}

// must ends the test if err is an error.
func (c *lawTest) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

// create creates a container that is removed when the test ends.
func (c *lawTest) create(change func(*container.Config, *container.HostConfig), command ...string) string {
	c.Helper()
	config := &container.Config{Image: c.ref, Entrypoint: command, NetworkDisabled: true, Labels: map[string]string{"law": c.Name()}}
	host := &container.HostConfig{LogConfig: container.LogConfig{Type: jsonLogDriver}}
	if change != nil {
		change(config, host)
	}
	created, err := c.docker.ContainerCreate(c.ctx, config, host, nil, nil, c.name())
	c.must(err)
	c.removeOnCleanup(created.ID)
	return created.ID
}

// removeOnCleanup removes a container when the test ends.
func (c *lawTest) removeOnCleanup(id string) {
	c.Helper()
	c.Cleanup(func() {
		err := c.docker.ContainerRemove(context.WithoutCancel(c.ctx), id, container.RemoveOptions{Force: true})
		if err != nil && !errdefs.IsNotFound(err) {
			c.Error(err)
		}
	})
}

// start creates a container and starts it.
func (c *lawTest) start(command ...string) string {
	c.Helper()
	id := c.create(nil, command...)
	c.must(c.docker.ContainerStart(c.ctx, id, container.StartOptions{}))
	return id
}

func (c *lawTest) inspect(id string) container.InspectResponse {
	c.Helper()
	found, err := c.docker.ContainerInspect(c.ctx, id)
	c.must(err)
	return found
}

// waitExit waits until a container does not run and returns its exit code.
func (c *lawTest) waitExit(id string) int64 {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, 20*time.Second)
	defer cancel()
	codes, errs := c.docker.ContainerWait(ctx, id, container.WaitConditionNotRunning)
	select {
	case code := <-codes:
		return code.StatusCode
	case err := <-errs:
		c.Fatal(err)
		return -1
	}
}

// wantKind fails the test if err is not of the wanted kind.
func (c *lawTest) wantKind(what string, err error, kind func(error) bool) {
	c.Helper()
	if !kind(err) {
		c.Errorf("%s: %v is of another kind", what, err)
	}
}

// isZeroTime reports whether a time of the Engine API is not set.
func isZeroTime(stamp string) bool { return stamp == "" || stamp == zeroTime }

func createLeavesStateEmpty(c *lawTest) {
	s := c.inspect(c.create(nil, "true")).State
	if s.Status != container.StateCreated || s.Running || s.Pid != 0 || s.ExitCode != 0 || !isZeroTime(s.StartedAt) || !isZeroTime(s.FinishedAt) {
		c.Errorf("state %+v", s)
	}
}

func nameIsUnique(c *lawTest) {
	id := c.create(nil, "true")
	name := strings.TrimPrefix(c.inspect(id).Name, "/")
	_, err := c.docker.ContainerCreate(c.ctx, &container.Config{Image: c.ref}, nil, nil, nil, name)
	c.wantKind("the same name again", err, errdefs.IsConflict)
	if found := c.inspect(name); found.ID != id {
		c.Errorf("%s is %s, want %s", name, found.ID, id)
	}
}

func secondStartIsNoOp(c *lawTest) {
	id := c.start("sleep", "1000")
	before := c.inspect(id).State
	if !before.Running || before.Pid == 0 || isZeroTime(before.StartedAt) {
		c.Errorf("state %+v", before)
	}
	c.must(c.docker.ContainerStart(c.ctx, id, container.StartOptions{}))
	if after := c.inspect(id).State; after.StartedAt != before.StartedAt {
		c.Error("a second start has restarted the container")
	}
}

func failedStartLeavesCreated(c *lawTest) {
	id := c.create(nil, "missing")
	if err := c.docker.ContainerStart(c.ctx, id, container.StartOptions{}); err == nil {
		c.Error("a command that does not exist was started")
	}
	s := c.inspect(id).State
	if s.Running || s.Status != container.StateCreated || s.ExitCode != exitNotFound || s.Error == "" || !isZeroTime(s.StartedAt) {
		c.Errorf("state %+v", s)
	}
}

func stopSendsSignalAndWaits(c *lawTest) {
	id := c.start("sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done")
	time.Sleep(500 * time.Millisecond) // until the trap is set
	limit := 10
	begin := time.Now()
	c.must(c.docker.ContainerStop(c.ctx, id, container.StopOptions{Timeout: &limit}))
	s := c.inspect(id).State
	if s.Running || s.ExitCode != 3 || isZeroTime(s.FinishedAt) || s.Status != container.StateExited || time.Since(begin) > 8*time.Second {
		c.Errorf("state %+v after %v", s, time.Since(begin))
	}
}

func stopAndKillOfStopped(c *lawTest) {
	for state, id := range map[string]string{"created": c.create(nil, "true"), "exited": c.start("true")} {
		if state == "exited" {
			c.waitExit(id)
		}
		c.must(c.docker.ContainerStop(c.ctx, id, container.StopOptions{}))
		c.wantKind("kill of a container that is "+state, c.docker.ContainerKill(c.ctx, id, "KILL"), errdefs.IsConflict)
	}
}

func missingIsNotFound(c *lawTest) {
	const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	_, err := c.docker.ContainerInspect(c.ctx, id)
	c.wantKind("inspect", err, errdefs.IsNotFound)
	c.wantKind("start", c.docker.ContainerStart(c.ctx, id, container.StartOptions{}), errdefs.IsNotFound)
	c.wantKind("stop", c.docker.ContainerStop(c.ctx, id, container.StopOptions{}), errdefs.IsNotFound)
	c.wantKind("kill", c.docker.ContainerKill(c.ctx, id, "KILL"), errdefs.IsNotFound)
	c.wantKind("remove", c.docker.ContainerRemove(c.ctx, id, container.RemoveOptions{Force: true}), errdefs.IsNotFound)
	_, err = c.docker.ContainerExecCreate(c.ctx, id, container.ExecOptions{Cmd: []string{"true"}})
	c.wantKind("exec", err, errdefs.IsNotFound)
}

func mountSourceWithDataRootPrefix(c *lawTest) {
	info, err := c.docker.Info(c.ctx)
	c.must(err)
	beside, err := os.MkdirTemp(filepath.Dir(info.DockerRootDir), filepath.Base(info.DockerRootDir)+"-law")
	if err != nil {
		c.Skipf("needs a directory next to the data root of the Engine: %v", err)
	}
	c.Cleanup(func() { os.Remove(beside) })
	for propagation, want := range map[mount.Propagation]bool{
		mount.PropagationRPrivate: false, mount.PropagationRSlave: true, mount.PropagationRShared: true, "": true,
	} {
		created, err := c.docker.ContainerCreate(c.ctx, &container.Config{Image: c.ref, Cmd: []string{"true"}}, &container.HostConfig{
			Mounts: []mount.Mount{{Type: mount.TypeBind, Source: beside, Target: "/mnt", BindOptions: &mount.BindOptions{Propagation: propagation}}},
		}, nil, nil, c.name())
		switch {
		case !want:
			c.wantKind("a private mount", err, errdefs.IsInvalidArgument)
		case err != nil:
			c.Errorf("propagation %q: %v", propagation, err)
		}
		if err == nil {
			c.must(c.docker.ContainerRemove(c.ctx, created.ID, container.RemoveOptions{}))
		}
	}
}

func imageSubPathIsResolvedAtMount(c *lawTest) {
	if versions.LessThan(c.docker.ClientVersion(), "1.48") {
		c.Skip("this Engine has no image mounts")
	}
	create := func(subPath string) string {
		return c.create(func(_ *container.Config, host *container.HostConfig) {
			host.Mounts = []mount.Mount{{
				Type: mount.TypeImage, Source: c.ref, Target: "/mnt", ReadOnly: true, ImageOptions: &mount.ImageOptions{Subpath: subPath},
			}}
		}, "true")
	}
	id := create("etc")
	_, err := c.docker.ContainerStatPath(c.ctx, id, "/etc/passwd")
	c.must(err)
	c.must(c.docker.ContainerStart(c.ctx, id, container.StartOptions{}))
	id = create("no/such")
	_, err = c.docker.ContainerStatPath(c.ctx, id, "/etc/passwd")
	c.wantKind("stat in a container with a missing sub-path", err, errdefs.IsInternal)
	_, _, err = c.docker.CopyFromContainer(c.ctx, id, "/etc/passwd")
	c.wantKind("copy from a container with a missing sub-path", err, errdefs.IsInternal)
	if !strings.Contains(fmt.Sprint(err), "cannot access path") {
		c.Errorf("the error does not name the path: %v", err)
	}
	if c.docker.ContainerStart(c.ctx, id, container.StartOptions{}) == nil {
		c.Error("a container with a missing sub-path was started")
	}
}

func waitReturnsExitCode(c *lawTest) {
	if code := c.waitExit(c.start("sh", "-c", "exit 7")); code != 7 {
		c.Errorf("exit code %d, want 7", code)
	}
	id := c.start("sleep", "1000")
	c.must(c.docker.ContainerKill(c.ctx, id, "KILL"))
	if code := c.waitExit(id); code != exitKilled {
		c.Errorf("exit code %d after a kill, want %d", code, exitKilled)
	}
}

func removeOfRunningNeedsForce(c *lawTest) {
	id := c.start("sleep", "1000")
	c.wantKind("remove of a running container", c.docker.ContainerRemove(c.ctx, id, container.RemoveOptions{}), errdefs.IsConflict)
	c.must(c.docker.ContainerRemove(c.ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true}))
	_, err := c.docker.ContainerInspect(c.ctx, id)
	c.wantKind("inspect of a removed container", err, errdefs.IsNotFound)
}

func listFiltersByLabel(c *lawTest) {
	mark := c.name()
	mine := c.create(func(config *container.Config, _ *container.HostConfig) { config.Labels["mark"] = mark }, "true")
	c.create(nil, "true")
	list, err := c.docker.ContainerList(c.ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", "mark="+mark))})
	c.must(err)
	if len(list) != 1 || list[0].ID != mine || list[0].State != container.StateCreated || list[0].Labels["mark"] != mark {
		c.Errorf("found %+v", list)
	}
}

func listAndInspectAgree(c *lawTest) {
	paused, dead := c.start("sleep", "1000"), c.start("sh", "-c", "exit 3")
	c.must(c.docker.ContainerPause(c.ctx, paused))
	c.waitExit(dead)
	for want, id := range map[string]string{
		container.StateCreated: c.create(func(_ *container.Config, host *container.HostConfig) { host.NetworkMode = "none" }, "true"),
		container.StateRunning: c.start("sleep", "1000"), container.StatePaused: paused, container.StateExited: dead,
	} {
		list, err := c.docker.ContainerList(c.ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("id", id))})
		c.must(err)
		if len(list) != 1 {
			c.Fatalf("%d containers have the ID %s", len(list), id)
		}
		row, found := list[0], c.inspect(id)
		if row.State != want || found.State.Status != want {
			c.Errorf("listed as %s, inspected as %s, want %s", row.State, found.State.Status, want)
		}
		if row.HostConfig.NetworkMode != string(found.HostConfig.NetworkMode) {
			c.Errorf("network mode listed as %s, inspected as %s", row.HostConfig.NetworkMode, found.HostConfig.NetworkMode)
		}
		if id == dead && !strings.HasPrefix(row.Status, "Exited (3) ") {
			c.Errorf("status %q has no exit code", row.Status)
		}
	}
}

func eventsFollowLifecycle(c *lawTest) {
	ctx, cancel := context.WithTimeout(c.ctx, 30*time.Second)
	defer cancel()
	mark := c.name()
	messages, errs := c.docker.Events(ctx, events.ListOptions{Filters: filters.NewArgs(filters.Arg("type", "container"), filters.Arg("label", "mark="+mark))})
	id := c.create(func(config *container.Config, _ *container.HostConfig) { config.Labels["mark"] = mark }, "sleep", "1000")
	c.must(c.docker.ContainerStart(c.ctx, id, container.StartOptions{}))
	c.must(c.docker.ContainerKill(c.ctx, id, "KILL"))
	c.waitExit(id)
	c.must(c.docker.ContainerRemove(c.ctx, id, container.RemoveOptions{}))
	var got []string
	for len(got) == 0 || got[len(got)-1] != "destroy" {
		select {
		case m := <-messages:
			if m.Actor.ID != id || m.Actor.Attributes["mark"] != mark || m.TimeNano == 0 {
				c.Errorf("event of another container: %+v", m)
			}
			if m.Action == events.ActionDie && m.Actor.Attributes["exitCode"] != "137" {
				c.Errorf("exit code of the die event: %q", m.Actor.Attributes["exitCode"])
			}
			got = append(got, string(m.Action))
		case err := <-errs:
			c.Fatalf("after %v: %v", got, err)
		}
	}
	if want := []string{"create", "start", "kill", "die", "destroy"}; !slices.Equal(got, want) {
		c.Errorf("got %v, want %v", got, want)
	}
}

func logIsCompleteAtExit(c *lawTest) {
	id := c.start("sh", "-c", "echo out; echo err >&2")
	c.waitExit(id)
	body, err := c.docker.ContainerLogs(c.ctx, id, container.LogsOptions{ShowStdout: true, ShowStderr: true})
	c.must(err)
	defer body.Close()
	var out, errs bytes.Buffer
	_, err = stdcopy.StdCopy(&out, &errs, body)
	c.must(err)
	if out.String() != "out\n" || errs.String() != "err\n" {
		c.Errorf("stdout %q, stderr %q", out.String(), errs.String())
	}
	if path := c.inspect(id).LogPath; !strings.HasSuffix(path, "/containers/"+id+"/"+id+"-json.log") {
		c.Errorf("log file %q", path)
	}
}

// startPause starts a container whose namespaces can be joined.
func (c *lawTest) startPause() string {
	c.Helper()
	id := c.create(func(_ *container.Config, host *container.HostConfig) { host.IpcMode = container.IPCModeShareable }, "sleep", "1000")
	c.must(c.docker.ContainerStart(c.ctx, id, container.StartOptions{}))
	return id
}

// createJoined creates a container in the namespaces of another.
func (c *lawTest) createJoined(id string, command ...string) string {
	c.Helper()
	return c.create(func(config *container.Config, host *container.HostConfig) {
		config.NetworkDisabled = false
		host.NetworkMode, host.IpcMode = container.NetworkMode("container:"+id), container.IpcMode("container:"+id)
	}, command...)
}

func namespacesCanBeJoined(c *lawTest) {
	pause := c.startPause()
	id := c.createJoined(pause, "sleep", "1000")
	c.must(c.docker.ContainerStart(c.ctx, id, container.StartOptions{}))
	if found := c.inspect(id); !found.State.Running || string(found.HostConfig.NetworkMode) != "container:"+pause {
		c.Errorf("state %+v, network %s", found.State, found.HostConfig.NetworkMode)
	}
}

func stoppedCannotBeJoined(c *lawTest) {
	pause := c.startPause()
	id := c.createJoined(pause, "sleep", "1000")
	c.must(c.docker.ContainerKill(c.ctx, pause, "KILL"))
	c.waitExit(pause)
	if err := c.docker.ContainerStart(c.ctx, id, container.StartOptions{}); err == nil {
		c.Error("the network of an exited container was joined")
	}
	if s := c.inspect(id).State; s.Running || s.Error == "" {
		c.Errorf("state %+v", s)
	}
}

// exec runs a command in a container and returns what it wrote.
func (c *lawTest) exec(id string, command ...string) (stdout, stderr string, found container.ExecInspect) {
	c.Helper()
	created, err := c.docker.ContainerExecCreate(c.ctx, id, container.ExecOptions{Cmd: command, AttachStdout: true, AttachStderr: true})
	c.must(err)
	stream, err := c.docker.ContainerExecAttach(c.ctx, created.ID, container.ExecAttachOptions{})
	c.must(err)
	defer stream.Close()
	var out, errs bytes.Buffer
	_, err = stdcopy.StdCopy(&out, &errs, stream.Reader)
	c.must(err)
	for range 200 {
		found, err = c.docker.ContainerExecInspect(c.ctx, created.ID)
		c.must(err)
		if !found.Running {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return out.String(), errs.String(), found
}

func execSeparatesStreams(c *lawTest) {
	id := c.start("sleep", "1000")
	out, errs, found := c.exec(id, "sh", "-c", "echo out; echo err >&2; exit 7")
	if out != "out\n" || errs != "err\n" || found.ExitCode != 7 || found.Running || found.ContainerID != id {
		c.Errorf("stdout %q, stderr %q, %+v", out, errs, found)
	}
}

func execOfMissingCommand(c *lawTest) {
	id := c.start("sleep", "1000")
	if _, _, found := c.exec(id, "missing"); found.ExitCode != exitNotExecutable && found.ExitCode != exitNotFound || found.Pid != 0 {
		c.Errorf("%+v", found)
	}
}

func execNeedsRunning(c *lawTest) {
	_, err := c.docker.ContainerExecCreate(c.ctx, c.create(nil, "true"), container.ExecOptions{Cmd: []string{"true"}})
	c.wantKind("exec in a created container", err, errdefs.IsConflict)
}

func attachReceivesNewOutput(c *lawTest) {
	id := c.create(func(config *container.Config, _ *container.HostConfig) {
		config.OpenStdin, config.StdinOnce = true, true
	}, "cat")
	c.must(c.docker.ContainerStart(c.ctx, id, container.StartOptions{}))
	stream, err := c.docker.ContainerAttach(c.ctx, id, container.AttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	c.must(err)
	defer stream.Close()
	_, err = io.WriteString(stream.Conn, "hello\n")
	c.must(err)
	c.must(stream.CloseWrite())
	var out, errs bytes.Buffer
	_, err = stdcopy.StdCopy(&out, &errs, stream.Reader)
	c.must(err)
	if code := c.waitExit(id); out.String() != "hello\n" || code != 0 {
		c.Errorf("received %q, exit code %d", out.String(), code)
	}
}

func updateWhileRunning(c *lawTest) {
	id := c.start("sleep", "1000")
	_, err := c.docker.ContainerUpdate(c.ctx, id, container.UpdateConfig{Resources: container.Resources{CPUShares: 512}})
	c.must(err)
	if got := c.inspect(id).HostConfig.CPUShares; got != 512 {
		c.Errorf("shares %d, want 512", got)
	}
}

func imageByNameAndID(c *lawTest) {
	found, err := c.docker.ImageInspect(c.ctx, c.ref)
	c.must(err)
	byID, err := c.docker.ImageInspect(c.ctx, found.ID)
	c.must(err)
	if found.ID != byID.ID || !strings.HasPrefix(found.ID, "sha256:") || !slices.Contains(found.RepoTags, c.ref) {
		c.Errorf("%s is %s with tags %v, by its ID %s", c.ref, found.ID, found.RepoTags, byID.ID)
	}
	list, err := c.docker.ImageList(c.ctx, image.ListOptions{})
	c.must(err)
	if !slices.ContainsFunc(list, func(row image.Summary) bool { return row.ID == found.ID && slices.Contains(row.RepoTags, c.ref) }) {
		c.Errorf("%s is not listed", c.ref)
	}
	if seen := c.inspect(c.create(nil, "true")); seen.Image != found.ID {
		c.Errorf("image of a container %s, want %s", seen.Image, found.ID)
	}
}

func usedImageIsNotRemoved(c *lawTest) {
	c.start("sleep", "1000")
	found, err := c.docker.ImageInspect(c.ctx, c.ref)
	c.must(err)
	for _, force := range []bool{false, true} {
		_, err = c.docker.ImageRemove(c.ctx, found.ID, image.RemoveOptions{Force: force, PruneChildren: true})
		c.wantKind(fmt.Sprintf("remove of an image in use, force %v", force), err, errdefs.IsConflict)
	}
	_, err = c.docker.ImageInspect(c.ctx, c.ref)
	c.must(err)
}

func missingImageIsNotFound(c *lawTest) {
	_, err := c.docker.ImageInspect(c.ctx, "berth.local/no-such:1")
	c.wantKind("inspect", err, errdefs.IsNotFound)
	_, err = c.docker.ImageRemove(c.ctx, "berth.local/no-such:1", image.RemoveOptions{})
	c.wantKind("remove", err, errdefs.IsNotFound)
	_, err = c.docker.ContainerCreate(c.ctx, &container.Config{Image: "berth.local/no-such:1"}, nil, nil, nil, c.name())
	c.wantKind("create", err, errdefs.IsNotFound)
}

func invalidCreateIsRefused(c *lawTest) {
	create := func(change func(*container.Config, *container.HostConfig)) error {
		config, host := &container.Config{Image: c.ref, Cmd: []string{"true"}}, &container.HostConfig{}
		change(config, host)
		created, err := c.docker.ContainerCreate(c.ctx, config, host, nil, nil, c.name())
		if err == nil {
			c.must(c.docker.ContainerRemove(c.ctx, created.ID, container.RemoveOptions{}))
		}
		return err
	}
	c.wantKind("an unknown runtime", create(func(_ *container.Config, host *container.HostConfig) { host.Runtime = "no-such" }), errdefs.IsInvalidArgument)
	c.wantKind("a bind mount of a missing path", create(func(_ *container.Config, host *container.HostConfig) {
		host.Mounts = []mount.Mount{{Type: mount.TypeBind, Source: "/no/such/path", Target: "/mnt"}}
	}), errdefs.IsInvalidArgument)
	c.wantKind("a hostname in the network of another container", create(func(config *container.Config, host *container.HostConfig) {
		config.Hostname, host.NetworkMode = "web", container.NetworkMode("container:"+c.create(nil, "true"))
	}), errdefs.IsInvalidArgument)
	if create(func(_ *container.Config, host *container.HostConfig) { host.IpcMode = "container:no-such" }) == nil {
		c.Error("the IPC namespace of a missing container is not refused")
	}
	_, err := c.docker.ContainerCreate(c.ctx, &container.Config{Image: c.ref}, nil, nil, nil, "no good name")
	c.wantKind("a name with spaces", err, errdefs.IsInvalidArgument)
}

func waitReturnsWhenNotRunningOrRemoved(c *lawTest) {
	id := c.create(nil, "sleep", "1000")
	if code := c.waitExit(id); code != 0 {
		c.Errorf("exit code %d of a container that was never started", code)
	}
	c.must(c.docker.ContainerStart(c.ctx, id, container.StartOptions{}))
	codes, errs := c.docker.ContainerWait(c.ctx, id, container.WaitConditionNotRunning)
	c.must(c.docker.ContainerRemove(c.ctx, id, container.RemoveOptions{Force: true}))
	select {
	case code := <-codes:
		if code.StatusCode != exitKilled {
			c.Errorf("exit code %d of a removed container, want %d", code.StatusCode, exitKilled)
		}
	case err := <-errs:
		c.Error(err)
	}
	_, errs = c.docker.ContainerWait(c.ctx, id, container.WaitConditionNotRunning)
	c.wantKind("wait for a missing container", <-errs, errdefs.IsNotFound)
}

func stopKillsAfterTimeout(c *lawTest) {
	id := c.start("sleep", "1000") // the first process of a PID namespace ignores SIGTERM without a handler
	limit := 1
	begin := time.Now()
	c.must(c.docker.ContainerStop(c.ctx, id, container.StopOptions{Timeout: &limit}))
	if s := c.inspect(id).State; s.ExitCode != exitKilled || time.Since(begin) < 900*time.Millisecond {
		c.Errorf("state %+v after %v", s, time.Since(begin))
	}
}

func exitSetsFinishedAt(c *lawTest) {
	id := c.start("sh", "-c", "exit 3")
	c.waitExit(id)
	s := c.inspect(id).State
	began, err := time.Parse(time.RFC3339Nano, s.StartedAt)
	c.must(err)
	ended, err := time.Parse(time.RFC3339Nano, s.FinishedAt)
	c.must(err)
	// The two times are taken by different programs: a container that exits at once may have
	// finished some milliseconds before it was started.
	if ended.Before(began.Add(-time.Second)) || s.Pid != 0 || s.Status != container.StateExited {
		c.Errorf("state %+v", s)
	}
}

func logFileIsJSONLines(c *lawTest) {
	id := c.start("sh", "-c", "echo out; echo err >&2")
	c.waitExit(id)
	text, err := os.ReadFile(c.inspect(id).LogPath)
	c.must(err)
	var got []string
	for line := range strings.Lines(string(text)) {
		var l struct{ Log, Stream, Time string }
		c.must(json.Unmarshal([]byte(line), &l))
		_, err := time.Parse(time.RFC3339Nano, l.Time)
		c.must(err)
		got = append(got, l.Stream+" "+l.Log)
	}
	slices.Sort(got) // there is no order between the streams
	if want := []string{"stderr err\n", "stdout out\n"}; !slices.Equal(got, want) {
		c.Errorf("got %q, want %q", got, want)
	}
}

// localLogFileHasEntries: Docker keeps the path and the format of these files private, so that it can change them. A piece of a
// line is marked as the last one if a line break follows it.
func localLogFileHasEntries(c *lawTest) {
	long := strings.Repeat("x", 20000)
	id := c.create(func(_ *container.Config, host *container.HostConfig) {
		host.LogConfig = container.LogConfig{Type: "local", Config: map[string]string{"compress": "false", "max-size": "32m", "max-file": "3"}}
	}, "sh", "-c", "echo out; echo "+long+"; echo "+long[:16<<10]+"; printf "+long)
	c.must(c.docker.ContainerStart(c.ctx, id, container.StartOptions{}))
	c.waitExit(id)
	info, err := c.docker.Info(c.ctx)
	c.must(err)
	inspected := c.inspect(id)
	file := dockerlog.FileOfInspected(info.DockerRootDir, inspected)
	if inspected.LogPath != "" || file.Driver != dockerlog.Local {
		c.Errorf("LogPath %q, file %+v", inspected.LogPath, file)
	}
	text, err := os.ReadFile(file.Path)
	c.must(err)
	var decoder localfile.Decoder
	var got, times []string
	for len(text) > 0 {
		e, length, ok := decoder.Next(text)
		if !ok || length == 0 {
			c.Fatalf("not an entry: %.300q", text)
		}
		got = append(got, string(e.Text))
		times = append(times, string(e.Time))
		text = text[length:]
	}
	if want := []string{"out\n", long[:16<<10], long[16<<10:] + "\n", long[:16<<10], "\n", long[:16<<10], long[16<<10:]}; !slices.Equal(got, want) {
		c.Errorf("got %d entries, %.100q, want %d", len(got), got, len(want))
	} else if times[1] != times[2] || times[3] != times[4] || times[5] != times[6] {
		c.Errorf("pieces of a line have different times: %q", times)
	}
}

// longLineIsSplit: see copySrc in moby's daemon/logger/copier.go. A character that is split is
// not valid in JSON and becomes one U+FFFD for each byte.
func longLineIsSplit(c *lawTest) {
	const size = 16 << 10
	long, accents := strings.Repeat("x", 20000), "a"+strings.Repeat("\u00e9", 10000)
	id := c.start("sh", "-c", "echo "+long+"; echo "+accents+"; printf "+long[:size])
	short := c.start("sh", "-c", "printf short")
	type piece struct{ Log, Time string }
	read := func(id string) (pieces []piece) {
		c.waitExit(id)
		text, err := os.ReadFile(c.inspect(id).LogPath)
		c.must(err)
		for line := range strings.Lines(string(text)) {
			var p piece
			c.must(json.Unmarshal([]byte(line), &p))
			pieces = append(pieces, p)
		}
		return pieces
	}
	got := read(id)
	if len(got) != 5 {
		c.Fatalf("%d pieces, want 5", len(got))
	}
	// Byte 16384 of the second line is in the middle of a character.
	cut, rest := accents[:size-1]+"\ufffd", "\ufffd"+accents[size+1:]+"\n"
	for i, want := range []string{long[:size], long[size:] + "\n", cut, rest, long[:size]} {
		if got[i].Log != want {
			c.Errorf("piece %d has %d bytes, %.20q...%q; want %d", i, len(got[i].Log), got[i].Log, got[i].Log[max(0, len(got[i].Log)-20):], len(want))
		}
	}
	if got[0].Time != got[1].Time || got[2].Time != got[3].Time {
		c.Errorf("pieces of the same line have the times %s, %s and %s, %s", got[0].Time, got[1].Time, got[2].Time, got[3].Time)
	}
	if got[1].Time == got[2].Time || got[3].Time == got[4].Time {
		c.Error("different lines have the same time")
	}
	if got := read(short); len(got) != 1 || got[0].Log != "short" {
		c.Errorf("without a newline: %q, want it unchanged", got)
	}
}

func pidNamespaceEndsWithInit(c *lawTest) {
	pause := c.startPause()
	id := c.create(func(_ *container.Config, host *container.HostConfig) {
		host.PidMode = container.PidMode("container:" + pause)
	}, "sleep", "1000")
	c.must(c.docker.ContainerStart(c.ctx, id, container.StartOptions{}))
	c.must(c.docker.ContainerKill(c.ctx, pause, "KILL"))
	if code := c.waitExit(id); code != exitKilled {
		c.Errorf("exit code %d, want %d", code, exitKilled)
	}
}

func execEndsWithContainer(c *lawTest) {
	id := c.start("sleep", "1000")
	go func() { // killed once the command runs: before, the exec would fail to start
		for c.ctx.Err() == nil {
			if seen, err := c.docker.ContainerInspect(c.ctx, id); err == nil && len(seen.ExecIDs) > 0 {
				if found, err := c.docker.ContainerExecInspect(c.ctx, seen.ExecIDs[0]); err == nil && found.Pid != 0 {
					break
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
		_ = c.docker.ContainerKill(c.ctx, id, "KILL")
	}()
	if _, _, found := c.exec(id, "sleep", "1000"); found.Running || found.ExitCode != exitKilled {
		c.Errorf("%+v", found)
	}
}

func removedImageHasNoNames(c *lawTest) {
	archive, err := pause.Archive(runtime.GOARCH)
	c.must(err)
	var id string
	for range 2 { // the second load has no effect
		loaded, err := c.docker.ImageLoad(c.ctx, bytes.NewReader(archive))
		c.must(err)
		text, err := io.ReadAll(loaded.Body)
		c.must(err)
		_ = loaded.Body.Close()
		found, err := c.docker.ImageInspect(c.ctx, pause.Ref)
		if err != nil {
			c.Fatalf("%v; output of the load: %s", err, text)
		}
		if id != "" && id != found.ID {
			c.Errorf("loaded twice the ID is %s, then %s", id, found.ID)
		}
		id = found.ID
	}
	for _, ref := range []string{id, strings.TrimPrefix(id, "sha256:")} {
		if found, err := c.docker.ImageInspect(c.ctx, ref); err != nil || found.ID != id || found.Config.User != "65535:65535" {
			c.Errorf("%s: %v", ref, err)
		}
	}
	_, err = c.docker.ImageRemove(c.ctx, id, image.RemoveOptions{Force: true, PruneChildren: true})
	c.must(err)
	for _, ref := range []string{id, pause.Ref} {
		_, err := c.docker.ImageInspect(c.ctx, ref)
		c.wantKind("inspect "+ref, err, errdefs.IsNotFound)
	}
}

func newerClientIsRefused(c *lawTest) {
	docker, err := client.NewClientWithOpts(client.WithHost(c.docker.DaemonHost()), client.WithVersion("1.99"))
	c.must(err)
	defer docker.Close()
	_, err = docker.Info(c.ctx)
	c.wantKind("API 1.99", err, errdefs.IsInvalidArgument)
	if pong, err := docker.Ping(c.ctx); err != nil || pong.APIVersion == "" {
		c.Errorf("ping: %+v, %v; want an API version", pong, err)
	}
}
