// Package podpolicy holds what the operator lets pods have beyond the fields of the CRI:
// annotations that reach the low-level runtime (oci-annotations), limits that annotations
// set (allow-annotations), and runtime handlers that are containerd shims (shim-runtimes). It
// also decides which containers share a shim (shim-per-pod), and which get what other runtimes
// have options for and Docker does not (Edits).
// It parses these options, and translates the annotations of pods and containers. It is
// pure: values in, values out, no I/O.
//
// Errors about a pod are of kind InvalidArgument if a value is wrong, PermissionDenied if the
// operator does not allow the annotation, and FailedPrecondition if the Engine cannot do it.
package podpolicy

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"berth/core/engine"
	"berth/core/names"
)

// Names of the options, for messages.
const (
	OCIAnnotationsOption   = "oci-annotations"
	AllowAnnotationsOption = "allow-annotations"
	ShimRuntimesOption     = "shim-runtimes"
	ShimPerPodOption       = "shim-per-pod"

	DeviceOwnershipOption    = "device-ownership-from-security-context"
	PodUTSNamespaceOption    = "pod-uts-namespace"
	WithoutHostDevicesOption = "privileged-without-host-devices"
)

// DefaultOCIAnnotations is the default of oci-annotations: what gVisor and Kata Containers
// read, for runtimes and shims with their usual names. Both have settings of their own for
// what a pod may change.
var DefaultOCIAnnotations = []string{
	"runsc=dev.gvisor.*", "io.containerd.runsc.v1=dev.gvisor.*",
	"kata*=io.katacontainers.*", "io.containerd.kata*.v2=io.katacontainers.*",
}

// Options are the values of the options.
type Options struct {
	OCIAnnotations   []string // GLOB or RUNTIME=GLOB
	AllowAnnotations []string // ANNOTATION=NAMESPACE
	ShimRuntimes     []string // SHIM or HANDLER=SHIM
	ShimPerPod       bool     // the containers of a pod share one process of containerd's shim

	DeviceOwnership    bool     // devices belong to the user and group of the container's security context
	PodUTSNamespace    bool     // the containers of a pod share its UTS namespace
	WithoutHostDevices []string // handlers whose privileged containers do not get the devices of the node
}

// A Policy is what pods may have. The zero value allows nothing.
type Policy struct {
	passthrough []passthrough
	namespaces  map[string][]string // that may use an annotation, by its name; * for all
	shims       map[string]string   // by runtime handler
	shimPerPod  bool
	edits       Edits    // but for WithoutHostDevices
	noDevices   []string // handlers of privileged-without-host-devices

	// ociAnnotationsSet reports that oci-annotations is not the default.
	ociAnnotationsSet bool
}

// A passthrough lets annotations reach a low-level runtime.
type passthrough struct {
	runtime string // glob of HostConfig.Runtime
	key     string // glob of the annotation's name
}

// New returns the policy of the options. The error names what is allowed; it does not name
// the option.
func New(o Options) (p Policy, err error) {
	p.shimPerPod, p.edits = o.ShimPerPod, Edits{DeviceOwnership: o.DeviceOwnership, PodUTSNamespace: o.PodUTSNamespace}
	p.ociAnnotationsSet = !slices.Equal(o.OCIAnnotations, DefaultOCIAnnotations)
	for _, entry := range o.OCIAnnotations {
		if err := p.addPassthrough(entry); err != nil {
			return Policy{}, err
		}
	}
	for _, entry := range o.AllowAnnotations {
		if err := p.addNamespace(entry); err != nil {
			return Policy{}, err
		}
	}
	for _, entry := range o.ShimRuntimes {
		if err := p.addShim(entry); err != nil {
			return Policy{}, err
		}
	}
	for _, handler := range o.WithoutHostDevices {
		if !handlerName().MatchString(handler) {
			return Policy{}, fmt.Errorf("%q must be the handler of a RuntimeClass, or %s", handler, DefaultHandlerName)
		}
		p.noDevices = append(p.noDevices, handler)
	}
	return p, nil
}

func (p *Policy) addPassthrough(entry string) error {
	runtime, key, forOne := strings.Cut(entry, "=")
	if !forOne {
		runtime, key = "*", entry
	}
	_, runtimeErr := path.Match(runtime, "")
	_, keyErr := path.Match(key, "")
	switch {
	case runtime == "" || runtimeErr != nil || keyErr != nil || strings.ContainsAny(entry, " \t\n"):
		return fmt.Errorf("%q must be GLOB or RUNTIME=GLOB, like kata=io.katacontainers.*", entry)
	case key == "" || strings.ContainsAny(key[:1], `*?[\`):
		return fmt.Errorf("%q: the glob of an annotation must begin with plain text, like io.katacontainers.*: runtimes do what annotations say, and a pod has those that its author likes", entry)
	case isReserved(key):
		return fmt.Errorf("%q: annotations that begin with %s are set by berthd alone", entry, strings.Join(reservedPrefixes, " or "))
	}
	p.passthrough = append(p.passthrough, passthrough{runtime, key})
	return nil
}

func (p *Policy) addNamespace(entry string) error {
	annotation, namespace, ok := strings.Cut(entry, "=")
	if !ok || !slices.Contains(limitAnnotations, annotation) || namespace != "*" && !label().MatchString(namespace) {
		return fmt.Errorf("%q must be ANNOTATION=NAMESPACE with one of the annotations %s and a namespace or *, like %s=*", entry, strings.Join(limitAnnotations, ", "), Ulimits)
	}
	if p.namespaces == nil {
		p.namespaces = map[string][]string{}
	}
	p.namespaces[annotation] = append(p.namespaces[annotation], namespace)
	return nil
}

// label matches a DNS label (RFC 1123). Namespaces and the handlers of RuntimeClasses are
// such labels.
var label = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`) })

func (p *Policy) addShim(entry string) error {
	handler, shim, named := strings.Cut(entry, "=")
	if !named {
		shim = handler
	}
	if !names.IsShim(shim) || named && !label().MatchString(handler) {
		return fmt.Errorf("%q must be a shim like io.containerd.runsc.v1, or HANDLER=SHIM like gvisor=io.containerd.runsc.v1 with the handler of a RuntimeClass", entry)
	}
	if other, taken := p.shims[handler]; taken {
		return fmt.Errorf("%q: the handler %s is the shim %s already", entry, handler, other)
	}
	if p.shims == nil {
		p.shims = map[string]string{}
	}
	p.shims[handler] = shim
	return nil
}

// Parse returns a function that checks the value of an option, a list separated by commas. add
// stores the list in the Options.
func Parse(add func(*Options, []string)) func(string) ([]string, error) {
	return func(text string) ([]string, error) {
		var list []string
		for part := range strings.SplitSeq(text, ",") {
			if part = strings.TrimSpace(part); part != "" {
				list = append(list, part)
			} else if strings.TrimSpace(text) != "" {
				return nil, errors.New("must be a list separated by commas, without empty entries")
			}
		}
		var o Options
		add(&o, list)
		_, err := New(o)
		return list, err
	}
}

// A Limitation is an option that has no effect with an Engine, or not all of it.
type Limitation struct {
	Option string
	Reason string // what the Engine lacks
	Fix    string
}

// Limitations returns the options that the operator has set and that an Engine with these
// features cannot do.
func (p Policy) Limitations(features engine.Features) (list []Limitation) {
	docker := "Docker " + features.Version
	if len(p.passthrough) > 0 && p.ociAnnotationsSet && !features.Annotations {
		list = append(list, Limitation{OCIAnnotationsOption, docker + " passes no annotations to runtimes, Docker 24 and newer do: pods run without them", "upgrade Docker, or remove the option"})
	}
	if len(p.shims) > 0 && !features.ShimRuntimes {
		list = append(list, Limitation{ShimRuntimesOption, docker + " does not accept shims as runtimes, Docker 23 and newer do: pods with these handlers are refused", "upgrade Docker, or remove the option"})
	}
	if err := checkWritableCgroups(features); len(p.namespaces[WritableCgroups]) > 0 && err != nil {
		list = append(list, Limitation{AllowAnnotationsOption, WritableCgroups + ": " + err.Error() + ": pods with this annotation are refused", "remove the annotation from the option"})
	}
	if err := checkRootfsSize(features); len(p.namespaces[RootfsSize]) > 0 && err != nil {
		list = append(list, Limitation{AllowAnnotationsOption, RootfsSize + ": " + err.Error() + ": pods with this annotation are refused",
			"remove the annotation from the option, or have Docker's data on xfs that is mounted with pquota"})
	}
	return list
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
