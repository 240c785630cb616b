package podpolicy

import (
	"regexp"
	"slices"
	"sync"
)

// Edits are what containers get with berth's OCI runtime because an option has it so.
type Edits struct {
	DeviceOwnership    bool // devices belong to the user and group of the security context
	PodUTSNamespace    bool // containers join the UTS namespace of their pod
	WithoutHostDevices bool // privileged containers do not get the devices of the node
}

// Edits returns those of containers in pods with a runtime handler.
func (p Policy) Edits(handler string) Edits {
	e := p.edits
	e.WithoutHostDevices = slices.Contains(p.noDevices, HandlerName(handler))
	return e
}

// DefaultHandlerName stands for the default runtime handler where a handler needs a name.
const DefaultHandlerName = "default"

// handlerName matches the names of runtime handlers that options and files can have. Those of RuntimeClasses
// are DNS labels; names in daemon.json are not bounded.
var handlerName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9][-a-zA-Z0-9_.]{0,127}$`) })

// HandlerName returns the name of a runtime handler in options and files: DefaultHandlerName for Docker's default runtime,
// and "" for a handler that no option and no file can name.
func HandlerName(handler string) string {
	switch {
	case handler == "" || handler == defaultHandler:
		return DefaultHandlerName
	case !handlerName().MatchString(handler):
		return ""
	default:
		return handler
	}
}
