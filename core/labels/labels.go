// Package labels owns every label the daemon writes on a Docker container, and
// decides which containers belong to pods.
//
// Docker is the only database: what a container is in Kubernetes terms is
// written on it once, when it is created, and read back from it ever after.
// Labels alone prove nothing, because Docker merges the labels of an image into
// each container that is created from it (docker 28.5, daemon/commit.go, merge).
// Read therefore relies on what no image can set: the container's name, and a
// field of its HostConfig that berth sets on every container.
package labels

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/container"

	"berth/core/names"
)

// Keys that dockershim and cri-dockerd chose. They are kept, so that a node
// can change adapters without restarting its pods.
const (
	kindKey          = "io.kubernetes.docker.type"
	sandboxKey       = "io.kubernetes.sandbox.id"
	logPathKey       = "io.kubernetes.container.logpath"
	nameKey          = "io.kubernetes.container.name"
	annotationPrefix = "annotation."
)

// Keys of our own.
const (
	ownPrefix      = "berth."
	configKey      = ownPrefix + "config"
	handlerKey     = ownPrefix + "handler"
	imageKey       = ownPrefix + "image"
	imageRefKey    = ownPrefix + "image-ref"
	labelsKey      = ownPrefix + "labels"
	annotationsKey = ownPrefix + "annotations"
	userKey        = ownPrefix + "user"
	stageKey       = ownPrefix + "stage"
	// labelPrefix goes before the pod labels that would otherwise read as ours:
	// a pod may well carry a label "annotation.x".
	labelPrefix = ownPrefix + "label."
)

// podName is what stands in nameKey of a sandbox.
const podName = "POD"

// A Kind tells a pod's sandbox from the containers that run in it.
type Kind string

// The kinds there are. Docker containers of no kind are not ours.
const (
	Sandbox   Kind = "podsandbox"
	Container Kind = "container"
)

// A Set is what is recorded on one Docker container.
type Set struct {
	Kind        Kind
	SandboxID   string            // of the pod a container runs in; empty for a sandbox
	LogPath     string            // where the kubelet expects the log; empty for a sandbox
	Labels      map[string]string // as the kubelet gave them
	Annotations map[string]string // as the kubelet gave them

	// The fields below are recorded by berth and not by cri-dockerd.

	Config   string         // the CRI config as JSON, without what the Engine keeps elsewhere
	Handler  string         // runtime handler of a sandbox
	Image    string         // of a container, as its user wrote it
	ImageRef string         // of a container, with the repository's digest if there was one
	User     string         // of a container, the user it runs as, as JSON of the CRI; empty if not known
	Stage    names.Premount // of a container, the name of its staged mounts, if it has some
}

// Ours reports whether berth itself has created the container.
func (s Set) Ours() bool { return s.Config != "" }

// Encode returns s as Docker labels. Every key that applies to s.Kind or could be
// read for it is written, with an empty value if need be: a key that is set when
// a container is created wins over the image's label of the same name.
func (s Set) Encode() map[string]string {
	out := make(map[string]string, len(s.Labels)+len(s.Annotations)+11)
	for k, v := range s.Annotations {
		out[annotationPrefix+k] = v
	}
	for k, v := range s.Labels {
		out[s.dockerKey(k)] = v
	}
	maps.Copy(out, map[string]string{
		kindKey:        string(s.Kind),
		sandboxKey:     s.SandboxID,
		logPathKey:     s.LogPath,
		configKey:      s.Config,
		handlerKey:     s.Handler,
		imageKey:       s.Image,
		imageRefKey:    s.ImageRef,
		userKey:        s.User,
		stageKey:       s.Stage.String(),
		labelsKey:      keys(s.Labels),
		annotationsKey: keys(s.Annotations),
	})
	if s.Kind == Sandbox {
		out[nameKey] = podName
	}
	return out
}

// keys lists the keys of m as JSON.
func keys(m map[string]string) string {
	list, err := json.Marshal(slices.Sorted(maps.Keys(m)))
	if err != nil {
		return "[]" // strings always marshal
	}
	return string(list)
}

// ErrMismatch is the kind of error for a container whose labels say that it
// belongs to a pod although its name does not: one that was run by hand from an
// image that carries such labels, for instance from docker commit of a pod's
// container. It belongs to nobody.
var ErrMismatch = errors.New("labels and name disagree")

// Read returns what is recorded on an inspected container. A container that
// belongs to no pod has no Kind, and the error is of kind ErrMismatch if it
// claims otherwise.
//
// The name decides, because an image cannot set it: it must be that of the pod
// and the attempt that the labels record. What berth's own labels say counts
// only on a container that berth has created (see ours).
func Read(c container.InspectResponse) (Set, error) {
	if c.ContainerJSONBase == nil || c.Config == nil {
		return Set{}, errors.New("inspect result is incomplete")
	}
	s, err := read(c.Name, c.Config.Labels, ours(c))
	if err != nil || !s.Ours() {
		return s, err
	}
	// Containers of berth before 1.1 have no label where the value was empty, and
	// so perhaps the image's: a handler and a user count only if Docker confirms them.
	if s.Handler != c.HostConfig.Runtime && s.Handler != dockerHandler {
		s.Handler = ""
	}
	if !confirmsUser(c.Config.User, s.User) {
		s.User = ""
	}
	return s, nil
}

// ReadSummary is Read for an entry of a list of containers. A list does not tell
// who created a container, so what it returns is what cri-dockerd would have
// recorded, also for a container of berth.
func ReadSummary(row container.Summary) (Set, error) {
	name := Name(row)
	s, err := read(name, row.Labels, false)
	if err != nil && row.Labels[configKey] != "" {
		// Names with underscores cannot be parsed, only compared with the config.
		if own, ownErr := read(name, row.Labels, true); ownErr == nil {
			return decodeForeign(own.Kind, row.Labels), nil
		}
	}
	return s, err
}

// Name returns the name of a container in a list. Docker lists the names of
// legacy links as well, which have two slashes.
func Name(row container.Summary) string {
	for _, n := range row.Names {
		if strings.LastIndexByte(n, '/') == 0 {
			return n
		}
	}
	return ""
}

// ours reports whether berth has created c. Its containers always say in
// HostConfig that Docker is not to run an init process in them; cri-dockerd and
// dockershim leave the field unset, and an image has no HostConfig.
func ours(c container.InspectResponse) bool {
	return c.HostConfig != nil && c.HostConfig.Init != nil && !*c.HostConfig.Init && c.Config.Labels[configKey] != ""
}

// confirmsUser reports whether Docker runs a container with configured, "uid" or
// "uid:gid", as the user that recorded describes.
func confirmsUser(configured, recorded string) bool {
	var user struct{ UID, GID json.Number } // of runtime.v1.LinuxContainerUser
	if json.Unmarshal([]byte(recorded), &user) != nil {
		return false
	}
	uid, gid, hasGroup := strings.Cut(cmp.Or(configured, "0"), ":")         // Docker runs it as root where nothing is said
	number := func(n json.Number) string { return cmp.Or(n.String(), "0") } // protojson leaves zeros out
	return uid == number(user.UID) && (!hasGroup || gid == number(user.GID))
}

// dockerHandler is the runtime handler that stands for Docker's default runtime,
// besides "".
const dockerHandler = "docker"

func read(name string, labels map[string]string, ours bool) (Set, error) {
	kind := Kind(labels[kindKey])
	if kind != Sandbox && kind != Container {
		return Set{}, nil
	}
	if !ours {
		parsed, err := names.Parse(name)
		if err != nil || (parsed.Container == names.Pod) != (kind == Sandbox) {
			return Set{}, fmt.Errorf("%w: kind %s, name %q", ErrMismatch, kind, name)
		}
		return decodeForeign(kind, labels), nil
	}
	s := Set{Kind: kind, Config: labels[configKey]}
	if err := s.decodeOwn(labels); err != nil {
		return Set{}, err
	}
	if err := s.matches(name); err != nil {
		return Set{}, err
	}
	return s, nil
}

// decodeOwn reads the labels of a container that berth has created.
func (s *Set) decodeOwn(labels map[string]string) error {
	if s.Kind == Sandbox {
		s.Handler = labels[handlerKey]
	} else {
		s.SandboxID, s.LogPath = labels[sandboxKey], labels[logPathKey]
		s.Image, s.ImageRef, s.User = labels[imageKey], labels[imageRefKey], labels[userKey]
		// Anything else than a name is the image's: it counts as none.
		s.Stage, _ = names.ParseStage(labels[stageKey])
	}
	s.Labels, s.Annotations = map[string]string{}, map[string]string{}
	var labelKeys, annotationKeys []string
	if err := json.Unmarshal([]byte(labels[labelsKey]), &labelKeys); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMismatch, labelsKey, err)
	}
	if err := json.Unmarshal([]byte(labels[annotationsKey]), &annotationKeys); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMismatch, annotationsKey, err)
	}
	for _, k := range labelKeys {
		s.Labels[k] = labels[s.dockerKey(k)]
	}
	for _, k := range annotationKeys {
		s.Annotations[k] = labels[annotationPrefix+k]
	}
	return nil
}

// matches compares the identity that the config records with the Docker name.
// Names are compared rather than parsed: the parts of one that a client other
// than the kubelet chose may contain underscores.
func (s *Set) matches(name string) error {
	var config struct {
		Metadata struct {
			Name, Namespace, UID string
			Attempt              uint32
		}
	}
	if err := json.Unmarshal([]byte(s.Config), &config); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMismatch, configKey, err)
	}
	m := config.Metadata
	ok := false
	if s.Kind == Sandbox {
		ok = names.Name{Container: names.Pod, Pod: m.Name, Namespace: m.Namespace, UID: m.UID, Attempt: m.Attempt}.Is(name)
	} else {
		ok = names.IsContainer(name, m.Name, m.Attempt)
	}
	if !ok {
		return fmt.Errorf("%w: recorded as %s %q, attempt %d, name %q", ErrMismatch, s.Kind, m.Name, m.Attempt, name)
	}
	return nil
}

// decodeForeign reads the labels that cri-dockerd and dockershim write. They
// always write the kind, and on containers the sandbox and the log path; their
// labels of the kubelet cannot be told from the image's.
func decodeForeign(kind Kind, labels map[string]string) Set {
	s := Set{Kind: kind, Labels: map[string]string{}, Annotations: map[string]string{}}
	if kind == Container {
		s.SandboxID, s.LogPath = labels[sandboxKey], labels[logPathKey]
	}
	for k, v := range labels {
		annotation, isAnnotation := strings.CutPrefix(k, annotationPrefix)
		switch {
		case k == kindKey, k == sandboxKey, k == logPathKey, strings.HasPrefix(k, ownPrefix):
		case k == nameKey && kind == Sandbox:
		case isAnnotation:
			s.Annotations[annotation] = v
		default:
			s.Labels[k] = v
		}
	}
	return s
}

// dockerKey returns the Docker label under which the pod label k is kept.
func (s Set) dockerKey(k string) string {
	switch {
	case k == kindKey, k == sandboxKey, k == logPathKey, k == nameKey && s.Kind == Sandbox,
		strings.HasPrefix(k, annotationPrefix), strings.HasPrefix(k, ownPrefix):
		return labelPrefix + k
	default:
		return k
	}
}

// Filter returns the terms of a Docker label filter that match s.Kind and
// s.SandboxID. Empty fields match everything that is ours.
func (s Set) Filter() []string {
	terms := []string{kindKey}
	if s.Kind != "" {
		terms[0] += "=" + string(s.Kind)
	}
	if s.SandboxID != "" {
		terms = append(terms, sandboxKey+"="+s.SandboxID)
	}
	return terms
}

// Helper returns the labels of a helper container, which never runs and belongs to
// no pod, with a key of its own. It has a kind too, although not that of a pod:
// users who prune containers exclude pods by that key, and Docker takes one such
// filter only.
func Helper(key, value string) map[string]string {
	return map[string]string{key: value, kindKey: "idle"}
}
