package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/names"
	"berth/core/premount"
	"berth/core/rollback"
	"berth/core/securityprofile"
	"berth/core/todocker"
	"berth/network"
)

// runLimit is how long setting up one pod may take: as long as the kubelet
// waits for it.
const runLimit = 4 * time.Minute

// An intent is a sandbox that is being made. It is in the journal from before
// the first step until after the last, so that nothing it has led to is lost
// sight of.
type intent struct {
	Name   string        // of the pause container, but for a suffix
	Suffix string        // of its name, once it turns out to need one
	ID     string        // of the pause container, once it is created
	Plan   *network.Plan // of its network, once attaching begins
}

// called returns what the pause container is called.
func (i *intent) called() string { return suffixed(i.Name, i.Suffix) }

func suffixed(name, suffix string) string {
	if suffix == "" {
		return name
	}
	return name + "_" + suffix
}

// Run sets up a pod and returns the ID of its sandbox. A pod that could not be
// set up completely is taken down again before Run returns; what cannot be
// taken down then KeepClean takes down. A pod that an earlier call has
// set up already is that pod.
//
// The caller may hang up at any time: the step under way is finished, and the
// pod taken down.
func (s *Service) Run(ctx context.Context, pod *runtimeapi.PodSandboxConfig, handler string) (_ string, err error) {
	docker, err := s.docker.Conn()
	if err != nil {
		return "", err
	}
	seccomp, err := securityprofile.Load(pod.GetLinux().GetSecurityContext(), false)
	if err != nil {
		return "", err
	}
	ask := todocker.SandboxParams{
		Pod: pod, Handler: handler, Can: docker.Features, Seccomp: seccomp, Bridge: s.bridge,
		OOMScore: max(todocker.PauseOOMScore, docker.OOMFloor()), NodeSysctls: nodeSysctls("/proc/sys"),
	}
	order, err := todocker.Sandbox(ask)
	if err != nil {
		return "", err
	}
	made := &intent{Name: order.Name.String()}

	defer s.wakeIfLeft(made.Name) // once the turn is given back
	done, err := s.turns.Lock(ctx, made.Name)
	if err != nil {
		return "", err
	}
	defer done()
	suffix := fmt.Sprintf("%08x", rand.Uint32()) // if need be
	hidden := s.cache.Hide(made.Name)
	hidden.Add(suffixed(made.Name, suffix))
	defer hidden.Reveal()
	if err := s.recoverName(ctx, docker, made.Name); err != nil {
		return "", fmt.Errorf("finish what an earlier call left: %w", err)
	}

	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), runLimit)
	defer cancel()
	var steps rollback.Stack
	defer steps.Rollback(work, &err)

	ready, err := s.create(work, docker, ask, made, suffix, &steps)
	if err != nil || ready != "" {
		return ready, err
	}
	if err := s.start(work, docker, ask, made); err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := s.furnish(work, docker, pod, made); err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := s.state.intents.Delete(made.Name); err != nil {
		return "", err
	}
	if _, err := s.cache.Refresh(work, made.ID); err != nil {
		return "", err
	}
	return made.ID, nil
}

// nodeSysctls returns the settings that pods take over from the node, where they are 1.
// dir is /proc/sys. A kernel without IPv6 has none of them.
func nodeSysctls(dir string) map[string]string {
	on := map[string]string{}
	for _, name := range todocker.NodeSysctls {
		text, err := os.ReadFile(filepath.Join(dir, strings.ReplaceAll(name, ".", "/")))
		if value := strings.TrimSpace(string(text)); err == nil && value == "1" {
			on[name] = value
		}
	}
	return on
}

// nameTries is how often a name that is taken is looked into.
const nameTries = 4

// create makes the pause container, under a name with suffix if the plain one is
// not to be had. If the pod turns out to be there already it returns its ID.
func (s *Service) create(ctx context.Context, docker *engine.Conn, ask todocker.SandboxParams, made *intent, suffix string, steps *rollback.Stack) (ready string, err error) {
	for try := 0; ; try++ {
		if ask.Image, err = s.images.Pause(ctx); err != nil {
			return "", fmt.Errorf("pause image: %w", err)
		}
		order, err := todocker.Sandbox(ask)
		if err != nil {
			return "", err
		}
		if try == 0 {
			if err := s.state.intents.Put(made.Name, *made); err != nil {
				return "", err
			}
			steps.Push(func(ctx context.Context) error { return s.takeDown(ctx, docker, made) })
		}
		short, cancel := docker.WithRequestTimeout(ctx)
		created, err := docker.ContainerCreate(short, order.Config, order.Host, nil, nil, made.called())
		cancel()
		switch {
		case err == nil:
			made.ID = created.ID
			if err := s.state.intents.Put(made.Name, *made); err != nil {
				return "", err
			}
			return "", s.checkpoints.Write(made.ID, checkpointOf(ask.Pod))
		case errdefs.IsNotFound(err) && try < nameTries:
			s.images.ForgetPause() // removed under our feet: look for it again
		case errdefs.IsConflict(err) && try < nameTries:
			id, free, err := s.conflict(ctx, docker, made.called())
			switch {
			case err != nil:
				return "", err
			case id != "":
				return id, s.state.intents.Delete(made.Name)
			case !free:
				if id := s.twin(ctx, made.Name); id != "" {
					return id, s.state.intents.Delete(made.Name)
				}
				made.Suffix = suffix
				if err := s.state.intents.Put(made.Name, *made); err != nil {
					return "", err
				}
			}
		default:
			return "", fmt.Errorf("create sandbox: %w", err)
		}
	}
}

// twin returns the ID of a sandbox that is up and has the name but for a suffix, ""
// if there is none.
func (s *Service) twin(ctx context.Context, name string) string {
	pods, err := s.cache.Sandboxes(ctx, nil)
	if err != nil {
		return "" // it can be made as well
	}
	for _, pod := range pods {
		if names.Plain(pod.Name) == name && pod.Row.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY {
			return pod.ID()
		}
	}
	return ""
}

// conflict looks into who has a sandbox's name. It returns the ID of the
// holder if that is the very pod asked for, up and attached, and otherwise
// whether it could make the name free.
func (s *Service) conflict(ctx context.Context, docker *engine.Conn, name string) (ready string, free bool, err error) {
	holder, err := inspect(ctx, docker, name)
	switch {
	case errdefs.IsNotFound(err):
		// Docker may keep the name of a container that it does not have.
		return "", false, nil
	case err != nil:
		return "", false, fmt.Errorf("inspect the container with the name %s: %w", name, err)
	case !isSandbox(holder):
		return "", false, fmt.Errorf("the name %s is taken by container %s, which is no sandbox: %w", name, holder.ID, errdefs.ErrAlreadyExists)
	}
	if _, err := s.cache.Refresh(ctx, holder.ID); err != nil && !errdefs.IsNotFound(err) {
		return "", false, err
	}
	seen, err := s.cache.Sandbox(ctx, holder.ID)
	switch {
	case errdefs.IsNotFound(err): // removed meanwhile
		return "", true, nil
	case err != nil:
		return "", false, err // it may be up and attached
	case seen.Row.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY:
		return holder.ID, false, nil
	}
	s.log.Info("removing what is left of an earlier sandbox", slog.String("sandbox", holder.ID), slog.String("name", name))
	// Removed as the kubelet would have it removed: with its containers, and with its
	// network, of which nothing may be recorded any more.
	if err := s.remove(ctx, docker, seen); err != nil {
		return "", false, fmt.Errorf("make the name %s free: %w", name, err)
	}
	return "", true, nil
}

// start starts the pause container. Where the Engine turns out to be unable to
// give the oom_score_adj that a pause process should have, it makes do with
// the lowest that an unprivileged Engine can.
func (s *Service) start(ctx context.Context, docker *engine.Conn, ask todocker.SandboxParams, made *intent) error {
	err := startContainer(ctx, docker, made.ID)
	if err == nil || ask.OOMScore >= 0 || engine.OutcomeUnknown(err) {
		return err
	}
	first := err
	if err := errors.Join(docker.ForceRemove(ctx, made.ID), s.checkpoints.Remove(made.ID)); err != nil {
		return errors.Join(first, err)
	}
	s.cache.Forget(made.ID)
	ask.OOMScore = 0
	order, err := todocker.Sandbox(ask)
	if err != nil {
		return err
	}
	short, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	created, err := docker.ContainerCreate(short, order.Config, order.Host, nil, nil, made.called())
	if err != nil {
		return errors.Join(first, err)
	}
	made.ID = created.ID
	if err := errors.Join(s.state.intents.Put(made.Name, *made), s.checkpoints.Write(made.ID, checkpointOf(ask.Pod))); err != nil {
		return err
	}
	if err := startContainer(ctx, docker, made.ID); err != nil {
		return first // it was not that
	}
	docker.RaiseOOMFloor(0)
	s.log.Warn("this Docker Engine may not lower oom_score_adj: pods run at 0 from now on, and are killed no later than other processes")
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

// furnish attaches the started sandbox to its network and writes the files of
// the pod.
func (s *Service) furnish(ctx context.Context, docker *engine.Conn, pod *runtimeapi.PodSandboxConfig, made *intent) error {
	seen, err := inspect(ctx, docker, made.ID)
	if err != nil {
		return fmt.Errorf("inspect sandbox %s: %w", made.ID, err)
	}
	if !seen.State.Running {
		return fmt.Errorf("sandbox %s: the pause process has ended with exit code %d: %w", made.ID, seen.State.ExitCode, errdefs.ErrFailedPrecondition)
	}
	var addrs []netip.Addr
	switch {
	case todocker.HostNetwork(pod):
	case s.bridge:
		for _, n := range seen.NetworkSettings.Networks {
			if addr, err := netip.ParseAddr(n.IPAddress); err == nil {
				addrs = append(addrs, addr)
			}
		}
	default:
		if addrs, err = s.attach(ctx, pod, made, seen.State.Pid); err != nil {
			return fmt.Errorf("network of sandbox %s: %w", made.ID, err)
		}
	}
	s.openSysfs(pod, made.ID, seen.State.Pid)
	return s.writeFiles(made.ID, pod, addrs, seen)
}

// openSysfs makes /sys writable for privileged containers of a pod with a network of its own.
// sysfs is one file system per network namespace, and read-only for all its mounts if
// the first one was, which is that of the unprivileged pause process. That of the node's
// network is the node's.
func (s *Service) openSysfs(pod *runtimeapi.PodSandboxConfig, id string, pid int) {
	if !pod.GetLinux().GetSecurityContext().GetPrivileged() || todocker.HostNetwork(pod) {
		return
	}
	if err := premount.WritableSysfs(pid); err != nil {
		s.log.Warn("/sys will be read-only in the privileged containers of a pod", slog.String("sandbox", id), slog.Any("err", err))
	}
}

// attach gives the started sandbox, whose pause process is pid, its network.
func (s *Service) attach(ctx context.Context, pod *runtimeapi.PodSandboxConfig, made *intent, pid int) ([]netip.Addr, error) {
	asked, err := networkPod(made.ID, pod)
	if err != nil {
		return nil, err
	}
	plan, err := s.network.Plan(asked)
	if err != nil {
		return nil, err
	}
	// From here on there may be something to take back, whether or not the
	// plugins get as far as saying so.
	made.Plan = &plan
	if err := s.state.intents.Put(made.Name, *made); err != nil {
		return nil, err
	}
	if _, err := s.network.Bind(made.ID, pid); err != nil {
		return nil, err
	}
	return s.network.Attach(ctx, plan)
}

// networkPod returns what package network has to know of a pod.
func networkPod(id string, pod *runtimeapi.PodSandboxConfig) (network.Pod, error) {
	m := pod.GetMetadata()
	limits, err := todocker.PodBandwidth(pod)
	if err != nil {
		return network.Pod{}, err
	}
	out := network.Pod{
		ID: id, Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(),
		Ingress:     limits.Ingress,
		Egress:      limits.Egress,
		CgroupPath:  pod.GetLinux().GetCgroupParent(),
		Annotations: pod.GetAnnotations(),
		DNS: network.DNS{
			Servers: pod.GetDnsConfig().GetServers(), Searches: pod.GetDnsConfig().GetSearches(), Options: pod.GetDnsConfig().GetOptions(),
		},
	}
	for _, p := range pod.GetPortMappings() {
		if p.GetHostPort() <= 0 {
			continue
		}
		out.Ports = append(out.Ports, network.PortMapping{
			HostPort: p.GetHostPort(), ContainerPort: p.GetContainerPort(),
			Protocol: strings.ToLower(p.GetProtocol().String()), HostIP: p.GetHostIp(),
		})
	}
	return out, nil
}
