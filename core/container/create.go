package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/changes"
	"berth/core/engine"
	"berth/core/labels"
	"berth/core/logs/dockerlog"
	"berth/core/names"
	"berth/core/nri"
	"berth/core/pending"
	"berth/core/premounts"
	"berth/core/relabel"
	"berth/core/restore"
	"berth/core/rollback"
	"berth/core/todocker"
	"berth/core/tracing"
)

const (
	// createTimeout bounds the creation of one container. With a slow disk and a storage driver that copies
	// whole images (vfs), Docker takes minutes.
	createTimeout = 15 * time.Minute
	// maxNameRetries is how often a name that is taken is freed, or replaced by another one.
	maxNameRetries = 4
)

// Create creates a container in a sandbox and returns its ID. On failure, or if the caller cancels, the
// container is removed before Create returns. If the caller's deadline expires, the container is hidden, kept
// for pending.TTL and returned to the retry.
//
// given is the sandbox configuration of the request. It is only used for sandboxes of cri-dockerd, which
// records less of it than is needed.
//
// The error is of kind NotFound if there is no such sandbox or image, FailedPrecondition if the sandbox is not
// ready, and AlreadyExists if a running container, or one that is no pod's, has the name.
func (s *Service) Create(ctx context.Context, sandboxID string, c *runtimeapi.ContainerConfig, given *runtimeapi.PodSandboxConfig) (string, error) {
	docker, err := s.engine.Conn()
	if err != nil {
		return "", err
	}
	pod, err := s.readySandbox(ctx, sandboxID)
	if err != nil {
		return "", err
	}
	params, checkpoint, err := s.params(ctx, docker, pod, c, given)
	if err != nil {
		return "", err
	}
	spec, err := todocker.Container(params)
	if err != nil {
		return "", err
	}
	if err := premounts.CreateHostPaths(c.GetMounts()); err != nil {
		return "", err
	}
	if err := premounts.Check(pod, params, spec); err != nil {
		return "", err
	}
	name := spec.Name.String()
	unlock, err := s.locks.Lock(ctx, name)
	if err != nil {
		return "", err
	}
	defer unlock()
	if id, ok := s.takePending(ctx, name, pod.ID(), c); ok {
		return id, nil
	}
	return s.createAdjusted(ctx, docker, pod, given, attempt{request: c, params: params, spec: spec, checkpoint: checkpoint})
}

// readySandbox returns a sandbox in which containers can be created.
func (s *Service) readySandbox(ctx context.Context, id string) (*cache.Sandbox, error) {
	pod, err := s.cache.Sandbox(ctx, id)
	if err != nil {
		return nil, err
	}
	if pod.Row.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return nil, fmt.Errorf("sandbox %s is not ready: %w", pod.ID(), errdefs.ErrFailedPrecondition)
	}
	if pod.Pid == 0 {
		// A container gets its runtime, cgroup and SELinux label from its sandbox. Docker's list has none of them.
		return nil, fmt.Errorf("sandbox %s has not been inspected since berthd connected to docker: %w", pod.ID(), errdefs.ErrUnavailable)
	}
	return pod, nil
}

// takePending returns the container that was created under the name for an earlier request, if that was the
// same request and the container is as it was. The caller holds the lock of the name.
func (s *Service) takePending(ctx context.Context, name, sandboxID string, config *runtimeapi.ContainerConfig) (id string, ok bool) {
	id, p, ok := s.pending.Take(name)
	if !ok {
		return "", false
	}
	defer p.hidden.Reveal()
	if p.sandboxID != sandboxID || !proto.Equal(p.config, config) {
		return "", false
	}
	c, err := s.cache.Container(ctx, id)
	return id, err == nil && c.Row.GetState() == runtimeapi.ContainerState_CONTAINER_CREATED
}

// removePending removes a container that no retry has asked for.
func (s *Service) removePending(ctx context.Context, id string, p pendingContainer) error {
	if err := s.Remove(ctx, id); err != nil {
		return err
	}
	p.hidden.Reveal()
	return nil
}

// An attempt is one creation of a container.
type attempt struct {
	request *runtimeapi.ContainerConfig // of the CRI
	params  todocker.ContainerParams
	spec    todocker.Spec
	applied nri.Created // what NRI plugins change, which params and spec have already

	checkpoint *restore.Checkpoint // that the container is restored from, nil for none
}

// create creates the container of a with its premounts and its log, or nothing. It goes on if the caller
// cancels, and removes the container then: a request that is aborted half-way leaves Docker with a container
// whose ID nobody has been told.
func (s *Service) create(ctx context.Context, docker *engine.Conn, pod *cache.Sandbox, a attempt) (_ string, err error) {
	start, params, spec, name := time.Now(), a.params, a.spec, a.spec.Name.String()
	var sync nri.SyncBlock
	defer sync.Unblock() // once the container is not hidden any more
	hidden := s.cache.Hide(name)
	defer hidden.Reveal()
	caller, stopWatching := pending.WatchCaller(ctx)
	defer stopWatching()
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), createTimeout)
	defer cancel()
	defer s.premounts.Protect(params.PremountName)()
	var steps rollback.Stack
	defer steps.Rollback(work, &err)
	if len(spec.Premounts) > 0 {
		steps.Push("unmount the premounts of the container", func(ctx context.Context) error { return s.premounts.RemoveAll(ctx, docker, params.PremountName) })
		if err := s.premounts.CreateFor(work, docker, params, spec.Premounts); err != nil {
			return "", err
		}
	}
	files, err := s.restores.Unpack(work, a.checkpoint)
	if err != nil {
		return "", err
	}
	defer files.Release()
	steps.Push("remove the files of the checkpoint", func(context.Context) error { return files.Remove() })
	log := logFile{dir: params.Pod.GetLogDirectory()}
	if log.path, err = todocker.LogPath(params.Pod, params.Config); err != nil {
		return "", err
	}
	id, err := s.createFreeingName(work, docker, spec, log.dir, hidden)
	if err != nil {
		return "", err
	}
	steps.Push("remove container "+id, func(ctx context.Context) error { return s.discard(ctx, docker, id, log, names.Premount{}) })
	mounts := params.Config.GetMounts()
	for _, step := range []func() error{
		func() error { return nil }, // the caller may have left already
		func() error {
			if err := premounts.CheckImageSubPaths(work, docker, id, spec.Host.Mounts); err != nil {
				return fmt.Errorf("ImageVolumeMountFailed: image_sub_path: %w", daemonError{err})
			}
			return nil
		},
		func() error { return files.Bind(id) },
		func() error { return s.oci.Write(id, pod.Pid, spec.Instructions) },
		func() error { return relabel.Mounts(work, docker, pod.MountLabel, id, mounts) },
		func() error { return s.openLog(work, docker, id, spec.Host.LogConfig, log) },
		func() error { return s.cache.RefreshUnless(work, id, func(*cache.Container) bool { return true }) },
		func() error { return s.adjustCreated(work, docker, id, a.applied, &sync) },
		func() error { return s.premounts.Complete(params.PremountName, id, spec.Premounts) },
		func() error { return s.requireSandbox(work, pod.ID()) },
	} {
		if err := step(); err != nil {
			return "", err
		}
		if err := caller.Canceled(); err != nil {
			return "", err
		}
	}
	s.nri.PostCreateContainer(work, id)
	s.log.Info("container created", changes.Container(id, name, pod.ID(), params.ImageName), changes.Took(start))
	if caller.TimedOut() {
		s.pending.Put(name, id, pendingContainer{sandboxID: pod.ID(), config: a.request, hidden: hidden.Transfer()})
	}
	return id, nil
}

// openLog begins the log of the container id, if it has one. config is the log driver of the container.
func (s *Service) openLog(ctx context.Context, docker *engine.Conn, id string, config container.LogConfig, log logFile) (err error) {
	if log.path == "" {
		return nil
	}
	_, span := tracing.Start(ctx, "open container log", tracing.ContainerID(id))
	defer func() { span.End(err) }()
	source := dockerlog.FileOf(docker.Features.RootDir, id, config)
	if err := s.logs.Create(id, source, log.dir, log.path); err != nil {
		return fmt.Errorf("log of container %s: %w", id, err)
	}
	return nil
}

// requireSandbox fails if the sandbox has been removed meanwhile. The removal of a sandbox looks for containers
// again after the sandbox is gone, so either it finds this container or it is noticed here.
func (s *Service) requireSandbox(ctx context.Context, id string) error {
	_, err := s.cache.Sandbox(ctx, id)
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("sandbox %s was removed meanwhile: %w", id, errdefs.ErrFailedPrecondition)
	}
	return err
}

// createFreeingName creates the container. If its name is taken by an earlier attempt at the same container,
// that one is removed; if by a container that Docker does not have, the name gets a suffix, which is hidden as
// well. logDir is the log directory of the pod.
func (s *Service) createFreeingName(ctx context.Context, docker *engine.Conn, spec todocker.Spec, logDir string, hidden *cache.Hidden) (string, error) {
	for retry := 0; ; retry++ {
		id, err := s.createContainer(ctx, docker, spec)
		if err == nil {
			return id, nil
		}
		if !errdefs.IsConflict(err) || retry >= maxNameRetries {
			return "", fmt.Errorf("create container: %w", err)
		}
		freed, err := s.freeName(ctx, docker, spec, logDir)
		if err != nil {
			return "", err
		}
		if !freed {
			spec.Name.Suffix = fmt.Sprintf("%08x", rand.Uint32())
			hidden.Add(spec.Name.String())
		}
	}
}

// createContainer sends the request. If daemon.json has max-buffer-size among its log-opts, Docker refuses logs
// that are not buffered, and a request cannot take the option away: then the container gets a large buffer.
func (s *Service) createContainer(ctx context.Context, docker *engine.Conn, spec todocker.Spec) (string, error) {
	created, err := docker.ContainerCreate(ctx, spec.Config, spec.Host, nil, nil, spec.Name.String())
	if warning := engine.Discarded(created.Warnings); spec.Strict && warning != "" {
		return "", errors.Join(fmt.Errorf("docker: %s: %w", warning, errdefs.ErrFailedPrecondition), docker.ForceRemove(ctx, created.ID))
	}
	if err == nil || !errdefs.IsInvalidArgument(err) || spec.Host.LogConfig.Config["mode"] == "" {
		return created.ID, err
	}
	host := *spec.Host
	host.LogConfig.Config = maps.Clone(host.LogConfig.Config)
	host.LogConfig.Config["mode"], host.LogConfig.Config["max-buffer-size"] = "non-blocking", "64m"
	created, retryErr := docker.ContainerCreate(ctx, spec.Config, &host, nil, nil, spec.Name.String())
	if errdefs.IsInvalidArgument(retryErr) {
		return "", err // the log mode was not the reason
	}
	if retryErr == nil {
		s.warnBuffered.Do(func() {
			s.log.Warn("daemon.json has max-buffer-size among its log-opts: a container that prints faster than Docker can write loses lines; remove that option")
		})
	}
	return created.ID, retryErr
}

// freeName removes the container that has the name of spec if it is an earlier attempt at the same container that
// does not run. freed is false if Docker has no container of that name: it may keep the name nevertheless.
func (s *Service) freeName(ctx context.Context, docker *engine.Conn, spec todocker.Spec, logDir string) (freed bool, err error) {
	name := spec.Name.String()
	holder, err := docker.ContainerInspect(ctx, name)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("inspect the container that has the name %s: %w", name, err)
	}
	set, err := labels.Read(holder)
	switch {
	case err != nil, set.Kind != labels.Container:
		return false, fmt.Errorf("the name %s is taken by container %s, which is not a container of a pod: %w", name, holder.ID, errdefs.ErrAlreadyExists)
	case holder.State.Running:
		return false, fmt.Errorf("container %s is running as this attempt already: %w", holder.ID, errdefs.ErrAlreadyExists)
	}
	s.log.Info("removing the container of an earlier attempt, which has the name of the new one", slog.String("container", holder.ID), slog.String("name", name))
	if err := s.discard(ctx, docker, holder.ID, logFile{logDir, set.LogPath}, set.Premount); err != nil {
		return false, fmt.Errorf("free the name %s: %w", name, err)
	}
	return true, nil
}
