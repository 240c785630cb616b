package names

import (
	"path"
	"strings"
)

// RuncShim is containerd's shim for runc and for other programs with its command line.
const RuncShim = "io.containerd.runc.v2"

// Names of berth's OCI runtime, which changes containers and then runs another OCI runtime.
const (
	ociProgram = "berth-oci"
	ociRuntime = "berth" // the one that runs runc

	// InstructionsFlag is the flag of the program with the directory of its instructions.
	InstructionsFlag = "--berth-instructions="
	// DefaultInstructionsDir is the directory of the instructions without that flag.
	DefaultInstructionsDir = "/run/berth/oci"
)

// IsOCIProgram reports whether a runtime with that path calls the program of berth's OCI runtime, by its name or, with that of the
// runtime below, by berth-oci-NAME.
func IsOCIProgram(file string) bool {
	name := path.Base(file)
	return name == ociProgram || strings.HasPrefix(name, ociProgram+"-")
}

// OCIRuntime returns the name in daemon.json of the runtime that runs the runtime below.
func OCIRuntime(below string) string {
	if below == "runc" || below == RuncShim { // names of the same runtime
		return ociRuntime
	}
	return ociRuntime + "-" + below
}

// BelowOCIRuntime returns the runtime that the runtime name of daemon.json runs, "" if the name
// is not one that OCIRuntime returns.
func BelowOCIRuntime(name string) string {
	if name == ociRuntime {
		return "runc"
	}
	below, _ := strings.CutPrefix(name, ociRuntime+"-")
	if below == name {
		return ""
	}
	return below
}

// InstructionsDir returns the directory in which a runtime of daemon.json with that program and
// these arguments finds what to change, "" if it is not berth's.
func InstructionsDir(program string, args []string) string {
	if !IsOCIProgram(program) {
		return ""
	}
	for _, arg := range args {
		if dir, ok := strings.CutPrefix(arg, InstructionsFlag); ok {
			return dir
		}
	}
	return DefaultInstructionsDir
}
