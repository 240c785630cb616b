package nri

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/nri/adjust"
	"berth/core/panics"
)

// refused is the error of a plugin about an event.
func refused(event string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("NRI %s: %w", event, err)
}

// warn logs the failure of an event that nothing depends on.
func (r *Runtime) warn(event, id string, err error) {
	if err != nil {
		r.Log.Warn("NRI plugin has failed to handle an event", slog.String("event", event), slog.String("id", id), slog.Any("err", err))
	}
}

// RunPodSandbox sends the event of a pod that is complete. If a plugin refuses it, the pod must be removed.
func (r *Runtime) RunPodSandbox(ctx context.Context, pod *cache.Sandbox) error {
	a, err := r.ready(ctx)
	if a == nil {
		return err
	}
	r.markKnown(pod.ID())
	return refused("RunPodSandbox", a.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: r.pod(pod)}))
}

// UpdatePodSandbox sends the event before the resources of a pod are stored.
func (r *Runtime) UpdatePodSandbox(ctx context.Context, pod *cache.Sandbox, update *runtimeapi.UpdatePodSandboxResourcesRequest) error {
	a, err := r.ready(ctx)
	if a == nil {
		return err
	}
	_, err = a.UpdatePodSandbox(ctx, &api.UpdatePodSandboxRequest{
		Pod: r.pod(pod), OverheadLinuxResources: linuxResources(update.GetOverhead()), LinuxResources: linuxResources(update.GetResources()),
	})
	return refused("UpdatePodSandbox", err)
}

// PostUpdatePodSandbox sends the event after that.
func (r *Runtime) PostUpdatePodSandbox(ctx context.Context, id string) {
	a, err := r.ready(ctx)
	if a == nil || err != nil {
		return
	}
	pod, err := r.Cache.Sandbox(ctx, id)
	if err == nil {
		err = a.PostUpdatePodSandbox(ctx, &api.PostUpdatePodSandboxRequest{Pod: r.pod(pod)})
	}
	r.warn("PostUpdatePodSandbox", id, err)
}

// StopPodSandbox sends the event of a pod whose containers have been stopped, and whose network still exists.
func (r *Runtime) StopPodSandbox(ctx context.Context, pod *cache.Sandbox) {
	if a, err := r.ready(ctx); a != nil && err == nil && r.markStopped(pod.ID()) {
		r.warn("StopPodSandbox", pod.ID(), a.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: r.pod(pod)}))
	}
}

// BeginRemovePod prepares the event of a pod that is about to be removed, whose network still exists if it was not stopped; removed sends
// it.
func (r *Runtime) BeginRemovePod(ctx context.Context, id string) (removed func(context.Context)) {
	a, err := r.ready(ctx)
	if a == nil || err != nil || r.phase(id) == unknown {
		return func(context.Context) { r.forget(id) }
	}
	pod, err := r.Cache.Sandbox(ctx, id)
	if err != nil {
		r.warn("RemovePodSandbox", id, err)
		return func(context.Context) { r.forget(id) }
	}
	r.StopPodSandbox(ctx, pod)
	sent := r.pod(pod)
	return func(ctx context.Context) {
		r.warn("RemovePodSandbox", id, a.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: sent}))
		r.forget(id)
	}
}

// markKnown notes that plugins know a pod or container.
func (r *Runtime) markKnown(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.phases[id] = max(r.phases[id], known)
}

// markStopped notes that the stop of a pod or container is sent. It reports whether it must be: plugins know it, and it is the first time.
func (r *Runtime) markStopped(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	first := r.phases[id] == known
	if first {
		r.phases[id] = stopped
	}
	return first
}

// markRemoving notes that the removal of a container is going to be sent. It reports whether it must be.
func (r *Runtime) markRemoving(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.phases[id]
	if before != unknown {
		r.phases[id] = removing
	}
	return before != unknown
}

func (r *Runtime) phase(id string) phase {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.phases[id]
}

// forget forgets a pod or container that has been removed.
func (r *Runtime) forget(id string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.phases, id)
}

// A Created is the answer of the plugins to the creation of a container. The zero value is that of no plugins.
type Created struct {
	adjust.Change
	updates   []*api.ContainerUpdate
	requested *api.Container // as it was sent to plugins
}

// again returns the requested container for the event of another one with this ID. What plugins have changed in that one is not shown to them
// as if it was requested: they would change it once more.
func (c Created) again(now *api.Container) *api.Container {
	if c.requested == nil {
		return now
	}
	out := proto.CloneOf(c.requested)
	out.Id, out.CreatedAt = now.GetId(), now.GetCreatedAt()
	if out.Linux != nil {
		out.Linux.CgroupsPath = now.GetLinux().GetCgroupsPath()
	}
	return out
}

// CreateContainer sends the event of a container that exists in Docker, by which plugins learn its ID, and is not used yet. The
// caller applies what they change, and then calls Finish. before is what plugins have changed in the container that this one replaces, if it does.
func (r *Runtime) CreateContainer(ctx context.Context, id string, before Created) (none Created, _ error) {
	none.Change = adjust.New(nil, "", nil, false)
	a, err := r.ready(ctx)
	if err != nil {
		return none, err
	}
	if a == nil {
		if r != nil && r.failed != nil && r.Validator.Enable {
			return none, fmt.Errorf("the NRI validator, which is on, does not run: %w: %w", r.failed, errdefs.ErrFailedPrecondition)
		}
		return none, nil
	}
	pod, c, err := r.objects(ctx, id)
	if err != nil {
		return none, err
	}
	c = before.again(c)
	requested := proto.CloneOf(c)                  // the library adds to c what each plugin changes
	unlock, err := r.requests.Lock(ctx, createKey) // one at a time, as in the library: for the recording
	if err != nil {
		return none, err
	}
	defer unlock()
	r.markKnown(id)
	found := &recording{}
	r.setRecording(found)
	defer r.setRecording(nil)
	var response *api.CreateContainerResponse
	err = panics.Try(r.Log, func() (err error) {
		response, err = a.CreateContainer(ctx, &api.CreateContainerRequest{Pod: pod, Container: c})
		return err
	})
	if err != nil {
		return none, refused("CreateContainer", err)
	}
	return Created{adjust.New(found.addRemovals(response.GetAdjust()), id, found.plugins, found.unknown), response.GetUpdate(), requested}, nil
}

// createKey is the key of requests for creations. IDs of containers have no slash.
const createKey = "/create"

func (r *Runtime) setRecording(found *recording) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.recording = found
}

// Finish applies what plugins change in other containers because of one that has been created as they want it, and records the latter.
func (r *Runtime) Finish(ctx context.Context, id string, created Created) error {
	if r == nil {
		return nil
	}
	if err := r.updateOthers(ctx, created.updates); err != nil {
		return err
	}
	if created.Empty() {
		return nil
	}
	return r.Records.Put(id, Record{Plugins: created.Plugins(), Fields: created.Fields()})
}

// objects returns a container and its pod for plugins.
func (r *Runtime) objects(ctx context.Context, id string) (*api.PodSandbox, *api.Container, error) {
	c, err := r.Cache.Container(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	pod, err := r.Cache.Sandbox(ctx, c.Row.GetPodSandboxId())
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, nil, err
	}
	if pod == nil {
		return &api.PodSandbox{Id: c.Row.GetPodSandboxId()}, r.container(ctx, c), nil
	}
	return r.pod(pod), r.container(ctx, c), nil
}

// event sends one event of a container that plugins can refuse.
func (r *Runtime) event(ctx context.Context, name, id string, send func(*adaptation.Adaptation, *api.PodSandbox, *api.Container) error) error {
	a, err := r.ready(ctx)
	if a == nil {
		return err
	}
	pod, c, err := r.objects(ctx, id)
	if err != nil {
		return err
	}
	return refused(name, panics.Try(r.Log, func() error { return send(a, pod, c) }))
}

// PostCreateContainer sends the event of a container that is complete.
func (r *Runtime) PostCreateContainer(ctx context.Context, id string) {
	r.warn("PostCreateContainer", id, r.event(ctx, "PostCreateContainer", id, func(a *adaptation.Adaptation, pod *api.PodSandbox, c *api.Container) error {
		return a.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: pod, Container: c})
	}))
}

// BeginStart sends the event of a container that is about to start, unless a plugin refuses it. The caller calls ended after the start, which
// sends PostStartContainer if it has started. Meanwhile the stop of the container is not sent, also if it exits at once.
func (r *Runtime) BeginStart(ctx context.Context, id string) (ended func(ctx context.Context, started bool), err error) {
	nothing := func(context.Context, bool) {}
	if a, err := r.ready(ctx); a == nil {
		return nothing, err
	}
	unlock, err := r.requests.Lock(ctx, id)
	if err != nil {
		return nothing, err
	}
	err = r.event(ctx, "StartContainer", id, func(a *adaptation.Adaptation, pod *api.PodSandbox, c *api.Container) error {
		return a.StartContainer(ctx, &api.StartContainerRequest{Pod: pod, Container: c})
	})
	if err != nil {
		unlock()
		return nothing, err
	}
	return func(ctx context.Context, started bool) {
		defer unlock()
		if started {
			r.warn("PostStartContainer", id, r.event(ctx, "PostStartContainer", id, func(a *adaptation.Adaptation, pod *api.PodSandbox, c *api.Container) error {
				return a.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: pod, Container: c})
			}))
		}
	}, nil
}

// UpdateContainer sends the event of an update that is about to be applied, and returns what the plugins make of it. Updates of other
// containers are applied before it returns, so that the caller must not hold the lock of a container.
func (r *Runtime) UpdateContainer(ctx context.Context, id string, change *runtimeapi.LinuxContainerResources) (out adjust.Resources, err error) {
	out.CRI = change
	err = r.event(ctx, "UpdateContainer", id, func(a *adaptation.Adaptation, pod *api.PodSandbox, c *api.Container) error {
		response, err := a.UpdateContainer(ctx, &api.UpdateContainerRequest{Pod: pod, Container: c, LinuxResources: linuxResources(change)})
		if err != nil {
			return err
		}
		var others []*api.ContainerUpdate
		for _, u := range response.GetUpdate() {
			switch {
			case u == nil:
			case u.GetContainerId() == c.GetId():
				if out, err = r.updated(u, change); err != nil {
					return err
				}
			default:
				others = append(others, u)
			}
		}
		return r.updateOthers(ctx, others)
	})
	return out, err
}

// updated returns the update that plugins have made of change.
func (r *Runtime) updated(u *api.ContainerUpdate, change *runtimeapi.LinuxContainerResources) (adjust.Resources, error) {
	docker, err := r.Engine.Conn()
	if err != nil {
		return adjust.Resources{}, err
	}
	out, err := adjust.NewResources(u.GetLinux().GetResources(), docker.Features)
	if err == nil {
		out.CRI.OomScoreAdj = change.GetOomScoreAdj() // NRI has no field for it
	}
	return out, err
}

// PostUpdateContainer sends the event of a container that has been updated.
func (r *Runtime) PostUpdateContainer(ctx context.Context, id string) {
	r.warn("PostUpdateContainer", id, r.event(ctx, "PostUpdateContainer", id, func(a *adaptation.Adaptation, pod *api.PodSandbox, c *api.Container) error {
		return a.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: pod, Container: c})
	}))
}

// StopContainer sends the event of a container that has stopped, once. Another call for it waits until it is sent.
func (r *Runtime) StopContainer(ctx context.Context, id string) {
	if a, err := r.ready(ctx); a == nil || err != nil {
		return
	}
	unlock, err := r.requests.Lock(ctx, id)
	if err != nil {
		return
	}
	defer unlock()
	if !r.markStopped(id) {
		return
	}
	err = r.event(ctx, "StopContainer", id, func(a *adaptation.Adaptation, pod *api.PodSandbox, c *api.Container) error {
		response, err := a.StopContainer(ctx, &api.StopContainerRequest{Pod: pod, Container: c})
		if err != nil {
			return err
		}
		return r.updateOthers(ctx, slices.DeleteFunc(response.GetUpdate(), func(u *api.ContainerUpdate) bool { return u.GetContainerId() == id }))
	})
	if !errdefs.IsNotFound(err) {
		r.warn("StopContainer", id, err)
	}
}

// BeginRemove prepares the event of a container that is about to be removed; removed sends it, after that of its stop.
func (r *Runtime) BeginRemove(ctx context.Context, id string) (removed func(context.Context)) {
	forget := func(context.Context) { r.forget(id) }
	a, err := r.ready(ctx)
	if a == nil || err != nil || r.phase(id) == unknown {
		return forget
	}
	r.StopContainer(ctx, id)
	pod, sent, err := r.objects(ctx, id)
	if err != nil {
		r.warn("RemoveContainer", id, err)
		return forget
	}
	if !r.markRemoving(id) {
		return forget
	}
	return func(ctx context.Context) { r.sendRemoved(ctx, a, pod, sent) }
}

func (r *Runtime) sendRemoved(ctx context.Context, a *adaptation.Adaptation, pod *api.PodSandbox, c *api.Container) {
	c.State = api.ContainerState_CONTAINER_STOPPED
	r.warn("RemoveContainer", c.GetId(), panics.Try(r.Log, func() error {
		return a.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: pod, Container: c})
	}))
	r.forget(c.GetId())
}

// watch sends the stop of containers that exit by themselves, and the removal of those that are removed without berth, until ctx ends.
func (r *Runtime) watch(ctx context.Context) error {
	_ = r.Cache.Subscribe(ctx, func(e *runtimeapi.ContainerEventResponse) error {
		if e.GetContainerId() != e.GetPodSandboxStatus().GetId() {
			_ = panics.Try(r.Log, func() error { r.handle(ctx, e); return nil })
		}
		return nil
	})
	<-ctx.Done()
	return nil
}

func (r *Runtime) handle(ctx context.Context, e *runtimeapi.ContainerEventResponse) {
	id := e.GetContainerId()
	switch e.GetContainerEventType() {
	case runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT:
		r.StopContainer(ctx, id)
	case runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT:
		a, err := r.ready(ctx)
		if phase := r.phase(id); a == nil || err != nil || phase == removing || !r.markRemoving(id) {
			return
		}
		pod := &api.PodSandbox{Id: e.GetPodSandboxStatus().GetId()}
		if found, err := r.Cache.Sandbox(ctx, pod.GetId()); err == nil {
			pod = r.pod(found)
		}
		r.sendRemoved(ctx, a, pod, &api.Container{Id: id, PodSandboxId: pod.GetId()})
	default:
	}
}
