package podpolicy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/quantity"
)

// The annotations of a pod that set limits. All but ShmSize also have a form for one container
// of the pod, ANNOTATION/CONTAINER, which takes precedence for that container.
const (
	Ulimits         = "berth.ulimits"
	ShmSize         = "berth.shm-size"
	WritableCgroups = "berth.writable-cgroups"
	RootfsSize      = "berth.rootfs-size"
)

var limitAnnotations = []string{Ulimits, ShmSize, WritableCgroups, RootfsSize}

// The range of sizes in bytes.
const (
	minSize = 1 << 20
	maxSize = 1 << 50
)

// Limits are what annotations set for one container.
type Limits struct {
	Ulimits         []*container.Ulimit
	ShmSize         int64 // of the pod's /dev/shm in bytes; 0 for the default
	WritableCgroups bool
	RootfsSize      int64 // of the writable layer in bytes; 0 for no limit
}

// CheckPod refuses a pod with an annotation that its namespace may not use, that has a wrong
// value, or that the Engine cannot do; those for single containers, too. It returns the limits
// that all its containers have.
func (p Policy) CheckPod(pod *runtimeapi.PodSandboxConfig, features engine.Features) (Limits, error) {
	all := pod.GetAnnotations()
	for _, key := range slices.Sorted(maps.Keys(all)) {
		annotation, name, forOne := strings.Cut(key, "/")
		if !slices.Contains(limitAnnotations, annotation) {
			continue
		}
		if forOne && (annotation == ShmSize || !label().MatchString(name)) {
			return Limits{}, invalid("annotation %s: must be %s or, but for %s, end in the name of a container", key, annotation, ShmSize)
		}
		if _, err := p.limits(pod, map[string]string{key: all[key]}, name, features); err != nil {
			return Limits{}, err
		}
	}
	return p.limits(pod, all, "", features)
}

// ContainerLimits returns the limits of a container of a pod with these annotations.
func (p Policy) ContainerLimits(pod *runtimeapi.PodSandboxConfig, annotations map[string]string, name string, features engine.Features) (Limits, error) {
	return p.limits(pod, annotations, name, features)
}

// limits returns the limits that annotations set for the container with that name, "" for
// those that are not for one container.
func (p Policy) limits(pod *runtimeapi.PodSandboxConfig, annotations map[string]string, name string, features engine.Features) (out Limits, err error) {
	for _, annotation := range limitAnnotations {
		key := annotation + "/" + name
		text, ok := annotations[key]
		if !ok || name == "" {
			key = annotation
			text, ok = annotations[key]
		}
		if !ok {
			continue
		}
		if err := p.checkNamespace(annotation, key, pod.GetMetadata().GetNamespace()); err != nil {
			return Limits{}, err
		}
		switch annotation {
		case Ulimits:
			out.Ulimits, err = parseUlimits(text)
		case ShmSize:
			out.ShmSize, err = parseShmSize(text, pod)
		case WritableCgroups:
			out.WritableCgroups, err = parseWritableCgroups(text, features)
		case RootfsSize:
			out.RootfsSize, err = parseRootfsSize(text, features)
		}
		if err != nil {
			return Limits{}, fmt.Errorf("annotation %s %q: %w", key, text, err)
		}
	}
	return out, nil
}

// checkNamespace refuses an annotation that the operator does not allow in the namespace. A pod
// that ran without the limit that it requests would fail later, or do what it must not.
func (p Policy) checkNamespace(annotation, key, namespace string) error {
	allowed := p.namespaces[annotation]
	if slices.Contains(allowed, namespace) || slices.Contains(allowed, "*") {
		return nil
	}
	return fmt.Errorf("annotation %s: not allowed in namespace %s on this node; the operator can add %s=%s to the option %s of berthd: %w", key, namespace, annotation, namespace, AllowAnnotationsOption, errdefs.ErrPermissionDenied)
}

func parseShmSize(text string, pod *runtimeapi.PodSandboxConfig) (int64, error) {
	if pod.GetLinux().GetSecurityContext().GetNamespaceOptions().GetIpc() == runtimeapi.NamespaceMode_NODE {
		return 0, invalid("a pod with hostIPC has the node's /dev/shm")
	}
	return parseSize(text)
}

func parseSize(text string) (int64, error) {
	size, ok := quantity.Parse(text, minSize, maxSize)
	if !ok {
		return 0, invalid("must be a quantity of bytes from 1Mi to 1Pi")
	}
	return size, nil
}

func parseWritableCgroups(text string, features engine.Features) (bool, error) {
	switch text {
	case "true":
		return true, checkWritableCgroups(features)
	case "false":
		return false, nil
	default:
		return false, invalid("must be true or false")
	}
}

// checkWritableCgroups fails if the Engine cannot give a container a writable cgroup.
func checkWritableCgroups(features engine.Features) error {
	switch {
	case !features.WritableCgroups:
		return fmt.Errorf("writable cgroups need Docker 28 or newer, this is %s: %w", features.Version, errdefs.ErrFailedPrecondition)
	case features.CgroupVersion != 2:
		return fmt.Errorf("writable cgroups need cgroup v2, this node has v%d: %w", features.CgroupVersion, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func parseRootfsSize(text string, features engine.Features) (int64, error) {
	size, err := parseSize(text)
	if err != nil {
		return 0, err
	}
	return size, checkRootfsSize(features)
}

// checkRootfsSize fails if the Engine cannot limit the size of writable layers.
func checkRootfsSize(features engine.Features) error {
	switch {
	case features.LayerQuota:
		return nil
	case features.Snapshotter:
		return fmt.Errorf("the size of writable layers cannot be limited with the containerd image store: %w", errdefs.ErrFailedPrecondition)
	default:
		return fmt.Errorf("the size of writable layers can be limited only with Docker's data (%s, storage driver %s) on xfs that is mounted with pquota, or with btrfs or zfs: %w", features.RootDir, features.StorageDriver, errdefs.ErrFailedPrecondition)
	}
}

// ulimitNames are the ulimits that Docker knows (go-units, ulimit.go).
var ulimitNames = []string{
	"core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack",
}

const unlimited = "unlimited"

// parseUlimits parses ulimits as NAME=SOFT or NAME=SOFT:HARD, separated by commas.
func parseUlimits(text string) (list []*container.Ulimit, err error) {
	for entry := range strings.SplitSeq(text, ",") {
		name, values, ok := strings.Cut(strings.TrimSpace(entry), "=")
		if !ok || !slices.Contains(ulimitNames, name) {
			return nil, invalid("%q must be NAME=SOFT or NAME=SOFT:HARD, like nofile=1024:65536, with one of the names %s", entry, strings.Join(ulimitNames, ", "))
		}
		if slices.ContainsFunc(list, func(l *container.Ulimit) bool { return l.Name == name }) {
			return nil, invalid("%s is set twice", name)
		}
		soft, hard, both := strings.Cut(values, ":")
		if !both {
			hard = soft
		}
		limit := &container.Ulimit{Name: name}
		var softOK, hardOK bool
		limit.Soft, softOK = parseUlimit(soft)
		limit.Hard, hardOK = parseUlimit(hard)
		switch {
		case !softOK || !hardOK:
			return nil, invalid("%q: a limit must be a whole number or %s", entry, unlimited)
		case limit.Hard >= 0 && (limit.Soft < 0 || limit.Soft > limit.Hard):
			return nil, invalid("%q: the soft limit must not be higher than the hard one", entry)
		case name == "nofile" && limit.Hard < 0:
			return nil, invalid("%q: the kernel has no unlimited number of open files (fs.nr_open)", entry)
		}
		list = append(list, limit)
	}
	return list, nil
}

// parseUlimit parses one value; unlimited is -1, as in the Engine API.
func parseUlimit(text string) (int64, bool) {
	if text == unlimited {
		return -1, true
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil && n >= 0
}
