package tocri

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// stopSignal translates the stop signal of a container, a name or a number. Without one
// Docker sends SIGTERM. A signal that the CRI does not have is SIGNAL_RUNTIME_DEFAULT.
func stopSignal(name string) runtimeapi.Signal {
	if name == "" {
		return runtimeapi.Signal_SIGNAL_SIGTERM
	}
	if number, err := strconv.Atoi(name); err == nil {
		name = signalName(number)
	}
	name = strings.TrimPrefix(strings.ToUpper(name), "SIG")
	name = strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(name)
	return runtimeapi.Signal(runtimeapi.Signal_value["SIGNAL_SIG"+name])
}

// The real-time signals as Docker (moby/sys/signal) and C libraries number them: glibc uses
// the kernel's first two itself, see signal(7).
const (
	rtMin = 34
	rtMax = 64
)

// signalName returns the name of a signal on this node, or "" if there is none. Like
// kill -l it counts the lower half of the real-time signals from SIGRTMIN and the upper
// half from SIGRTMAX.
func signalName(number int) string {
	switch {
	case number == rtMin:
		return "SIGRTMIN"
	case number == rtMax:
		return "SIGRTMAX"
	case number > rtMin && number <= rtMin+15:
		return fmt.Sprintf("SIGRTMIN+%d", number-rtMin)
	case number > rtMin && number < rtMax:
		return fmt.Sprintf("SIGRTMAX-%d", rtMax-number)
	default:
		return unix.SignalName(unix.Signal(number))
	}
}
