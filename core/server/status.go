package server

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"runtime"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/panics"
)

// Who we are to the kubelet: the same as cri-dockerd, for the name becomes
// part of every container ID that users and their tools see.
const (
	criVersion     = "0.1.0"
	runtimeName    = "docker"
	runtimeVersion = "v1"
)

// Reasons of conditions that are not met; tools look for these words.
const (
	engineNotReady  = "DockerDaemonNotReady"
	networkNotReady = "NetworkPluginNotReady"
)

// statusPatience is how long Status waits for a sign of life: the kubelet
// calls the node not ready if it hears nothing.
const statusPatience = time.Second

// Version tells the kubelet what it talks to. While the Engine is away it is
// the one there was last.
func (s *Server) Version(ctx context.Context, _ *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	conn, err := s.Engine.LastConn()
	if err != nil {
		return nil, err
	}
	return &runtimeapi.VersionResponse{
		Version: criVersion, RuntimeName: runtimeName, RuntimeVersion: version(conn.Features.Version), RuntimeApiVersion: runtimeVersion,
	}, nil
}

var (
	semver  = regexp.MustCompile(`^\d+\.\d+\.\d+([-+][0-9A-Za-z.+-]*)?$`)
	numbers = regexp.MustCompile(`^\d+\.\d+(\.\d+)?`)
)

// version returns the Engine's version in a form that the kubelet can parse.
func version(v string) string {
	if semver.MatchString(v) {
		return v
	}
	if n := numbers.FindString(v); n != "" {
		return n
	}
	return "0.0.0"
}

// Status tells whether pods can be run, and if not, why not.
func (s *Server) Status(ctx context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	// Side by side, for each may need all the time there is.
	var engineErr, networkErr error
	both := panics.NewGroup(s.log)
	both.Go(func() error { engineErr = s.alive(ctx); return nil })
	both.Go(func() error { networkErr = s.Network.Status(ctx); return nil })
	if err := both.Wait(); err != nil {
		return nil, err
	}
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			condition(runtimeapi.RuntimeReady, engineNotReady, engineErr),
			condition(runtimeapi.NetworkReady, networkNotReady, networkErr),
		}},
		Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true},
	}
	conn, err := s.Engine.LastConn()
	if err == nil {
		resp.RuntimeHandlers = handlers(conn.Features)
		resp.Features.MountOptions = conn.Features.StagedMounts
	}
	if r.GetVerbose() {
		facts := map[string]any{"config": s.config(), "golang": runtime.Version()}
		if err == nil {
			facts["engine"] = conn.Features
		}
		resp.Info = map[string]string{}
		for k, v := range facts {
			text, err := json.Marshal(v)
			if err != nil {
				return nil, err
			}
			resp.Info[k] = string(text)
		}
	}
	return resp, nil
}

// alive returns nil if pods can be run now, or why not.
func (s *Server) alive(ctx context.Context) error {
	conn, err := s.Engine.Conn()
	if err != nil {
		return err
	}
	if err := conn.Alive(ctx); err != nil {
		return fmt.Errorf("no sign of life: %w", err)
	}
	if err := conn.Containerd(); err != nil {
		return err
	}
	return s.Cache.Ready(ctx)
}

// config is the daemon's configuration as Status tells it; kubeadm compares
// the sandbox image with its own.
func (s *Server) config() map[string]any {
	config := maps.Clone(s.Config)
	if config == nil {
		config = map[string]any{}
	}
	config["sandboxImage"] = s.PauseImage
	return config
}

func condition(kind, reason string, err error) *runtimeapi.RuntimeCondition {
	if err == nil {
		return &runtimeapi.RuntimeCondition{Type: kind, Status: true}
	}
	return &runtimeapi.RuntimeCondition{Type: kind, Reason: reason, Message: "docker: " + err.Error()}
}

// handlers lists the Engine's runtimes, and "" for its default one.
func handlers(can engine.Features) []*runtimeapi.RuntimeHandler {
	list := []*runtimeapi.RuntimeHandler{handler("", can)}
	for _, name := range slices.Sorted(maps.Keys(can.Runtimes)) {
		list = append(list, handler(name, can))
	}
	return list
}

func handler(name string, can engine.Features) *runtimeapi.RuntimeHandler {
	runtime := cmp.Or(name, can.DefaultRuntime)
	return &runtimeapi.RuntimeHandler{
		Name:     name,
		Features: &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: can.StagedMounts || can.Runtimes[runtime].RecursiveReadOnly},
	}
}

// RuntimeConfig tells the kubelet which cgroup driver to use.
func (s *Server) RuntimeConfig(ctx context.Context, _ *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	conn, err := s.Engine.LastConn()
	if err != nil {
		return nil, err
	}
	linux := &runtimeapi.LinuxRuntimeConfiguration{}
	switch driver := conn.Features.CgroupDriver; driver {
	case "systemd":
		linux.CgroupDriver = runtimeapi.CgroupDriver_SYSTEMD
	case "cgroupfs":
		linux.CgroupDriver = runtimeapi.CgroupDriver_CGROUPFS
	default:
		return nil, fmt.Errorf("docker uses cgroup driver %q, which no kubelet can: %w", driver, errdefs.ErrFailedPrecondition)
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: linux}, nil
}

// UpdateRuntimeConfig takes the address range that the node's pods are to have.
func (s *Server) UpdateRuntimeConfig(_ context.Context, r *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	if cidr := r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(); cidr != "" {
		if err := s.Network.SetPodCIDR(cidr); err != nil {
			return nil, err
		}
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}
