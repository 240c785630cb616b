package server

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/panics"
)

// What Version reports, the same as cri-dockerd: the runtime's name is part of every
// container ID that users and tools see in the Kubernetes API ("docker://...").
const (
	criVersion     = "0.1.0"
	runtimeName    = "docker"
	runtimeVersion = "v1"
)

// Reasons of conditions that are not met. Tools match these strings, which dockershim
// introduced.
const (
	engineNotReady  = "DockerDaemonNotReady"
	networkNotReady = "NetworkPluginNotReady"
)

// statusTimeout bounds the checks of Status. The kubelet calls Status every five seconds
// and reports the node as not ready after 30 seconds without a response; without
// the limit a Docker that hangs would look like a berthd that hangs.
const statusTimeout = time.Second

// Version reports the Engine's version as that of the runtime. While Docker is away it
// is that of the last connection.
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
	semver  = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^\d+\.\d+\.\d+([-+][0-9A-Za-z.+-]*)?$`) })
	numbers = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^\d+\.\d+(\.\d+)?`) })
)

// version returns the Engine's version in a form that the kubelet can parse as a
// semantic version: distributions append suffixes, and builds from source report
// "dev". If no number can be found it returns 0.0.0.
func version(v string) string {
	if semver().MatchString(v) {
		return v
	}
	if n := numbers().FindString(v); n != "" {
		return n
	}
	return "0.0.0"
}

// Status reports whether pods can be run (RuntimeReady) and attached to the network
// (NetworkReady), with the reason and a message if not.
func (s *Server) Status(ctx context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	// Concurrently, because each check may take the whole timeout.
	var engineErr, networkErr error
	both := panics.NewGroup(s.log)
	both.Go(func() error { engineErr = s.engineReady(ctx); return nil })
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
	facts := map[string]any{"config": s.config(), "golang": runtime.Version()}
	if conn, err := s.Engine.LastConn(); err == nil {
		var without map[string]string
		resp.RuntimeHandlers, without = s.handlers(conn.Features)
		resp.Features.MountOptions = conn.Features.Premounts
		resp.Features.UserNamespacesHostNetwork = len(without) < len(resp.RuntimeHandlers)
		facts["engine"], facts["withoutUserNamespaces"] = conn.Features, without
	}
	if r.GetVerbose() {
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

// engineReady returns nil if pods can be run now, or the reason.
func (s *Server) engineReady(ctx context.Context) error {
	conn, err := s.Engine.Conn()
	if err != nil {
		return err
	}
	if err := conn.Alive(ctx); err != nil {
		return fmt.Errorf("docker does not respond: %w", err)
	}
	if err := conn.CheckContainerd(); err != nil {
		return err
	}
	return s.Cache.Ready(ctx)
}

// config returns the daemon's configuration for the verbose Status. kubeadm compares
// sandboxImage with the pause image that it would use.
func (s *Server) config() map[string]any {
	config := maps.Clone(s.Config)
	if config == nil {
		config = map[string]any{}
	}
	config["sandboxImage"] = s.PauseImage()
	return config
}

func condition(kind, reason string, err error) *runtimeapi.RuntimeCondition {
	if err == nil {
		return &runtimeapi.RuntimeCondition{Type: kind, Status: true}
	}
	return &runtimeapi.RuntimeCondition{Type: kind, Reason: reason, Message: "docker: " + err.Error()}
}

// handlers lists the Engine's runtimes and the shims that pods may have, with "" for the
// default one. withoutUserNS has the reason why pods of a handler cannot have user namespaces.
func (s *Server) handlers(can engine.Features) (list []*runtimeapi.RuntimeHandler, withoutUserNS map[string]string) {
	withoutUserNS = map[string]string{}
	for _, name := range append([]string{""}, s.Policy.Handlers(can)...) {
		_, err := s.UserNS.Runtime(name, can)
		if err != nil {
			withoutUserNS[name] = err.Error()
		}
		list = append(list, &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: can.Premounts || can.Runtimes[cmp.Or(name, can.DefaultRuntime)].RecursiveReadOnly,
			UserNamespaces:          err == nil,
		}})
	}
	return list, withoutUserNS
}

// RuntimeConfig reports the Engine's cgroup driver, which the kubelet uses too
// (KEP-4033). The error is of kind FailedPrecondition if the kubelet does not have it.
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
		return nil, fmt.Errorf("docker uses the cgroup driver %q, the kubelet supports systemd and cgroupfs: set exec-opts in daemon.json to one of them: %w", driver, errdefs.ErrFailedPrecondition)
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: linux}, nil
}

// UpdateRuntimeConfig sets the address range of the node's pods (PodCIDR) for CNI
// configurations that berth generates or completes.
func (s *Server) UpdateRuntimeConfig(_ context.Context, r *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	if cidr := r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(); cidr != "" {
		if err := s.Network.SetPodCIDR(cidr); err != nil {
			return nil, err
		}
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}
