package specedit

import (
	"encoding/json"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/limits"
	"berth/core/ociedit"
)

// hugepageLimit is one of linux.resources.hugepageLimits in the OCI specification.
type hugepageLimit struct {
	PageSize string `json:"pageSize"`
	Limit    uint64 `json:"limit"`
}

// addCgroupSettings adds what the first instruction of a container would run without: with the cgroup driver systemd
// the cgroup does not exist before the start. With cgroupfs package resources writes the settings before the start.
//
// Left out, and written right after the start, are limits of 0 huge pages, which a kubelet sends for every container, memory limits
// that are too low for the start itself, and values that the runtime below would not pass to the kernel as they are.
func addCgroupSettings(i *ociedit.Instructions, r *runtimeapi.LinuxContainerResources, features engine.Features) error {
	settings, err := limits.CgroupSettings(r, features)
	if err != nil || features.CgroupDriver != "systemd" {
		return err
	}
	for _, s := range settings {
		if _, ok := r.GetUnified()[s.File]; !ok || s.AfterStart || s.Optional || !passedOn(s.File, s.Value) {
			continue
		}
		if i.Unified == nil {
			i.Unified = map[string]string{}
		}
		i.Unified[s.File] = s.Value
	}
	var pages []hugepageLimit
	for _, h := range r.GetHugepageLimits() {
		if h.GetLimit() > 0 {
			pages = append(pages, hugepageLimit{h.GetPageSize(), h.GetLimit()})
		}
	}
	if len(pages) == 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"linux": map[string]any{"resources": map[string]any{"hugepageLimits": pages}}})
	i.Patches = append(i.Patches[:len(i.Patches):len(i.Patches)], patch)
	return err
}

// passedOn reports whether runc passes a value to the kernel. It parses those that it sets as properties of the systemd unit
// too (unifiedResToSystemdProps in libcontainer/cgroups/systemd of runc 1.1), and writes each in one piece, where the kernel takes a line at a time.
func passedOn(file, value string) bool {
	if strings.Contains(strings.TrimSuffix(value, "\n"), "\n") {
		return false
	}
	switch file {
	case "memory.high", "memory.low", "memory.min", "memory.max", "memory.swap.max", "pids.max":
		if value == "max" {
			return true
		}
		fallthrough
	case "cpu.weight", "cpu.idle":
		_, err := strconv.ParseUint(value, 10, 64)
		return err == nil
	}
	return true
}
