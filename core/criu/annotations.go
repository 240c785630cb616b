package criu

import (
	"encoding/json"
	"strings"

	"github.com/distribution/reference"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CRIOAnnotations returns those annotations that CRI-O gives to the OCI spec of a container which its restore reads.
func CRIOAnnotations(c *runtimeapi.Container, image string) map[string]string {
	return map[string]string{
		"io.kubernetes.cri-o.Metadata":    jsonText(map[string]any{"name": c.GetMetadata().GetName(), "attempt": c.GetMetadata().GetAttempt()}),
		"io.kubernetes.cri-o.Annotations": jsonText(c.GetAnnotations()),
		"io.kubernetes.cri-o.Labels":      jsonText(c.GetLabels()),
		"io.kubernetes.cri-o.SandboxID":   c.GetPodSandboxId(),
		"io.kubernetes.cri-o.ImageName":   image,
	}
}

// FullName returns the name of an image with its registry, as containerd needs it: Docker abbreviates names, also those of digests
// (busybox@sha256:...). An ID stays as it is, and so does what is no name.
func FullName(ref string) string {
	if strings.HasPrefix(ref, "sha256:") {
		return ref
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.TagNameOnly(named).String()
}

// jsonText returns a map as JSON.
func jsonText(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		return "{}" // not of the maps above
	}
	return string(text)
}
