package todocker

import (
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// signalSynonyms maps names of signals that the CRI has and Docker does not have
// (moby/sys/signal) to those that Docker has.
var signalSynonyms = map[string]string{
	"SIGCLD":  "SIGCHLD",
	"SIGIOT":  "SIGABRT",
	"SIGPOLL": "SIGIO",
}

// stopSignal returns Docker's name of a signal, or "" for SIGNAL_RUNTIME_DEFAULT. The
// numbers of the CRI's enum are not those of the kernel.
func stopSignal(s runtimeapi.Signal) (string, error) {
	if s == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return "", nil
	}
	name, ok := runtimeapi.Signal_name[int32(s)]
	if !ok {
		return "", invalid("stop_signal %d: must be a value of the CRI's enum Signal", s)
	}
	name = strings.TrimPrefix(name, "SIGNAL_")
	if synonym, ok := signalSynonyms[name]; ok {
		return synonym, nil
	}
	name = strings.Replace(name, "MINPLUS", "MIN+", 1)
	return strings.Replace(name, "MAXMINUS", "MAX-", 1), nil
}
