package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/engine"
	"berth/core/labels"
	"berth/core/names"
	"berth/core/premount"
	"berth/core/rollback"
	"berth/core/securityprofile"
	"berth/core/todocker"
)

// nameTries is how often a name that is taken is looked into.
const nameTries = 4

// Create makes a container in a sandbox and returns its ID. What could not be
// made completely is removed again before Create returns, and what its caller has
// hung up on; one who has run out of time gets it when he asks again.
//
// The error is of kind NotFound if the sandbox or the image is not there and
// FailedPrecondition if the sandbox is not ready.
func (s *Service) Create(ctx context.Context, sandboxID string, c *runtimeapi.ContainerConfig, given *runtimeapi.PodSandboxConfig) (_ string, err error) {
	docker, err := s.docker.Conn()
	if err != nil {
		return "", err
	}
	pod, err := s.view.Sandbox(ctx, sandboxID)
	if err != nil {
		return "", err
	}
	if pod.Row.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return "", fmt.Errorf("sandbox %s is not ready: %w", pod.ID(), errdefs.ErrFailedPrecondition)
	}
	if pod.Pid == 0 {
		// The runtime, the cgroup and the label that a container gets from its
		// sandbox are in no list.
		return "", fmt.Errorf("sandbox %s: %w: docker has not told all of it yet", pod.ID(), errdefs.ErrUnavailable)
	}
	ask, err := s.ask(ctx, docker, pod, c, given)
	if err != nil {
		return "", err
	}
	order, err := todocker.Container(ask)
	if err != nil {
		return "", err
	}
	if err := makeHostPaths(c.GetMounts()); err != nil {
		return "", err
	}
	foreign := premount.InOtherMountNS(premount.ParentPID(pod.Pid)) // who starts containers
	if !foreign {
		if err := checkPropagation(c.GetMounts()); err != nil {
			return "", err
		}
	}
	name := order.Name.String()
	done, err := s.turns.Lock(ctx, name)
	if err != nil {
		return "", err
	}
	defer done()
	if made := s.claim(ctx, name, pod.ID(), c); made != nil {
		return made.ID(), nil
	}
	hidden := s.view.Hide(name)
	defer hidden.Reveal()

	// Finished even if the caller hangs up meanwhile: a request that is called
	// off half-way leaves the Engine with a container that nobody knows.
	caller, forget := watch(ctx)
	defer forget()
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), createLimit)
	defer cancel()
	defer s.beginStaging(ask.Stage)()
	var steps rollback.Stack
	defer steps.Rollback(work, &err)
	if len(order.Staged) > 0 {
		steps.Push("unmount the mounts of the container", func(ctx context.Context) error { return s.unstage(ctx, docker, ask.Stage) })
		if foreign {
			return "", fmt.Errorf("mount_options, and what else Docker has no words for, need a Docker without a mount namespace of its own (PrivateMounts, MountFlags and the like in its unit): %w", errdefs.ErrFailedPrecondition)
		}
		if err := s.stage(work, docker, ask, order.Staged); err != nil {
			return "", err
		}
	}
	log := logFile{dir: ask.Pod.GetLogDirectory()}
	if log.path, err = todocker.LogPath(ask.Pod, c); err != nil {
		return "", err
	}
	id, err := s.create(work, docker, order, log.dir, hidden)
	if err != nil {
		return "", err
	}
	steps.Push("remove container "+id, func(ctx context.Context) error { return s.discard(ctx, docker, id, log, names.Premount{}) })
	for _, step := range []func() error{
		func() error { return nil },
		func() error { return findSubPaths(work, docker, id, order.Host.Mounts) },
		func() error { return s.relabel(work, docker, pod, id, c.GetMounts()) },
		func() error { return s.openLog(docker, id, log) },
		func() error {
			_, err := s.view.Refresh(work, id)
			return err
		},
		func() error { return s.sandboxIsThere(work, pod.ID()) },
	} {
		if err := step(); err != nil {
			return "", err
		}
		// Nobody would know of a container whose caller has hung up.
		if err := caller.hungUp(); err != nil {
			return "", err
		}
	}
	if caller.ranOut() {
		s.setAside(name, late{id: id, sandbox: pod.ID(), config: c, hidden: hidden.Keep()})
	}
	return id, nil
}

// openLog begins the log of the container id, if it has one.
func (s *Service) openLog(docker *engine.Conn, id string, log logFile) error {
	if log.path == "" {
		return nil
	}
	if err := s.logs.Open(id, jsonFile(docker, id), log.dir, log.path); err != nil {
		return fmt.Errorf("log of container %s: %w", id, err)
	}
	return nil
}

// sandboxIsThere fails if a sandbox has been removed meanwhile. The removal looks
// for containers once more when the sandbox is gone, so one of the two sees the
// other.
func (s *Service) sandboxIsThere(ctx context.Context, id string) error {
	_, err := s.view.Sandbox(ctx, id)
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("sandbox %s was removed meanwhile: %w", id, errdefs.ErrFailedPrecondition)
	}
	return err
}

// jsonFile is where the Engine writes the output of a container. Engines tell
// only once it is started.
func jsonFile(docker *engine.Conn, id string) string {
	return filepath.Join(docker.Features.RootDir, "containers", id, id+"-json.log")
}

// ask gathers what an order for a container needs.
func (s *Service) ask(ctx context.Context, docker *engine.Conn, pod *cache.Sandbox, c *runtimeapi.ContainerConfig, given *runtimeapi.PodSandboxConfig) (todocker.ContainerParams, error) {
	ask := todocker.ContainerParams{
		Pod: pod.Config, Config: c, SandboxID: pod.ID(), SandboxLabel: pod.Label, Runtime: pod.Runtime, CgroupParent: pod.CgroupParent,
		Files: s.files.Of(pod.ID()), Volumes: map[string]todocker.Volume{}, Stage: names.NewStage(), Stages: s.stages, Can: docker.Features, Log: s.logs.Driver(),
	}
	if ask.Log.Type == "" && docker.Features.LoggingDriver == "none" {
		return ask, fmt.Errorf("container-logs is follow, but the log driver of Docker is none and keeps nothing to follow: set another log-driver in daemon.json: %w", errdefs.ErrFailedPrecondition)
	}
	ask.Can.LowestOOMScore = docker.OOMFloor()
	if !pod.Ours && given.GetMetadata().GetName() != "" {
		ask.Pod = given // cri-dockerd has written down less than is needed
	}
	spec := c.GetImage()
	if spec.GetImage() == "" {
		return ask, fmt.Errorf("container without an image: %w", errdefs.ErrInvalidArgument)
	}
	if ask.ImageName = spec.GetUserSpecifiedImage(); ask.ImageName == "" {
		ask.ImageName = spec.GetImage()
	}
	image, err := s.images.Resolve(ctx, spec.GetImage(), ask.ImageName)
	if err != nil {
		return ask, err
	}
	ask.ImageID, ask.ImageRef, ask.HasCommand, ask.ImageUser = image.ID, image.Ref, image.HasCommand, image.User
	if ask.Accounts, err = s.images.Accounts(ctx, image.ID); err != nil {
		return ask, err
	}
	for _, m := range c.GetMounts() {
		if ref := m.GetImage().GetImage(); ref != "" {
			volume, err := s.images.Resolve(ctx, ref, ref)
			if err != nil {
				return ask, fmt.Errorf("ImageVolumeMountFailed: %w", err)
			}
			ask.Volumes[ref] = todocker.Volume{ID: volume.ID, Ref: volume.Ref, Layers: volume.Layers}
		}
	}
	sc := c.GetLinux().GetSecurityContext()
	if ask.TargetID, err = s.target(ctx, pod, sc.GetNamespaceOptions()); err != nil {
		return ask, err
	}
	ask.Seccomp, err = securityprofile.Load(sc, sc.GetPrivileged())
	return ask, err
}

// target returns the ID of the container whose processes another one of pod is to
// see, "" for none.
func (s *Service) target(ctx context.Context, pod *cache.Sandbox, ns *runtimeapi.NamespaceOption) (string, error) {
	if ns.GetPid() != runtimeapi.NamespaceMode_TARGET {
		return "", nil
	}
	c, err := s.Running(ctx, ns.GetTargetId())
	if err != nil {
		return "", fmt.Errorf("target of the pid namespace: %w", err)
	}
	if c.Row.GetPodSandboxId() != pod.ID() {
		return "", fmt.Errorf("target of the pid namespace: container %s is another pod's: %w", c.ID(), errdefs.ErrInvalidArgument)
	}
	return c.ID(), nil
}

// makeHostPaths makes the directories that are to be mounted and are not
// there, as the kubelet and other runtimes have it.
func makeHostPaths(list []*runtimeapi.Mount) error {
	for _, m := range list {
		if m.GetImage().GetImage() != "" {
			continue
		}
		_, err := os.Stat(m.GetHostPath())
		if errors.Is(err, fs.ErrNotExist) {
			err = os.MkdirAll(m.GetHostPath(), 0o755)
		}
		if err != nil {
			return fmt.Errorf("host_path of mount %q: %w", m.GetContainerPath(), err)
		}
	}
	return nil
}

// checkPropagation finds the host paths below which mounts do not come and go as
// they are to in the container: Docker looks for that when it starts it.
func checkPropagation(list []*runtimeapi.Mount) error {
	for _, m := range list {
		if m.GetImage().GetImage() != "" {
			continue
		}
		if err := premount.CheckPropagation(m.GetHostPath(), todocker.Propagation(m.GetPropagation())); err != nil {
			return fmt.Errorf("propagation of mount %q: %w", m.GetContainerPath(), err)
		}
	}
	return nil
}

// create makes the container, and makes its name free first if what has it is
// an earlier try at the same. logDir is the log directory of the pod.
func (s *Service) create(ctx context.Context, docker *engine.Conn, order todocker.Spec, logDir string, hidden *cache.Hidden) (string, error) {
	for try := 0; ; try++ {
		id, err := s.order(ctx, docker, order)
		if err == nil {
			return id, nil
		}
		if !errdefs.IsConflict(err) || try >= nameTries {
			return "", fmt.Errorf("create container: %w", err)
		}
		free, err := s.conflict(ctx, docker, order, logDir)
		if err != nil {
			return "", err
		}
		if !free {
			order.Name.Suffix = fmt.Sprintf("%08x", rand.Uint32())
			hidden.Add(order.Name.String())
		}
	}
}

// order has the Engine make the container. Where daemon.json has a
// max-buffer-size among its log-opts, the Engine refuses logs that are not
// buffered, and no order can take that option away: then it is to be a large one.
func (s *Service) order(ctx context.Context, docker *engine.Conn, order todocker.Spec) (string, error) {
	created, err := docker.ContainerCreate(ctx, order.Config, order.Host, nil, nil, order.Name.String())
	if err == nil || !errdefs.IsInvalidArgument(err) || order.Host.LogConfig.Config["mode"] == "" {
		return created.ID, err
	}
	host := *order.Host
	host.LogConfig.Config = maps.Clone(host.LogConfig.Config)
	host.LogConfig.Config["mode"], host.LogConfig.Config["max-buffer-size"] = "non-blocking", "64m"
	created, again := docker.ContainerCreate(ctx, order.Config, &host, nil, nil, order.Name.String())
	if errdefs.IsInvalidArgument(again) {
		return "", err // it was not that
	}
	if again == nil {
		s.warnOnce.Do(func() {
			s.log.Warn("daemon.json has max-buffer-size among its log-opts: a container that prints faster than Docker can write loses lines; take it away")
		})
	}
	return created.ID, again
}

// conflict looks into who has the name of an order, and reports whether it
// could make it free.
func (s *Service) conflict(ctx context.Context, docker *engine.Conn, order todocker.Spec, logDir string) (free bool, err error) {
	name := order.Name.String()
	holder, err := docker.ContainerInspect(ctx, name)
	if errdefs.IsNotFound(err) {
		return false, nil // Docker may keep the name of a container that it does not have
	}
	if err != nil {
		return false, fmt.Errorf("who is called %s: %w", name, err)
	}
	said, err := labels.Read(holder)
	switch {
	case err != nil, said.Kind != labels.Container:
		return false, fmt.Errorf("the name %s is taken by container %s, which is no pod's: %w", name, holder.ID, errdefs.ErrAlreadyExists)
	case holder.State.Running:
		return false, fmt.Errorf("container %s is this attempt already, and runs: %w", holder.ID, errdefs.ErrAlreadyExists)
	}
	s.log.Info("removing an earlier try at a container", slog.String("container", holder.ID), slog.String("name", name))
	if err := s.discard(ctx, docker, holder.ID, logFile{logDir, said.LogPath}, said.Stage); err != nil {
		return false, fmt.Errorf("make the name %s free: %w", name, err)
	}
	return true, nil
}
