package criu

import (
	"encoding/json"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Annotations returns the annotations that containerd and CRI-O give to the OCI spec of a container: checkpointctl shows those of containerd
// (pkg/cri/annotations), and a restore by CRI-O reads its own.
func Annotations(c *runtimeapi.Container, image string) map[string]string {
	name, labels := c.GetMetadata().GetName(), c.GetLabels()
	return map[string]string{
		"io.kubernetes.cri.container-type":    "container",
		"io.kubernetes.cri.container-name":    name,
		"io.kubernetes.cri.image-name":        image,
		"io.kubernetes.cri.sandbox-id":        c.GetPodSandboxId(),
		"io.kubernetes.cri.sandbox-name":      labels["io.kubernetes.pod.name"],
		"io.kubernetes.cri.sandbox-namespace": labels["io.kubernetes.pod.namespace"],
		"io.kubernetes.cri.sandbox-uid":       labels["io.kubernetes.pod.uid"],

		"io.kubernetes.cri-o.Metadata":    jsonText(map[string]any{"name": name, "attempt": c.GetMetadata().GetAttempt()}),
		"io.kubernetes.cri-o.Annotations": jsonText(c.GetAnnotations()),
		"io.kubernetes.cri-o.Labels":      jsonText(labels),
		"io.kubernetes.cri-o.SandboxID":   c.GetPodSandboxId(),
		"io.kubernetes.cri-o.ImageName":   image,
	}
}

// jsonText returns a map as JSON.
func jsonText(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		return "{}" // not of the maps above
	}
	return string(text)
}
