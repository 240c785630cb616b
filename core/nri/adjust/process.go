package adjust

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"github.com/docker/go-units"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/ociedit"
	"berth/core/specedit"
)

// need notes that berth's OCI runtime is needed for what, in the plural.
func (out *change) need(what string) {
	if out.needs == "" {
		out.needs = what
	}
}

// useRuntime chooses berth's OCI runtime if something needs it.
func (out *change) useRuntime() (err error) {
	if out.needs != "" {
		out.spec.Host.Runtime, err = specedit.InstalledRuntime(out.needs, out.Runtime, out.Dir, out.Features)
	}
	return err
}

// patch adds a JSON merge patch of the OCI spec, which berth's OCI runtime applies.
func (out *change) patch(what string, object any) error {
	out.need(what)
	text, err := json.Marshal(object)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	i := &out.spec.Instructions
	i.Patches = append(i.Patches[:len(i.Patches):len(i.Patches)], text)
	return nil
}

// kubernetesPrefix is that of the annotations in which the kubelet stores what it needs to know of a container.
const kubernetesPrefix = "io.kubernetes."

// annotations sets those of the CRI, which the status shows and later events have, and those of the OCI spec.
func (out *change) annotations(changes map[string]string) error {
	oci := map[string]any{}
	for _, key := range slices.Sorted(maps.Keys(changes)) {
		name, removed := api.IsMarkedForRemoval(key)
		if strings.HasPrefix(name, kubernetesPrefix) {
			return failed("annotation %s: the kubelet needs it as it is", name)
		}
		_, set := changes[name]
		switch {
		case out.spec == nil && removed:
			delete(out.config.Annotations, name)
		case out.spec == nil:
			if out.config.Annotations == nil {
				out.config.Annotations = map[string]string{}
			}
			out.config.Annotations[name] = changes[key]
		case removed && !set:
			delete(out.spec.Host.Annotations, name)
		case !removed && !out.Features.Annotations:
			oci[name] = changes[key]
		case !removed:
			if out.spec.Host.Annotations == nil {
				out.spec.Host.Annotations = map[string]string{}
			}
			out.spec.Host.Annotations[name] = changes[key]
		}
	}
	if len(oci) == 0 {
		return nil
	}
	return out.patch("annotations of OCI specs before Docker 24", map[string]any{"annotations": oci})
}

// env sets variables in the request. One that the image has is removed by its name alone, which Docker takes as "without
// it" (ReplaceOrAppendEnvVars in container/env.go).
func (out *change) env(changes []*api.KeyValue) error {
	for _, e := range changes {
		name, removed := e.IsMarkedForRemoval()
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(e.GetValue(), "\x00") {
			return invalid("env %q: the name must not be empty or contain \"=\", and neither name nor value may contain NUL", name)
		}
		if out.spec != nil {
			if removed && !slices.ContainsFunc(changes, func(o *api.KeyValue) bool { return o.GetKey() == name }) {
				out.spec.Config.Env = append(out.spec.Config.Env, name)
			}
			continue
		}
		out.config.Envs = slices.DeleteFunc(out.config.Envs, func(v *runtimeapi.KeyValue) bool { return v.GetKey() == name })
	}
	if out.spec != nil {
		return nil
	}
	for _, e := range changes {
		if _, removed := e.IsMarkedForRemoval(); !removed {
			out.config.Envs = append(out.config.Envs, &runtimeapi.KeyValue{Key: e.GetKey(), Value: []byte(e.GetValue())})
		}
	}
	return nil
}

// args replaces the command line. An empty first argument, which the library of NRI leaves in, marks one that replaces that of another plugin.
func (out *change) args(args []string) error {
	if args[0] == "" {
		args = args[1:]
	}
	if len(args) == 0 {
		return invalid("args: must not be empty")
	}
	if out.spec == nil {
		out.config.Command, out.config.Args = slices.Clone(args), nil
	}
	return nil
}

func (out *change) hooks(h *api.Hooks) error {
	if out.spec == nil {
		return nil
	}
	out.need("OCI hooks")
	out.spec.Instructions.Hooks = out.spec.Instructions.Hooks.Append(&ociedit.Hooks{
		Prestart: hooks(h.GetPrestart()), CreateRuntime: hooks(h.GetCreateRuntime()), CreateContainer: hooks(h.GetCreateContainer()),
		StartContainer: hooks(h.GetStartContainer()), Poststart: hooks(h.GetPoststart()), Poststop: hooks(h.GetPoststop()),
	})
	return nil
}

func hooks(list []*api.Hook) (out []ociedit.Hook) {
	for _, h := range list {
		hook := ociedit.Hook{Path: h.GetPath(), Args: h.GetArgs(), Env: h.GetEnv()}
		if t := h.GetTimeout(); t != nil {
			hook.Timeout = new(int(t.GetValue()))
		}
		out = append(out, hook)
	}
	return out
}

// rlimits sets limits in HostConfig. That has no limit of the address space, RLIMIT_AS, and nothing above 2^63-1 but "unlimited".
func (out *change) rlimits(list []*api.POSIXRlimit) error {
	for _, l := range list {
		name, ok := strings.CutPrefix(l.GetType(), "RLIMIT_")
		if !ok {
			return invalid("rlimit %q: must begin with RLIMIT_", l.GetType())
		}
		if l.GetSoft() > l.GetHard() {
			return invalid("rlimit %s: soft limit %d must be at most the hard limit %d", l.GetType(), l.GetSoft(), l.GetHard())
		}
		if out.spec == nil {
			continue
		}
		ulimit := &units.Ulimit{Name: strings.ToLower(name), Soft: ulimitValue(l.GetSoft()), Hard: ulimitValue(l.GetHard())}
		out.spec.Host.Ulimits = slices.DeleteFunc(slices.Clone(out.spec.Host.Ulimits), func(u *units.Ulimit) bool { return u.Name == ulimit.Name })
		if _, err := units.ParseUlimit(fmt.Sprintf("%s=%d:%d", ulimit.Name, ulimit.Soft, ulimit.Hard)); err == nil {
			out.spec.Host.Ulimits = append(out.spec.Host.Ulimits, ulimit)
			continue
		}
		out.need("limits of type " + l.GetType())
		out.spec.Instructions.Rlimits = append(out.spec.Instructions.Rlimits, ociedit.Rlimit{Type: l.GetType(), Soft: l.GetSoft(), Hard: l.GetHard()})
	}
	return nil
}

// ulimitValue returns a limit as Docker has it: -1 is unlimited.
func ulimitValue(v uint64) int64 {
	if v > math.MaxInt64 {
		return -1
	}
	return int64(v)
}

func (out *change) oomScore(score int64) error {
	if score < int64(out.Features.LowestOOMScore) {
		return failed("linux.oom_score_adj %d: Docker has not the privilege for less than %d", score, out.Features.LowestOOMScore)
	}
	if out.spec == nil {
		out.config.Linux = linuxOf(out.config)
		if out.config.Linux.Resources == nil {
			out.config.Linux.Resources = &runtimeapi.LinuxContainerResources{}
		}
		out.config.Linux.Resources.OomScoreAdj = score
	}
	return nil
}

// linuxOf returns the Linux part of a request, a new one if there is none.
func linuxOf(c *runtimeapi.ContainerConfig) *runtimeapi.LinuxContainerConfig {
	if c.GetLinux() == nil {
		return &runtimeapi.LinuxContainerConfig{}
	}
	return c.GetLinux()
}

// seccomp replaces the profile. HostConfig takes one inline, which every Engine reads but for flags and a listener, and not for a privileged container.
func (out *change) seccomp(p *api.LinuxSeccomp) error {
	policy := seccompPolicy(p)
	if out.spec == nil {
		return nil
	}
	if out.spec.Host.Privileged || len(p.GetFlags()) > 0 || p.GetListenerPath() != "" || p.GetListenerMetadata() != "" {
		full := map[string]any{}
		for _, name := range []string{"defaultAction", "defaultErrnoRet", "architectures", "flags", "listenerPath", "listenerMetadata", "syscalls"} {
			full[name] = policy[name] // null removes that of Docker's own profile
		}
		return out.patch("seccomp policies with flags or a listener, or of privileged containers", map[string]any{"linux": map[string]any{"seccomp": full}})
	}
	if out.Features.SeccompProfile == "" {
		return failed("linux.seccomp_policy: Docker has no seccomp on this node (see Security Options in docker info)")
	}
	text, err := json.Marshal(policy)
	if err != nil {
		return fmt.Errorf("linux.seccomp_policy: %w", err)
	}
	out.spec.Host.SecurityOpt = slices.DeleteFunc(slices.Clone(out.spec.Host.SecurityOpt), func(o string) bool { return strings.HasPrefix(o, "seccomp=") })
	out.spec.Host.SecurityOpt = append(out.spec.Host.SecurityOpt, "seccomp="+string(text))
	return nil
}

// seccompPolicy returns a policy as linux.seccomp of the OCI specification, which is also the format of Docker's profiles.
func seccompPolicy(p *api.LinuxSeccomp) map[string]any {
	out := map[string]any{"defaultAction": p.GetDefaultAction()}
	set := func(name string, v any, given bool) {
		if given {
			out[name] = v
		}
	}
	set("defaultErrnoRet", p.GetDefaultErrno().GetValue(), p.GetDefaultErrno() != nil)
	set("architectures", p.GetArchitectures(), len(p.GetArchitectures()) > 0)
	set("flags", p.GetFlags(), len(p.GetFlags()) > 0)
	set("listenerPath", p.GetListenerPath(), p.GetListenerPath() != "")
	set("listenerMetadata", p.GetListenerMetadata(), p.GetListenerMetadata() != "")
	set("syscalls", api.ToOCILinuxSyscalls(p.GetSyscalls()), len(p.GetSyscalls()) > 0)
	return out
}

func (out *change) sysctls(changes map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(changes)) {
		name, removed := api.IsMarkedForRemoval(key)
		if removed {
			continue // sysctls of pods belong to the pause container: a container has none that could be removed
		}
		if out.spec != nil {
			if out.spec.Host.Sysctls == nil {
				out.spec.Host.Sysctls = map[string]string{}
			}
			out.spec.Host.Sysctls[name] = changes[key]
		}
	}
}
