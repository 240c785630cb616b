// Package cdi finds out which CDI devices (https://tags.cncf.io/container-device-interface) a container
// requests, and resolves them for Engines that cannot: it reads the specifications on the node and returns what
// of them goes into requests to the Engine API. Engines with CDI resolve the names themselves.
//
// Directories are read whenever a container requests a device, and never otherwise: there is no cache, no watch
// and no state. Specifications are written by device plugins and DRA drivers, often one per device or claim, right
// before the container is created. What is read is bounded.
//
// Errors are of kind InvalidArgument where the request is invalid, and of kind FailedPrecondition where a
// specification, the node or the Engine is the reason.
package cdi

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// A Config says where devices are requested and defined.
type Config struct {
	// SpecDirs are the directories with specifications. A device in a later one replaces those of the same
	// name in earlier ones.
	SpecDirs []string
	// Annotations has annotations of containers request devices, too.
	Annotations bool
}

// Names returns the qualified names of the devices that a container requests, each once: those of the CRI's field
// first, then those of its annotations by key.
//
// Annotations of the pod do not count. Every user who may create a pod writes them, while those of the container
// come from the kubelet, which takes them from device plugins (newContainerAnnotations in
// pkg/kubelet/kuberuntime/labels.go of Kubernetes). containerd and CRI-O read the same ones.
func (cfg Config) Names(c *runtimeapi.ContainerConfig) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	add := func(name string) {
		if !seen[name] {
			seen[name] = true
			out = append(out, name)
		}
	}
	for _, d := range c.GetCDIDevices() {
		if d.GetName() == "" {
			return nil, fmt.Errorf("CDI device: name must be set: %w", errdefs.ErrInvalidArgument)
		}
		add(d.GetName())
	}
	if !cfg.Annotations {
		return out, nil
	}
	for _, key := range slices.Sorted(maps.Keys(c.GetAnnotations())) {
		if !strings.HasPrefix(key, cdi.AnnotationPrefix) {
			continue
		}
		for name := range strings.SplitSeq(c.GetAnnotations()[key], ",") {
			if _, _, _, err := parser.ParseQualifiedName(name); err != nil {
				return nil, fmt.Errorf("annotation %s: must be names VENDOR/CLASS=DEVICE, separated by commas: %w: %w", key, err, errdefs.ErrInvalidArgument)
			}
			add(name)
		}
	}
	return out, nil
}

// Resolve returns what the devices with these names change in a container. ociRuntime says that Docker has berth's OCI runtime, so that
// it can be more than the Engine API can express.
func (cfg Config) Resolve(names []string, ociRuntime bool) (Edits, error) {
	if len(names) == 0 {
		return Edits{}, nil
	}
	kinds := map[string]bool{}
	for _, name := range names {
		vendor, class, _, err := parser.ParseQualifiedName(name)
		if err != nil {
			return Edits{}, fmt.Errorf("CDI device: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		kinds[vendor+"/"+class] = true
	}
	devices, problems := scan(cfg.SpecDirs, func(kind string) bool { return kinds[kind] })
	out := Edits{ociRuntime: ociRuntime}
	added := map[*cdi.Spec]bool{}
	for _, name := range names {
		d := devices[name]
		if d == nil {
			return Edits{}, cfg.unresolvable(name, problems)
		}
		if spec := d.GetSpec(); !added[spec] {
			added[spec] = true
			if err := out.add(spec.ContainerEdits); err != nil {
				return Edits{}, fmt.Errorf("CDI specification %s: %w", spec.GetPath(), err)
			}
		}
		if err := out.add(d.ContainerEdits); err != nil {
			return Edits{}, fmt.Errorf("CDI device %s of %s: %w", name, d.GetSpec().GetPath(), err)
		}
	}
	return out, nil
}

// Process returns the variables and the additional groups that the devices with these names give a process, as far as they can be
// found. It is for Engines that resolve devices themselves: they give the variables to the container's own process but not to commands
// that are executed in it, and 28.5 leaves the groups out.
func (cfg Config) Process(names []string) Edits {
	if len(names) == 0 {
		return Edits{}
	}
	devices, _ := scan(cfg.SpecDirs, func(string) bool { return true })
	var all Edits
	added := map[*cdi.Spec]bool{}
	for _, name := range names {
		d := devices[name]
		if d == nil {
			continue
		}
		if spec := d.GetSpec(); !added[spec] {
			added[spec] = true
			all.addProcess(spec.ContainerEdits)
		}
		all.addProcess(d.ContainerEdits)
	}
	return all
}

// maxNamed bounds the problems that an error names.
const maxNamed = 3

// unresolvable is the error for a device that no valid specification defines.
func (cfg Config) unresolvable(name string, problems []Problem) error {
	parts := []string{fmt.Sprintf("unresolvable CDI device %s: no valid specification in %s defines it", name, strings.Join(cfg.SpecDirs, " or "))}
	for _, p := range problems[:min(len(problems), maxNamed)] {
		parts = append(parts, fmt.Sprintf("%s is not valid: %v", p.Path, p.Err))
	}
	if more := len(problems) - maxNamed; more > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", more))
	}
	return fmt.Errorf("%s: %w", strings.ReplaceAll(strings.Join(parts, "; "), "\n", " "), errdefs.ErrFailedPrecondition)
}

// Check reads all specifications. It returns the devices that they define, each with the reason why an Engine
// without CDI cannot have it or nil, and the problems of files and directories. ociRuntime is as for Resolve.
func (cfg Config) Check(ociRuntime bool) (devices map[string]error, problems []Problem) {
	found, problems := scan(cfg.SpecDirs, func(string) bool { return true })
	devices = map[string]error{}
	for name, d := range found {
		edits := Edits{ociRuntime: ociRuntime}
		err := edits.add(d.GetSpec().ContainerEdits)
		if err == nil {
			err = edits.add(d.ContainerEdits)
		}
		devices[name] = err
	}
	return devices, problems
}
