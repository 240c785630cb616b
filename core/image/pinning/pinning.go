// Package pinning decides which images are pinned: the kubelet's garbage collection must not
// remove them. It decides by facts alone, without I/O.
//
// Policy is what the operator has configured, Image is what is known of one image, and
// Policy.Reason returns why the image is pinned, if it is. Patterns are the globs of the
// option pinned-images.
package pinning

import (
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
)

// A Reason is why an image is pinned. It is the value of a label of metrics.
type Reason string

// The reasons, in the order in which they are checked.
const (
	None      Reason = ""          // the image is not pinned
	Pause     Reason = "pause"     // pause containers run it
	Pattern   Reason = "pattern"   // a glob of pinned-images matches one of its names
	Container Reason = "container" // a container outside of Kubernetes uses it
	Local     Reason = "local"     // it has a name that no registry is known to have
	Label     Reason = "label"     // its label berth.pin counts
)

// Reasons returns all reasons but None.
func Reasons() []Reason { return []Reason{Pause, Pattern, Container, Local, Label} }

// Explain returns why an image is pinned and which option decides that.
func (r Reason) Explain() string {
	switch r {
	case Pause:
		return "pause containers run it (option pod-infra-container-image)"
	case Pattern:
		return "it has a name that the option pinned-images lists"
	case Container:
		return "a container outside of Kubernetes uses it (option keep-local-images)"
	case Local:
		return "it was built, loaded or tagged on this node, and cannot be pulled by that name (option keep-local-images)"
	case Label:
		return "it has the label " + LabelKey + " (option pin-labels)"
	default:
		return "it is not pinned"
	}
}

// LabelKey is the label by which the author of an image asks for it to be pinned. Only a true
// value, as of strconv.ParseBool, has an effect.
const LabelKey = "berth.pin"

// Labels says on which images the label counts: the author of an image that was pulled should
// not decide what stays on the disk of a node.
type Labels string

// The values of the option pin-labels.
const (
	LabelsOfBuilt Labels = "built" // on those with a name that no registry is known to have
	LabelsOfAll   Labels = "all"
	LabelsOfNone  Labels = "none"
)

// A Policy is the configuration of the operator.
type Policy struct {
	// KeepLocal pins images for the reasons Local and Container.
	KeepLocal bool
	Labels    Labels
	Patterns  *Patterns // nil matches nothing
}

// An Image is what is known of one image.
type Image struct {
	Tags, Digests []string // as the Engine lists them; digests among the tags are allowed
	Labels        map[string]string
	// Repositories are those that registries are known to have the image in.
	Repositories []string
	IsPause      bool // pause containers run it
	InUse        bool // a container outside of Kubernetes uses it
}

// Reason returns why i is pinned, or None.
func (p Policy) Reason(i Image) Reason {
	switch {
	case i.IsPause:
		return Pause
	case p.Patterns.matchAny(i.Tags) || p.Patterns.matchAny(i.Digests):
		return Pattern
	case p.KeepLocal && i.InUse:
		return Container
	case p.KeepLocal && i.isLocal():
		return Local
	case p.labelCounts(i):
		return Label
	default:
		return None
	}
}

// labelCounts reports whether the image has the label, and the operator lets it count. An
// image without a name is what a later build has replaced, with the same labels: each build
// would leave one more on the disk.
func (p Policy) labelCounts(i Image) bool {
	if set, err := strconv.ParseBool(i.Labels[LabelKey]); err != nil || !set {
		return false
	}
	switch p.Labels {
	case LabelsOfAll:
		return slices.ContainsFunc(slices.Concat(i.Tags, i.Digests), isName)
	case LabelsOfBuilt:
		return i.isLocal()
	default:
		return false
	}
}

// isLocal reports whether one of the tags is in a repository that no registry is known to
// have the image in. An image without a tag is not local: it is what a build or a pull has
// replaced, or was pulled by its digest.
func (i Image) isLocal() bool {
	return slices.ContainsFunc(i.Tags, func(tag string) bool {
		if !isName(tag) || strings.Contains(tag, "@") {
			return false
		}
		repo := Repository(tag)
		return !slices.ContainsFunc(i.Repositories, func(known string) bool { return sameRepository(known, repo) })
	})
}

// isName reports whether ref is a name; Docker before 24 lists <none>:<none>.
func isName(ref string) bool { return !strings.Contains(ref, "<none>") }

// Repository returns the normalized repository of a reference, such as
// docker.io/library/busybox, or ref itself if it is invalid.
func Repository(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return named.Name()
}

// sameRepository compares two repositories without the ports of their registries: the labels
// by which containerd remembers where an image came from have none
// (containerd.io/distribution.source.HOST).
func sameRepository(a, b string) bool { return a == b || withoutPort(a) == withoutPort(b) }

func withoutPort(repo string) string {
	registry, path, _ := strings.Cut(repo, "/")
	if host, _, err := net.SplitHostPort(registry); err == nil {
		return host + "/" + path
	}
	return repo
}
