// Package nritest has a fake NRI plugin for tests. It connects to a socket as real ones do.
package nritest

import (
	"context"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

// A Plugin is a plugin that records its events as "Event ID". The functions may be nil; they are set before it connects, or while no event is sent.
type Plugin struct {
	Stub stub.Stub

	// Create and Update answer CreateContainer and UpdateContainer.
	Create func(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	Update func(*api.Container, *api.LinuxResources) ([]*api.ContainerUpdate, error)
	// Removed is called with RemoveContainer.
	Removed func(*api.Container) error

	mu     sync.Mutex               // guards following
	On     func(event string) error // called with each event; an error refuses it
	events []string
	ids    []string
	synced []string
}

func (p *Plugin) event(name, id string) error {
	p.mu.Lock()
	p.events = append(p.events, name+" "+id)
	on := p.On
	p.mu.Unlock()
	if on != nil {
		return on(name)
	}
	return nil
}

// Take returns the events since the last Take. Each ID is replaced by its name.
func (p *Plugin) Take(names ...string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := strings.Join(p.events, "\n")
	p.events = nil
	return strings.NewReplacer(names...).Replace(text)
}

// Created returns the IDs of containers in CreateContainer.
func (p *Plugin) Created() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.ids)
}

// Synchronize records the event.
func (p *Plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pod := range pods {
		p.synced = append(p.synced, pod.GetId())
	}
	for _, c := range containers {
		p.synced = append(p.synced, c.GetId())
	}
	return nil, nil
}

// RunPodSandbox records the event.
func (p *Plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.event("RunPodSandbox", pod.GetId())
}

// UpdatePodSandbox records the event.
func (p *Plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, _, _ *api.LinuxResources) error {
	return p.event("UpdatePodSandbox", pod.GetId())
}

// PostUpdatePodSandbox records the event.
func (p *Plugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.event("PostUpdatePodSandbox", pod.GetId())
}

// StopPodSandbox records the event.
func (p *Plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.event("StopPodSandbox", pod.GetId())
}

// RemovePodSandbox records the event.
func (p *Plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.event("RemovePodSandbox", pod.GetId())
}

// CreateContainer records the event.
func (p *Plugin) CreateContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.mu.Lock()
	p.ids = append(p.ids, c.GetId())
	p.mu.Unlock()
	if err := p.event("CreateContainer", c.GetId()); err != nil || p.Create == nil {
		return nil, nil, err
	}
	return p.Create(ctx, pod, c)
}

// PostCreateContainer records the event.
func (p *Plugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.event("PostCreateContainer", c.GetId())
}

// StartContainer records the event.
func (p *Plugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.event("StartContainer", c.GetId())
}

// PostStartContainer records the event.
func (p *Plugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.event("PostStartContainer", c.GetId())
}

// UpdateContainer records the event.
func (p *Plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	if err := p.event("UpdateContainer", c.GetId()); err != nil || p.Update == nil {
		return nil, err
	}
	return p.Update(c, r)
}

// PostUpdateContainer records the event.
func (p *Plugin) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.event("PostUpdateContainer", c.GetId())
}

// StopContainer records the event.
func (p *Plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.event("StopContainer", c.GetId())
}

// RemoveContainer records the event.
func (p *Plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	if err := p.event("RemoveContainer", c.GetId()); err != nil || p.Removed == nil {
		return err
	}
	return p.Removed(c)
}

// quiet drops what the library of plugins logs.
type quiet struct{}

func (quiet) Debugf(context.Context, string, ...any) {}
func (quiet) Infof(context.Context, string, ...any)  {}
func (quiet) Warnf(context.Context, string, ...any)  {}
func (quiet) Errorf(context.Context, string, ...any) {}

// Connect connects the plugin to a socket. It returns once the plugin is registered, a moment before it is sent events.
func (p *Plugin) Connect(t testing.TB, socket, index string) error {
	var err error
	if p.Stub, err = stub.New(p, stub.WithPluginName("test"), stub.WithPluginIdx(index), stub.WithSocketPath(socket), stub.WithOnClose(func() {}), stub.WithLogger(quiet{})); err != nil {
		return err
	}
	if err := p.Stub.Start(context.WithoutCancel(t.Context())); err != nil {
		return err
	}
	t.Cleanup(p.Stub.Stop)
	return nil
}

// RunLaunched is for TestMain of a test binary that a runtime starts as a plugin: it records events in the file that its configuration
// names, and reports whether it was started as one.
func RunLaunched(ctx context.Context) bool {
	if os.Getenv(api.PluginNameEnvVar) == "" {
		return false
	}
	p := &launched{}
	s, err := stub.New(p, stub.WithOnClose(func() {}), stub.WithLogger(quiet{}))
	if err == nil {
		_ = s.Run(ctx)
	}
	return true
}

// launched is a plugin that was started by the runtime.
type launched struct{ file string }

// Configure takes the configuration, the path of a file.
func (l *launched) Configure(_ context.Context, config, _, _ string) (api.EventMask, error) {
	l.file = strings.TrimSpace(config)
	return 0, nil
}

// RunPodSandbox records the event.
func (l *launched) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return os.WriteFile(l.file, []byte("RunPodSandbox "+pod.GetName()), 0o600)
}

// SetOn sets On, also while events are sent.
func (p *Plugin) SetOn(on func(event string) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.On = on
}

// Synced returns the IDs of the pods and containers that the plugin was synchronized with.
func (p *Plugin) Synced() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.synced)
}
