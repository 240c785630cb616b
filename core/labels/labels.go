// Package labels owns every label the daemon writes on a Docker container.
//
// Docker is our only database: what a container is in Kubernetes terms is
// written on it once, when it is created, and read back from it ever after.
package labels

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
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

// LookKey is on containers that are made to look into an image, and are no
// pod's. Its value tells them apart.
const LookKey = ownPrefix + "look"

// HoldKey is on containers that never run and are no pod's: each holds an image
// whose files a container of a pod has as a volume. Its value is that container's
// stage.
const HoldKey = ownPrefix + "hold"

// Idle returns the labels of a container that never runs and is no pod's, with key for
// what it is and value. It has a kind, which is no pod's either: whoever prunes
// containers spares pods by that key, and Docker takes one such filter only.
func Idle(key, value string) map[string]string {
	return map[string]string{key: value, kindKey: "idle"}
}

// podName is what stands in nameKey of a sandbox.
const podName = "POD"

// A Kind tells a pod's sandbox from the containers that run in it.
type Kind string

// The kinds there are. Docker containers of no kind are not ours.
const (
	Sandbox   Kind = "podsandbox"
	Container Kind = "container"
)

// A Set is what the labels of one Docker container say.
type Set struct {
	Kind        Kind
	SandboxID   string            // of the pod a container runs in; empty for a sandbox
	LogPath     string            // where the kubelet looks for the log; empty for a sandbox
	Labels      map[string]string // as the kubelet gave them
	Annotations map[string]string // as the kubelet gave them

	// The rest is known of what berth has created, not of what cri-dockerd has.

	Config   string // the CRI config, as JSON, without what the Engine keeps elsewhere
	Handler  string // runtime handler of a sandbox
	Image    string // of a container, as its user wrote it
	ImageRef string // of a container, with the repository's digest if there was one
	User     string // of a container, whom it runs as, as JSON of the CRI; empty if not known
	Stage    string // of a container, the name of its staged mounts; empty if it has none
}

// Ours reports whether berth itself has created the container.
func (s Set) Ours() bool { return s.Config != "" }

// Encode returns s as Docker labels.
func (s Set) Encode() map[string]string {
	out := make(map[string]string, len(s.Labels)+len(s.Annotations)+8)
	for k, v := range s.Annotations {
		out[annotationPrefix+k] = v
	}
	for k, v := range s.Labels {
		out[s.dockerKey(k)] = v
	}
	for k, v := range map[string]string{
		kindKey:     string(s.Kind),
		sandboxKey:  s.SandboxID,
		logPathKey:  s.LogPath,
		configKey:   s.Config,
		handlerKey:  s.Handler,
		imageKey:    s.Image,
		imageRefKey: s.ImageRef,
		userKey:     s.User,
		stageKey:    s.Stage,
	} {
		if v != "" {
			out[k] = v
		}
	}
	if s.Kind == Sandbox {
		out[nameKey] = podName
	}
	if s.Ours() {
		// Docker adds the labels of the image to those of the container; what
		// the kubelet gave is only what is named here.
		out[labelsKey] = keys(s.Labels)
		out[annotationsKey] = keys(s.Annotations)
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

// Decode reads back what Encode wrote, and what cri-dockerd and dockershim did.
func Decode(labels map[string]string) Set {
	s := Set{
		Kind:        Kind(labels[kindKey]),
		SandboxID:   labels[sandboxKey],
		LogPath:     labels[logPathKey],
		Config:      labels[configKey],
		Handler:     labels[handlerKey],
		Image:       labels[imageKey],
		ImageRef:    labels[imageRefKey],
		User:        labels[userKey],
		Stage:       labels[stageKey],
		Labels:      map[string]string{},
		Annotations: map[string]string{},
	}
	var said, noted []string
	if s.Ours() &&
		json.Unmarshal([]byte(labels[labelsKey]), &said) == nil &&
		json.Unmarshal([]byte(labels[annotationsKey]), &noted) == nil {
		for _, k := range said {
			s.Labels[k] = labels[s.dockerKey(k)]
		}
		for _, k := range noted {
			s.Annotations[k] = labels[annotationPrefix+k]
		}
		return s
	}
	for k, v := range labels {
		annotation, isAnnotation := strings.CutPrefix(k, annotationPrefix)
		switch {
		case k == kindKey, k == sandboxKey, k == logPathKey, strings.HasPrefix(k, ownPrefix):
		case k == nameKey && s.Kind == Sandbox:
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
