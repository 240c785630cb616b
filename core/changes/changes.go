// Package changes has the attributes of log lines about changes of the node: a pod that was created, a container that
// has exited, an image that was pulled. Each such line is at level info, once per change, and
// names what was changed with the same keys.
package changes

import (
	"log/slog"
	"net/netip"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/names"
)

// Pod returns the pod's name and namespace and the ID of its sandbox.
func Pod(sandbox string, m *runtimeapi.PodSandboxMetadata) slog.Attr {
	return slog.Group("", slog.String("pod", m.GetName()), slog.String("namespace", m.GetNamespace()), slog.String("sandbox", sandbox))
}

// Container returns the container's name and ID, its image and its pod. The names are those in its Docker name, which an
// image cannot set.
func Container(id, dockerName, sandbox, image string) slog.Attr {
	n, _ := names.Parse(dockerName) // of a container that berth knows
	return slog.Group("",
		slog.String("pod", n.Pod), slog.String("namespace", n.Namespace), slog.String("sandbox", sandbox),
		slog.String("name", n.Container), slog.String("container", id), slog.String("image", image))
}

// Image returns the reference of an image as the caller has written it, and its ID.
func Image(ref, id string) slog.Attr {
	return slog.Group("", slog.String("image", ref), slog.String("id", id))
}

// Addresses returns the addresses of a pod.
func Addresses(addrs []netip.Addr) slog.Attr {
	var texts []string
	for _, addr := range addrs {
		texts = append(texts, addr.String())
	}
	return slog.String("addresses", strings.Join(texts, ","))
}

// Took returns the time since start.
func Took(start time.Time) slog.Attr {
	return slog.Duration("took", time.Since(start).Round(time.Millisecond))
}
