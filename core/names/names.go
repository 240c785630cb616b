// Package names formats and parses the names of the Docker containers of pods, in the
// scheme of dockershim and cri-dockerd, the names of premounts and of shim groups, and checks those of
// shims.
package names

import (
	"crypto/rand"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
)

// Pod is the container name in the Docker name of a sandbox.
const Pod = "POD"

// A Name is k8s_<container>_<pod>_<namespace>_<uid>_<attempt>, the scheme of
// dockershim and cri-dockerd. None of its parts may contain an underscore;
// Kubernetes forbids it for all of them.
type Name struct {
	Container string // Pod for a sandbox
	Pod       string
	Namespace string
	UID       string
	Attempt   uint32
	// Suffix makes the name unique if Docker keeps the name without one for a container
	// that it does not have any more. Usually empty.
	Suffix string
}

// UnknownID stands for the ID of a container that does not exist yet in what is prepared for it. Only this process knows it.
var UnknownID = "unknown-" + rand.Text()

// String returns the Docker name.
func (n Name) String() string {
	s := fmt.Sprintf("k8s_%s_%s_%s_%s_%d", n.Container, n.Pod, n.Namespace, n.UID, n.Attempt)
	if n.Suffix != "" {
		s += "_" + n.Suffix
	}
	return s
}

// Is reports whether the Docker name s, with or without its leading slash, is n
// with any suffix or none.
func (n Name) Is(s string) bool {
	n.Suffix = ""
	rest, ok := strings.CutPrefix(strings.TrimPrefix(s, "/"), n.String())
	return ok && isSuffix(rest)
}

// IsContainer reports whether the Docker name s is that of a container and attempt, in
// any pod.
func IsContainer(s, container string, attempt uint32) bool {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(s, "/"), "k8s_"+container+"_")
	if !ok {
		return false
	}
	number := fmt.Sprintf("_%d", attempt)
	if strings.HasSuffix(rest, number) {
		return true
	}
	i := strings.LastIndexByte(rest, '_')
	return i >= 0 && isSuffix(rest[i:]) && strings.HasSuffix(rest[:i], number)
}

// isSuffix reports whether s can follow the attempt in a Docker name.
func isSuffix(s string) bool {
	suffix, ok := strings.CutPrefix(s, "_")
	return s == "" || ok && suffix != "" && !strings.Contains(suffix, "_")
}

// LogDirectory returns the log directory of the pod in path: the last directory with the name
// <namespace>_<pod>_<uid>, which the kubelet gives it, or "".
func (n Name) LogDirectory(path string) string {
	if n.Namespace == "" || n.Pod == "" || n.UID == "" || !strings.HasPrefix(path, "/") {
		return ""
	}
	mark := "/" + n.Namespace + "_" + n.Pod + "_" + n.UID
	at := strings.LastIndex(path, mark+"/")
	if at < 0 {
		return ""
	}
	return path[:at+len(mark)]
}

// WithoutSuffix returns the Docker name s without its suffix, so that it identifies the pod,
// container and attempt. A name in another scheme is returned as it is.
func WithoutSuffix(s string) string {
	n, err := Parse(s)
	if err != nil {
		return s
	}
	n.Suffix = ""
	return n.String()
}

// Parse parses a Docker name, with or without the leading slash that the Engine adds. The
// error is of kind InvalidArgument for a name in another scheme.
func Parse(s string) (Name, error) {
	p := strings.Split(strings.TrimPrefix(s, "/"), "_")
	if len(p) < 6 || len(p) > 7 || p[0] != "k8s" {
		return Name{}, fmt.Errorf("container name %q is not k8s_<container>_<pod>_<namespace>_<uid>_<attempt>[_<suffix>]: %w", s, errdefs.ErrInvalidArgument)
	}
	attempt, err := strconv.ParseUint(p[5], 10, 32)
	if err != nil {
		return Name{}, fmt.Errorf("attempt in container name %q is no 32-bit number: %w", s, errdefs.ErrInvalidArgument)
	}
	n := Name{Container: p[1], Pod: p[2], Namespace: p[3], UID: p[4], Attempt: uint32(attempt)}
	if len(p) == 7 {
		n.Suffix = p[6]
	}
	return n, nil
}

// A Premount is the name of the premounts of one container (see package premount): a
// random word, never a path. The zero Premount stands for none. Only NewStage and ParseStage
// return one, so that text from a label cannot be used as a path.
type Premount struct{ word string }

// premountWord matches the names that NewStage returns.
var premountWord = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Z2-7]{16}$`) })

// NewPremount returns a unique name.
func NewPremount() Premount { return Premount{rand.Text()[:16]} }

// ParsePremount parses the String of a Premount, "" for the zero one. The error is of kind
// InvalidArgument for any other text.
func ParsePremount(s string) (Premount, error) {
	if s != "" && !premountWord().MatchString(s) {
		return Premount{}, fmt.Errorf("%q is not the name of premounts: %w", s, errdefs.ErrInvalidArgument)
	}
	return Premount{s}, nil
}

// String returns the name as text, "" for none.
func (s Premount) String() string { return s.word }

// IsZero reports whether s is the zero Premount.
func (s Premount) IsZero() bool { return s.word == "" }

// shimGroup matches the names that NewShimGroup returns.
var shimGroup = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Z2-7]{26}$`) })

// NewShimGroup returns a name for the containers that share one process of containerd's shim.
// It is never used again: not for a pod of the same name, and by no other Docker on the node.
func NewShimGroup() string { return rand.Text() }

// IsShimGroup reports whether NewShimGroup can have returned name.
func IsShimGroup(name string) bool { return shimGroup().MatchString(name) }

// shim matches the names of containerd shims that berth accepts. The name becomes that of a
// program, containerd-shim-NAME-VERSION, which containerd runs as root (BinaryName in
// pkg/shim/util.go of containerd).
var shim = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^io\.containerd\.[a-z0-9]+(-[a-z0-9]+)*\.v[0-9]{1,3}$`)
})

// IsShim reports whether name is that of a containerd shim, such as io.containerd.runsc.v1.
func IsShim(name string) bool {
	const maxLength = 128 // of a name that is stored in labels and shown in messages
	return len(name) <= maxLength && shim().MatchString(name)
}

// ShimProgram returns the name of the program of a shim, "" if name is not that of a shim.
func ShimProgram(name string) string {
	if !IsShim(name) {
		return ""
	}
	parts := strings.Split(name, ".")
	return "containerd-shim-" + parts[len(parts)-2] + "-" + parts[len(parts)-1]
}
