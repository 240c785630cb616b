package nri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	"google.golang.org/protobuf/proto"

	"berth/core/nri/adjust"
)

// A recording is what the plugins have returned for one container that is being created.
type recording struct {
	plugins []string // those that have changed something
	unknown bool     // one has sent a field that this version of NRI does not know
	env     []string // names of the variables that one has removed
	devices []string // paths of the devices that one has removed
}

// addRemovals adds the variables and devices that plugins have removed to what the library has put together of their adjustments: it
// leaves these two out, and has them only removed in its request (nri 0.12.5, adjustEnv and adjustDevices in pkg/adaptation/result.go).
func (r *recording) addRemovals(sum *api.ContainerAdjustment) *api.ContainerAdjustment {
	if sum == nil {
		sum = &api.ContainerAdjustment{}
	}
	for _, name := range r.env {
		if !slices.ContainsFunc(sum.GetEnv(), func(e *api.KeyValue) bool { return strings.TrimPrefix(e.GetKey(), "-") == name }) {
			sum.RemoveEnv(name)
		}
	}
	for _, path := range r.devices {
		if !slices.ContainsFunc(sum.GetLinux().GetDevices(), func(d *api.LinuxDevice) bool { return strings.TrimPrefix(d.GetPath(), "-") == path }) {
			sum.RemoveDevice(path)
		}
	}
	return sum
}

// metrics is what the library calls around each call of a plugin.
type metrics struct{ *Runtime }

func (metrics) RecordPluginInvocation(string, string, error)      {}
func (metrics) RecordPluginLatency(string, string, time.Duration) {}

// UpdatePluginCount is called whenever a plugin has been connected or disconnected.
func (m metrics) UpdatePluginCount(n int) {
	if before := m.plugins.Swap(int32(n)); before != int32(n) {
		m.Log.Info("NRI plugins have connected or disconnected", slog.Int("plugins", n), slog.Int("before", int(before)))
	}
}

// RecordPluginAdjustments is called with what one plugin returns: the library itself does not report which plugins have changed a container.
func (m metrics) RecordPluginAdjustments(plugin, _ string, a *api.ContainerAdjustment, _, evictions int) {
	if evictions > 0 {
		m.Log.Warn("eviction of containers that an NRI plugin has requested is ignored: the NRI library does not pass it on", slog.String("plugin", plugin))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.recording == nil || a == nil {
		return
	}
	for _, e := range a.GetEnv() {
		if name, removed := e.IsMarkedForRemoval(); removed {
			m.recording.env = append(m.recording.env, name)
		}
	}
	for _, d := range a.GetLinux().GetDevices() {
		if path, removed := d.IsMarkedForRemoval(); removed {
			m.recording.devices = append(m.recording.devices, path)
		}
	}
	unknown := adjust.HasUnknown(a.ProtoReflect())
	m.recording.unknown = m.recording.unknown || unknown
	if unknown || proto.CloneOf(a).Strip() != nil {
		m.recording.plugins = append(m.recording.plugins, plugin)
	}
}

// current is the logger of the Runtime that has started last. The library has one logger per process, which it reads without a lock: so
// New sets it once, before anything of a Runtime runs, and what it logs to can change.
var (
	current    atomic.Pointer[slog.Logger]
	loggerOnce sync.Once
)

func setLogger() { loggerOnce.Do(func() { nrilog.Set(logger{}) }) }

// logger passes what the library logs on. Its errors are about one plugin or connection, and its infos about each step of it.
type logger struct{}

func (logger) print(ctx context.Context, level slog.Level, format string, args ...any) {
	if log := current.Load(); log != nil && log.Enabled(ctx, level) {
		log.Log(ctx, level, "NRI", slog.String("message", fmt.Sprintf(format, args...)))
	}
}

func (l logger) Debugf(ctx context.Context, format string, args ...any) {
	l.print(ctx, slog.LevelDebug, format, args...)
}

func (l logger) Infof(ctx context.Context, format string, args ...any) {
	l.print(ctx, slog.LevelDebug, format, args...)
}

func (l logger) Warnf(ctx context.Context, format string, args ...any) {
	l.print(ctx, slog.LevelWarn, format, args...)
}

func (l logger) Errorf(ctx context.Context, format string, args ...any) {
	if slices.ContainsFunc(args, func(a any) bool { err, ok := a.(error); return ok && errors.Is(err, adaptation.ErrWasmDisabled) }) {
		return // berthd is built with the tag nri_no_wasm
	}
	l.print(ctx, slog.LevelWarn, format, args...)
}
