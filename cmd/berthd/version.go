package main

import (
	"fmt"
	"io"
	"runtime"
)

// Set by the build: -X main.version=... -X main.commit=...
var (
	version = "0.0.0-dev"
	commit  = "unknown"
)

// buildinfo prints what this was built from, in cri-dockerd's form.
func buildinfo(out io.Writer, name string) error {
	_, err := fmt.Fprintf(out, "Program: %s\nVersion: %s\nGitCommit: %s\nGo: %s\n", name, version, commit, runtime.Version())
	return err
}
