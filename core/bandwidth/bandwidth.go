// Package bandwidth parses the annotations that limit the network bandwidth of a pod. It is
// pure: values in, values out, no I/O.
package bandwidth

import (
	"fmt"

	"github.com/containerd/errdefs"

	"berth/core/quantity"
)

// Limits are the limits of a pod in bits per second; 0 is no limit.
type Limits struct{ Ingress, Egress int64 }

// The range of a bandwidth in bits per second, as in pkg/util/bandwidth of Kubernetes.
const (
	minBandwidth = 1e3
	maxBandwidth = 1e15
)

// Parse returns the limits in the annotations of a pod, which the API server does not
// validate. Errors are of kind InvalidArgument.
func Parse(annotations map[string]string) (limits Limits, err error) {
	for annotation, limit := range map[string]*int64{
		"kubernetes.io/ingress-bandwidth": &limits.Ingress,
		"kubernetes.io/egress-bandwidth":  &limits.Egress,
	} {
		text, ok := annotations[annotation]
		if !ok {
			continue
		}
		if *limit, ok = quantity.Parse(text, minBandwidth, maxBandwidth); !ok {
			return limits, fmt.Errorf("annotation %s %q: must be a quantity from 1k to 1P, in bits per second: %w", annotation, text, errdefs.ErrInvalidArgument)
		}
	}
	return limits, nil
}
