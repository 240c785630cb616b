package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"berth/core/pause"
	"berth/network"
)

// A bare is the lower bound: only the Engine calls that a pod needs, with the
// same CNI plugins.
type bare struct {
	docker *client.Client
	pods   *network.CNI
	image  string
	netns  string // directory of network namespaces
	engine workers
	host   bool // pods are in the network of the node

	mu    sync.Mutex // guards plans
	plans map[string]network.Plan
}

// connectEngine connects to a Docker Engine and finds its processes.
func connectEngine(ctx context.Context, socket string) (*client.Client, []process, error) {
	if err := checkSocket(socket); err != nil {
		return nil, nil, fmt.Errorf("no Docker Engine: %w", err)
	}
	docker, err := client.NewClientWithOpts(client.WithHost(socket), client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, nil, err
	}
	if _, err := docker.Ping(ctx); err != nil {
		return nil, nil, fmt.Errorf("no Docker Engine responds at %s: %w", socket, err)
	}
	found, err := engineProcesses(socket)
	return docker, found, err
}

func newBare(ctx context.Context, p *plan, docker *client.Client, engine []process, dir string) (*bare, error) {
	if _, err := docker.ImageInspect(ctx, p.Image); err != nil {
		return nil, fmt.Errorf("the Engine must have the image %s; name another with --image: %w", p.Image, err)
	}
	working, err := newWorkers(engine...)
	if err != nil {
		return nil, err
	}
	b := &bare{docker: docker, image: p.Image, engine: working, host: p.HostNetwork, netns: filepath.Join(dir, "run", "netns"), plans: map[string]network.Plan{}}
	b.pods = network.New(network.Config{
		ConfDir: p.CNIConf, BinDirs: []string{p.CNIBin}, CacheDir: filepath.Join(dir, "cni-cache"), RunDir: filepath.Join(dir, "run"),
	}, slog.New(slog.DiscardHandler))
	if _, err := b.pods.Plan(network.Pod{ID: "first", Name: "first", Namespace: "bench", UID: "u"}); err != nil {
		return nil, fmt.Errorf("pod network for the bare calls (--cni-conf %s, --cni-bin %s): %w", p.CNIConf, p.CNIBin, err)
	}
	return b, loadPause(ctx, docker)
}

// loadPause loads the pause image into an Engine.
func loadPause(ctx context.Context, docker *client.Client) error {
	if _, err := docker.ImageInspect(ctx, pause.Ref); err == nil {
		return nil
	}
	archive, err := pause.Archive(runtime.GOARCH)
	if err != nil {
		return err
	}
	r, err := docker.ImageLoad(ctx, bytes.NewReader(archive))
	if err != nil {
		return fmt.Errorf("pause image: %w", err)
	}
	_, err = io.Copy(io.Discard, r.Body)
	return firstError(err, r.Body.Close())
}

// firstError returns the first error that is not nil.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// close unmounts the directory of network namespaces.
func (b *bare) close() {
	_ = unix.Unmount(b.netns, unix.MNT_DETACH) // it is not mounted if no pod was run
}

func (b *bare) name() string  { return "bare" }
func (b *bare) cost() workers { return b.engine }

// benchLabel marks containers of the bare calls.
const benchLabel = "berth.bench"

func (b *bare) run(ctx context.Context, pod string) (string, error) {
	// As in berthd, the sandbox is created without the Engine's network code, which is
	// slower.
	config := &container.Config{Image: pause.Ref, Hostname: pod, NetworkDisabled: true, Labels: map[string]string{benchLabel: pod}}
	host := &container.HostConfig{NetworkMode: "none", IpcMode: container.IPCModeShareable, LogConfig: container.LogConfig{Type: "none"}}
	if b.host {
		config.Hostname, config.NetworkDisabled, host.NetworkMode = "", false, "host"
	}
	made, err := b.docker.ContainerCreate(ctx, config, host, nil, nil, "bare-"+pod)
	if err != nil {
		return "", err
	}
	if err := b.docker.ContainerStart(ctx, made.ID, container.StartOptions{}); err != nil || b.host {
		return made.ID, err
	}
	seen, err := b.docker.ContainerInspect(ctx, made.ID)
	if err != nil {
		return made.ID, err
	}
	plan, err := b.pods.Plan(network.Pod{ID: made.ID, Name: pod, Namespace: "bench", UID: "u"})
	if err != nil {
		return made.ID, err
	}
	b.mu.Lock()
	b.plans[made.ID] = plan
	b.mu.Unlock()
	if _, err := b.pods.Bind(made.ID, seen.State.Pid); err != nil {
		return made.ID, err
	}
	_, err = b.pods.Attach(ctx, plan)
	return made.ID, err
}

// jsonFile is the log configuration that berthd sets.
func jsonFile() container.LogConfig {
	return container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "32m", "max-file": "3", "compress": "false"}}
}

func (b *bare) create(ctx context.Context, sandbox, pod, name, script string) (string, error) {
	return b.createContainer(ctx, sandbox, pod, name, script, false)
}

func (b *bare) createContainer(ctx context.Context, sandbox, pod, name, script string, stdin bool) (string, error) {
	host := &container.HostConfig{LogConfig: jsonFile()}
	host.NetworkMode = container.NetworkMode("container:" + sandbox)
	host.IpcMode = container.IpcMode("container:" + sandbox)
	config := &container.Config{Image: b.image, Entrypoint: []string{"sh", "-c", script}, Labels: map[string]string{benchLabel: pod}, OpenStdin: stdin}
	made, err := b.docker.ContainerCreate(ctx, config, host, nil, nil, "bare-"+pod+"-"+name)
	return made.ID, err
}

func (b *bare) start(ctx context.Context, id string) error {
	return b.docker.ContainerStart(ctx, id, container.StartOptions{})
}

func (b *bare) status(ctx context.Context, id string) error {
	_, err := b.docker.ContainerInspect(ctx, id)
	return err
}

func (b *bare) exec(ctx context.Context, id string) error {
	made, err := b.docker.ContainerExecCreate(ctx, id, container.ExecOptions{AttachStdout: true, AttachStderr: true, Cmd: []string{"true"}})
	if err != nil {
		return err
	}
	streams, err := b.docker.ContainerExecAttach(ctx, made.ID, container.ExecAttachOptions{})
	if err != nil {
		return err
	}
	defer streams.Close()
	if _, err := stdcopy.StdCopy(io.Discard, io.Discard, streams.Reader); err != nil {
		return err
	}
	seen, err := b.docker.ContainerExecInspect(ctx, made.ID)
	if err == nil && seen.ExitCode != 0 {
		err = fmt.Errorf("true exits with %d", seen.ExitCode)
	}
	return err
}

func (b *bare) stopContainer(ctx context.Context, id string) error { return b.kill(ctx, id) }

// kill kills a container and waits until it has ended.
func (b *bare) kill(ctx context.Context, id string) error {
	ended, failed := b.docker.ContainerWait(ctx, id, container.WaitConditionNotRunning)
	// A container that has ended cannot be killed; the wait returns in that case.
	_ = b.docker.ContainerKill(ctx, id, "KILL")
	select {
	case <-ended:
		return nil
	case err := <-failed:
		return err
	}
}

func (b *bare) removeContainer(ctx context.Context, id string) error {
	return b.docker.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
}

func (b *bare) stop(ctx context.Context, sandbox string) error {
	b.mu.Lock()
	plan, ok := b.plans[sandbox]
	delete(b.plans, sandbox)
	b.mu.Unlock()
	var group errgroup.Group
	group.Go(func() error {
		if !ok {
			return nil
		}
		return b.pods.Detach(ctx, &plan, sandbox)
	})
	group.Go(func() error { return b.kill(ctx, sandbox) })
	return group.Wait()
}

func (b *bare) remove(ctx context.Context, sandbox string) error {
	return b.removeContainer(ctx, sandbox)
}

func (b *bare) ended(ctx context.Context, id string) (bool, error) {
	seen, err := b.docker.ContainerInspect(ctx, id)
	return err == nil && !seen.State.Running && seen.State.Status == "exited", err
}

// logLines counts the lines in the Engine's files; it drops the oldest files.
func (b *bare) logLines(ctx context.Context, id, _, _ string) (n int, err error) {
	seen, err := b.docker.ContainerInspect(ctx, id)
	if err != nil {
		return 0, err
	}
	for _, suffix := range []string{"", ".1", ".2"} {
		f, err := os.Open(seen.LogPath + suffix)
		if err != nil {
			continue
		}
		more, err := countLines(f)
		f.Close()
		if err != nil {
			return n, err
		}
		n += more
	}
	return n, nil
}

// podLabel is the label by which cri-dockerd and berthd distinguish pause containers from
// other containers.
const podLabel = "io.kubernetes.docker.type="

func (b *bare) list(ctx context.Context, what string) ([]container.Summary, error) {
	return b.docker.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", podLabel+what))})
}

func (b *bare) count(what string) func(ctx context.Context) (int, error) {
	return func(ctx context.Context) (int, error) {
		list, err := b.list(ctx, what)
		return len(list), err
	}
}

// statsParallel is the number of parallel stats calls.
const statsParallel = 10

func (b *bare) containerStats(ctx context.Context) (int, error) {
	list, err := b.list(ctx, "container")
	if err != nil {
		return 0, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(statsParallel)
	for _, c := range list {
		g.Go(func() error {
			r, err := b.docker.ContainerStatsOneShot(ctx, c.ID)
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, r.Body)
			return firstError(err, r.Body.Close())
		})
	}
	return len(list), g.Wait()
}

func (b *bare) listImages(ctx context.Context) (int, error) {
	list, err := b.docker.ImageList(ctx, image.ListOptions{})
	return len(list), err
}

func (b *bare) statuses(ctx context.Context) (int, error) {
	n := 0
	for _, what := range []string{"podsandbox", "container"} {
		list, err := b.list(ctx, what)
		if err != nil {
			return 0, err
		}
		for _, c := range list {
			if err := b.status(ctx, c.ID); err != nil {
				return 0, err
			}
		}
		n = len(list)
	}
	return n, nil
}

func (b *bare) lists() []listCall {
	return []listCall{
		{rowPods, 20, b.count("podsandbox")}, {rowContainers, 20, b.count("container")}, {rowStatuses, 5, b.statuses},
		{rowStats, 3, b.containerStats}, {rowImages, 20, b.listImages},
	}
}

func (b *bare) relist(ctx context.Context, second int) error {
	for _, what := range []string{"podsandbox", "container"} {
		if _, err := b.list(ctx, what); err != nil {
			return err
		}
	}
	if _, err := b.docker.Info(ctx); err != nil {
		return err
	}
	if second%statsEvery == 0 {
		if _, err := b.containerStats(ctx); err != nil {
			return err
		}
	}
	if second%imagesEvery == 0 {
		if _, err := b.docker.ImageList(ctx, image.ListOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// describe returns the version and configuration of the Engine.
func describe(ctx context.Context, docker *client.Client) (string, error) {
	info, err := docker.Info(ctx)
	if err != nil {
		return "", err
	}
	return strings.Join([]string{"Docker Engine " + info.ServerVersion, info.Driver, "cgroup v" + info.CgroupVersion, info.CgroupDriver}, ", "), nil
}

func (b *bare) noop(ctx context.Context) error {
	_, err := b.docker.Ping(ctx)
	return err
}
