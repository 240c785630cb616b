package todocker

import (
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// signalWords are the signals that the CRI and the Engine spell differently,
// by the CRI's spelling.
var signalWords = map[string]string{
	"SIGCLD":  "SIGCHLD",
	"SIGIOT":  "SIGABRT",
	"SIGPOLL": "SIGIO",
}

// SignalName returns the Engine's name of a signal, "" for the runtime's
// default. The CRI's numbers are not those of the kernel.
func SignalName(s runtimeapi.Signal) (string, error) {
	if s == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return "", nil
	}
	name, ok := runtimeapi.Signal_name[int32(s)]
	if !ok {
		return "", invalid("stop_signal %d", s)
	}
	name = strings.TrimPrefix(name, "SIGNAL_")
	if word, ok := signalWords[name]; ok {
		return word, nil
	}
	name = strings.Replace(name, "MINPLUS", "MIN+", 1)
	return strings.Replace(name, "MAXMINUS", "MAX-", 1), nil
}
