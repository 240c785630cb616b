package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/changes"
	"berth/core/checkpoint"
	"berth/core/engine"
	"berth/core/hostprobe"
	"berth/core/names"
	"berth/core/nri"
	"berth/core/pending"
	"berth/core/rollback"
	"berth/core/securityprofile"
	"berth/core/todocker"
)

const (
	// runTimeout bounds the set-up of one pod. The kubelet waits for twice its
	// --runtime-request-timeout, 4 minutes by default; on a slow disk Docker and the plugins
	// together may take longer, and the sandbox is kept for the retry then.
	runTimeout = 15 * time.Minute
	// maxCreateRetries bounds how often a missing pause image or a name conflict is
	// resolved before the create fails.
	maxCreateRetries = 4
)

// Run sets up a pod and returns the ID of its sandbox. If the pod exists and is ready,
// Run returns that sandbox.
//
// On failure, or if the caller cancels, the step that is under way is finished and then
// everything is rolled back. What cannot be rolled back is left to RunGC. If the caller's
// deadline expires, the sandbox is hidden, kept for pending.TTL and returned to the retry.
func (s *Service) Run(ctx context.Context, pod *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	return s.run(ctx, pod, handler, nil)
}

// RunWith is Run for a pod that must not exist yet, and is complete when complete has succeeded with the ID of the sandbox, which is ready.
// If it fails, or berthd is killed meanwhile, the sandbox is removed with all containers in it. complete must not call the Service.
//
// The error is of kind AlreadyExists if the pod exists. ctx must have no deadline: a caller that does not retry cancels.
func (s *Service) RunWith(ctx context.Context, pod *runtimeapi.PodSandboxConfig, handler string, complete func(id string) error) (string, error) {
	return s.run(ctx, pod, handler, complete)
}

func (s *Service) run(ctx context.Context, pod *runtimeapi.PodSandboxConfig, handler string, complete func(id string) error) (_ string, err error) {
	start := time.Now()
	docker, err := s.docker.Conn()
	if err != nil {
		return "", err
	}
	spec, err := s.translate(docker, pod, handler)
	if err != nil {
		return "", err
	}
	in := &intent{Name: spec.Name.String()}

	defer s.triggerGCIfUnfinished(in.Name) // after the lock is released
	unlock, err := s.locks.Lock(ctx, in.Name)
	if err != nil {
		return "", err
	}
	defer unlock()
	if id, err := s.takePending(ctx, in.Name, pod, handler); err != nil || id != "" {
		return existing(id, err, complete)
	}
	suffix := fmt.Sprintf("%08x", rand.Uint32()) // used if the name is taken
	var sync nri.SyncBlock
	defer sync.Unblock() // once the sandbox is not hidden any more
	hidden := s.cache.Hide(in.Name)
	hidden.Add(withSuffix(in.Name, suffix))
	defer hidden.Reveal()
	if err := s.cleanupUnfinished(ctx, docker, in.Name); err != nil {
		return "", fmt.Errorf("clean up after an earlier call: %w", err)
	}

	caller, stopWatching := pending.WatchCaller(ctx)
	defer stopWatching()
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), runTimeout)
	defer cancel()
	var undo rollback.Stack
	defer undo.Rollback(work, &err)

	ready, err := s.create(work, docker, pod, spec, in, suffix, &undo)
	if err != nil || ready != "" {
		return existing(ready, err, complete)
	}
	if err := s.start(work, docker, pod, spec, in); err != nil {
		return "", err
	}
	addrs, err := s.setUp(work, docker, pod, in, caller)
	if err != nil {
		return "", err
	}
	if err := s.announce(work, in.ID, &sync); err != nil {
		return "", err
	}
	if complete != nil && caller.Canceled() == nil {
		hidden.Reveal() // before plugins can be synchronized, which containers wait for
		sync.Unblock()
		if err := complete(in.ID); err != nil {
			return "", err
		}
	}
	if err := caller.Canceled(); err != nil {
		return "", err
	}
	if err := s.state.intents.Delete(in.Name); err != nil {
		return "", err
	}
	s.log.Info("pod created", changes.Pod(in.ID, pod.GetMetadata()), changes.Addresses(addrs), changes.Took(start))
	if caller.TimedOut() {
		s.pending.Put(in.Name, in.ID, pendingSandbox{config: pod, handler: handler, hidden: hidden.Transfer()})
	}
	return in.ID, nil
}

// existing is the result of a call that has found the sandbox id, or has failed.
func existing(id string, err error, complete func(id string) error) (string, error) {
	if err == nil && complete != nil {
		return "", fmt.Errorf("sandbox %s of this pod exists: remove it first: %w", id, errdefs.ErrAlreadyExists)
	}
	return id, err
}

// setUp attaches the sandbox, which has been started, to the network, and writes its files.
func (s *Service) setUp(ctx context.Context, docker *engine.Conn, pod *runtimeapi.PodSandboxConfig, in *intent, caller *pending.Caller) ([]netip.Addr, error) {
	if err := caller.Canceled(); err != nil {
		return nil, err
	}
	found, addrs, err := s.setupNetwork(ctx, docker, pod, in)
	if err != nil {
		return nil, err
	}
	s.openSysfs(pod, in.ID, found.State.Pid)
	if err := s.writeFiles(in.ID, pod, addrs, found); err != nil {
		return nil, err
	}
	if err := caller.Canceled(); err != nil {
		return nil, err
	}
	_, err = s.cache.Refresh(ctx, in.ID)
	return addrs, err
}

// announce sends NRI plugins the sandbox id, which is complete. If it is rolled back after that, they are sent its end.
func (s *Service) announce(ctx context.Context, id string, sync *nri.SyncBlock) error {
	pod, err := s.cache.Sandbox(ctx, id)
	if err != nil {
		return err
	}
	if err := s.nri.BlockSync(ctx, sync); err != nil {
		return err
	}
	return s.nri.RunPodSandbox(ctx, pod)
}

// A pendingSandbox is a sandbox that waits for a retry of RunPodSandbox, and hidden until then.
type pendingSandbox struct {
	config  *runtimeapi.PodSandboxConfig
	handler string
	hidden  *cache.Hidden
}

// takePending returns the sandbox that was created under the name for an earlier request, "" if there is
// none. One that was created for a different request is removed: its ID was never returned. The caller
// holds the lock of the name.
func (s *Service) takePending(ctx context.Context, name string, pod *runtimeapi.PodSandboxConfig, handler string) (id string, err error) {
	id, p, ok := s.pending.Take(name)
	if !ok {
		return "", nil
	}
	if p.handler != handler || !proto.Equal(p.config, pod) {
		if err := s.removePending(ctx, id, p); err != nil {
			s.pending.Put(name, id, p)
			return "", fmt.Errorf("remove the sandbox of an earlier request: %w", err)
		}
		return "", nil
	}
	p.hidden.Reveal()
	if found, err := s.cache.Sandbox(ctx, id); err != nil || found.Row.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return "", nil //nolint:nilerr // it was removed or has ended: another one is created
	}
	return id, nil
}

// removePending removes a sandbox that no retry has claimed. The caller holds the lock of its name.
func (s *Service) removePending(ctx context.Context, id string, p pendingSandbox) error {
	docker, err := s.docker.Conn()
	if err != nil {
		return err
	}
	pod, err := s.cache.Sandbox(ctx, id)
	if err == nil {
		err = s.remove(ctx, docker, pod)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	p.hidden.Reveal()
	return nil
}

// translate returns the pause container of a pod, but for its image.
func (s *Service) translate(docker *engine.Conn, pod *runtimeapi.PodSandboxConfig, handler string) (todocker.Spec, error) {
	seccomp, err := securityprofile.Load(pod.GetLinux().GetSecurityContext(), false)
	if err != nil {
		return todocker.Spec{}, err
	}
	files, err := s.specFiles.Sandbox(handler)
	if err != nil {
		return todocker.Spec{}, err
	}
	return todocker.Sandbox(todocker.SandboxParams{
		Pod: pod, Handler: handler, Features: docker.Features, Policy: s.policy, Seccomp: seccomp, Bridge: s.bridge,
		OOMScore: max(todocker.PauseOOMScore, docker.OOMFloor()), NodeSysctls: hostprobe.SysctlsOn("/proc/sys", todocker.NodeSysctls...),
		ShimGroup: names.NewShimGroup(), UserNS: s.oci.Support(), Files: files,
	})
}

// create creates the pause container, with suffix in its name if the name without one is
// taken. If the pod exists and is ready, it returns the ID of that sandbox.
func (s *Service) create(ctx context.Context, docker *engine.Conn, pod *runtimeapi.PodSandboxConfig, spec todocker.Spec, in *intent, suffix string, undo *rollback.Stack) (ready string, err error) {
	for try := 0; ; try++ {
		if spec.Config.Image, err = s.images.Pause(ctx); err != nil {
			return "", fmt.Errorf("pause image: %w", err)
		}
		if try == 0 {
			if err := s.state.intents.Put(in.Name, *in); err != nil {
				return "", err
			}
			undo.Push("remove sandbox "+in.Name, func(ctx context.Context) error { return s.cleanupIntent(ctx, docker, in) })
		}
		err := s.createContainer(ctx, docker, pod, spec, in)
		switch {
		case err == nil:
			return "", nil
		case errdefs.IsNotFound(err) && try < maxCreateRetries:
			s.images.ForgetPause() // the image was removed since: Pause pulls or builds it again
		case errdefs.IsConflict(err) && try < maxCreateRetries:
			ready, free, err := s.resolveNameConflict(ctx, docker, in)
			switch {
			case err != nil:
				return "", err
			case ready != "":
				return ready, s.state.intents.Delete(in.Name)
			case !free:
				in.Suffix = suffix
				if err := s.state.intents.Put(in.Name, *in); err != nil {
					return "", err
				}
			}
		default:
			return "", fmt.Errorf("create sandbox: %w", err)
		}
	}
}

// createContainer creates the pause container and stores its ID and checkpoint.
func (s *Service) createContainer(ctx context.Context, docker *engine.Conn, pod *runtimeapi.PodSandboxConfig, spec todocker.Spec, in *intent) error {
	short, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	created, err := docker.ContainerCreate(short, spec.Config, spec.Host, nil, nil, in.dockerName())
	if err != nil {
		return err
	}
	in.ID = created.ID
	if err := s.state.intents.Put(in.Name, *in); err != nil {
		return err
	}
	if err := s.oci.Write(in.ID, 0, spec.Instructions); err != nil {
		return err
	}
	return s.checkpoints.Write(in.ID, checkpoint.Of(pod, todocker.HostNetwork(pod)))
}

// findReady returns the ID of a ready sandbox whose Docker name without a suffix is name,
// "" if there is none.
func (s *Service) findReady(ctx context.Context, name string) string {
	pods, err := s.cache.Sandboxes(ctx, nil)
	if err != nil {
		return "" // then another one is created
	}
	for _, pod := range pods {
		if names.WithoutSuffix(pod.Name) == name && pod.Row.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY {
			return pod.ID()
		}
	}
	return ""
}

// resolveNameConflict inspects the container that has the name of the sandbox. It returns its
// ID if that is the requested pod and ready. Otherwise the old sandbox is removed, and
// free tells whether the name can be used now.
func (s *Service) resolveNameConflict(ctx context.Context, docker *engine.Conn, in *intent) (ready string, free bool, err error) {
	name := in.dockerName()
	holder, err := inspect(ctx, docker, name)
	switch {
	case errdefs.IsNotFound(err):
		// Docker can keep the name of a container that it does not have any more.
		return s.findReady(ctx, in.Name), false, nil
	case err != nil:
		return "", false, fmt.Errorf("inspect the container with the name %s: %w", name, err)
	case !isSandbox(holder):
		return "", false, fmt.Errorf("the name %s is taken by container %s, which is no sandbox: %w", name, holder.ID, errdefs.ErrAlreadyExists)
	}
	if _, err := s.cache.Refresh(ctx, holder.ID); err != nil && !errdefs.IsNotFound(err) {
		return "", false, err
	}
	old, err := s.cache.Sandbox(ctx, holder.ID)
	switch {
	case errdefs.IsNotFound(err): // removed meanwhile
		return "", true, nil
	case err != nil:
		return "", false, err // it may be ready
	case old.Row.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY:
		return holder.ID, false, nil
	}
	s.log.Info("removing an earlier sandbox that is not ready", slog.String("sandbox", holder.ID), slog.String("name", name))
	// As RemovePodSandbox does it, with its containers and its network, even if there is
	// no record of a network.
	if err := s.remove(ctx, docker, old); err != nil {
		return "", false, fmt.Errorf("remove the sandbox that has the name %s: %w", name, err)
	}
	return "", true, nil
}

// start starts the pause container. If that fails, the Engine may lack the privilege to
// lower oom_score_adj: then the container is created again with 0.
func (s *Service) start(ctx context.Context, docker *engine.Conn, pod *runtimeapi.PodSandboxConfig, spec todocker.Spec, in *intent) error {
	err := startContainer(ctx, docker, in.ID)
	if err == nil || spec.Host.OomScoreAdj >= 0 || engine.OutcomeUnknown(err) {
		return err
	}
	first := err
	if err := errors.Join(docker.ForceRemove(ctx, in.ID), s.checkpoints.Remove(in.ID), s.oci.Remove(in.ID)); err != nil {
		return errors.Join(first, err)
	}
	s.cache.Forget(in.ID)
	spec.Host.OomScoreAdj = 0
	if err := s.createContainer(ctx, docker, pod, spec, in); err != nil {
		return errors.Join(first, err)
	}
	if err := startContainer(ctx, docker, in.ID); err != nil {
		return first // the score was not the reason
	}
	docker.RaiseOOMFloor(0)
	s.log.Warn("Docker may not lower oom_score_adj: from now on the pause processes of pods run at 0, and the kernel can kill them before other processes when memory is short")
	return nil
}

func startContainer(ctx context.Context, docker *engine.Conn, id string) error {
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	if err := docker.ContainerStart(ctx, id, container.StartOptions{}); err != nil {
		return fmt.Errorf("start sandbox %s: %w", id, err)
	}
	return nil
}
