// Package labels encodes the Kubernetes metadata of a container as Docker labels, decodes
// them, and decides which containers belong to pods.
//
// Docker is the only database: the metadata of a container, a Set, is written when the
// container is created and read from its labels after that.
// Labels alone prove nothing, because Docker merges the labels of an image into
// each container that is created from it (docker 28.5, daemon/commit.go, merge).
// Read therefore trusts a label only because of what no image can set: the container's name, and a
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

// Keys of dockershim and cri-dockerd. berth uses the same ones, so that a node can be
// switched between the runtimes without restarting its pods.
const (
	kindKey          = "io.kubernetes.docker.type"
	sandboxKey       = "io.kubernetes.sandbox.id"
	logPathKey       = "io.kubernetes.container.logpath"
	nameKey          = "io.kubernetes.container.name"
	annotationPrefix = "annotation."
)

// Keys of berth.
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
	nriKey         = ownPrefix + "nri"
	// labelPrefix escapes pod labels whose keys have a meaning here: a pod can
	// have a label "annotation.x".
	labelPrefix = ownPrefix + "label."
)

// podName is the value of nameKey on a sandbox.
const podName = "POD"

// A Kind is the role of a Docker container in a pod.
type Kind string

// The kinds. A Docker container that belongs to no pod has the empty kind.
const (
	Sandbox   Kind = "podsandbox"
	Container Kind = "container"
)

// A Set is the metadata in the labels of one Docker container.
type Set struct {
	Kind        Kind
	SandboxID   string            // of the sandbox of a container; empty for a sandbox
	LogPath     string            // log path of the CRI; empty for a sandbox
	Labels      map[string]string // of the CRI
	Annotations map[string]string // of the CRI

	// The fields below are written by berth and not by cri-dockerd.

	Config   string         // the CRI config as JSON, without the fields that an inspect returns elsewhere
	Handler  string         // runtime handler of a sandbox
	Image    string         // of a container, as in the pod spec
	ImageRef string         // of a container, with the digest of the repository if it has one
	User     string         // of a container, a runtime.v1.LinuxContainerUser as JSON; empty if not known
	Premount names.Premount // of a container, the name of its premounts; zero if it has none
	Plugins  []string       // of a container, the NRI plugins that have changed it; only written
}

// CreatedByBerth reports whether berth has created the container.
func (s Set) CreatedByBerth() bool { return s.Config != "" }

// OwnID stands for the ID of the container itself in the host paths of mounts of Set.Config, which is written before Docker chooses it. No path can
// contain a NUL.
const OwnID = "\x00"

// Encode returns s as Docker labels. All keys that Read reads are written, also with empty
// values: a label that is set when a container is created overrides the label of its
// image with the same key.
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
		stageKey:       s.Premount.String(),
		labelsKey:      keys(s.Labels),
		annotationsKey: keys(s.Annotations),
		nriKey:         plugins(s.Plugins),
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

// maxPlugins bounds the label with the names of plugins, in bytes.
const maxPlugins = 4096

// plugins joins names of plugins, as many as fit.
func plugins(names []string) string {
	text := strings.Join(names, ",")
	if len(text) <= maxPlugins {
		return text
	}
	const more = ",..."
	return text[:strings.LastIndexByte(text[:maxPlugins-len(more)], ',')+1] + more[1:]
}

// ErrMismatch is the kind of error for a container that belongs to a pod by its labels but
// not by its name: for example one that was created with docker run from an image that has
// such labels, as docker commit of a pod's container creates it. It belongs to no pod.
var ErrMismatch = errors.New("labels and name disagree")

// Read returns the metadata of an inspected container. If it belongs to no pod the Kind is
// empty; if its labels claim that it does, the error is of kind ErrMismatch too.
//
// The name decides, because an image cannot set it: it must be the name of the pod
// and attempt in the labels. berth's own labels are read only from a container that berth
// has created (see ours).
func Read(c container.InspectResponse) (Set, error) {
	if c.ContainerJSONBase == nil || c.Config == nil {
		return Set{}, errors.New("inspect result is incomplete")
	}
	s, err := read(c.Name, c.Config.Labels, ours(c))
	if err != nil || !s.CreatedByBerth() {
		return s, err
	}
	// berth before 1.1 wrote no label for an empty value, so that a label of the image could
	// take its place: the handler and user are used only if the inspect result confirms them.
	// A handler that is a shim has any name; berth before 1.1 accepted none. Nor did it use berth's OCI runtime.
	runtime := c.HostConfig.Runtime
	if s.Handler != runtime && s.Handler != dockerHandler && !names.IsShim(runtime) && names.BelowOCIRuntime(runtime) == "" {
		s.Handler = ""
	}
	if !confirmsUser(c.Config.User, s.User) {
		s.User = ""
	}
	return s, nil
}

// ReadSummary is Read for an entry of a list of containers. A list does not show whether
// berth has created a container, so the result has only the metadata that cri-dockerd writes
// too.
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

// Name returns the name of a container in a list. Docker lists the names of legacy
// links as well, which have two slashes.
func Name(row container.Summary) string {
	for _, n := range row.Names {
		if strings.LastIndexByte(n, '/') == 0 {
			return n
		}
	}
	return ""
}

// ours reports whether berth has created c. berth sets HostConfig.Init to false on every
// container; cri-dockerd and dockershim leave it unset, and an image cannot set it.
func ours(c container.InspectResponse) bool {
	return c.HostConfig != nil && c.HostConfig.Init != nil && !*c.HostConfig.Init && c.Config.Labels[configKey] != ""
}

// confirmsUser reports whether configured, the user of an inspected container as "uid" or
// "uid:gid", is the user in recorded.
func confirmsUser(configured, recorded string) bool {
	var user struct{ UID, GID json.Number } // of runtime.v1.LinuxContainerUser
	if json.Unmarshal([]byte(recorded), &user) != nil {
		return false
	}
	uid, gid, hasGroup := strings.Cut(cmp.Or(configured, "0"), ":")         // Docker's default is root
	number := func(n json.Number) string { return cmp.Or(n.String(), "0") } // protojson leaves zeros out
	return uid == number(user.UID) && (!hasGroup || gid == number(user.GID))
}

// dockerHandler is a runtime handler for Docker's default runtime, as "" is.
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
		// Any other text is a label of the image: it is ignored.
		s.Premount, _ = names.ParsePremount(labels[stageKey])
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

// matches compares the metadata in the config with the Docker name. The name is
// compared and not parsed, because clients other than the kubelet can use underscores
// in its parts.
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
		return fmt.Errorf("%w: labels of %s %q, attempt %d, on a container with the name %q", ErrMismatch, s.Kind, m.Name, m.Attempt, name)
	}
	return nil
}

// decodeForeign reads the labels of cri-dockerd and dockershim. They always write the kind,
// and on containers the sandbox and log path; other labels may be those of the
// image, which cannot be distinguished.
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

// dockerKey returns the key of the Docker label for the CRI label k.
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
// s.SandboxID. Empty fields match all containers with a kind.
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

// Helper returns the labels of a helper container, which never runs and belongs to no pod.
// It has the label io.kubernetes.docker.type too, with another value, so that
// docker container prune --filter label!=io.kubernetes.docker.type spares helpers as well
// as pods: Docker accepts one such filter only.
func Helper(key, value string) map[string]string {
	return map[string]string{key: value, kindKey: "idle"}
}
