package main

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"
)

// Set by the build: -X main.version=... -X main.commit=...
var (
	version string
	commit  string
)

// built returns the version and the commit: those of the build's flags, else those that the go command
// has recorded, else 0.0.0-dev and unknown.
func built() (v, c string) {
	v, c = version, commit
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Version != "(devel)" {
			v = cmp.Or(v, info.Main.Version)
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				c = cmp.Or(c, s.Value[:min(len(s.Value), 8)])
			}
		}
	}
	return strings.TrimPrefix(cmp.Or(v, "0.0.0-dev"), "v"), cmp.Or(c, "unknown")
}

// printVersion prints the version as cri-dockerd does, for scripts that read it.
func printVersion(out io.Writer, name string) error {
	_, err := fmt.Fprintf(out, "%s %s (%s)\n", name, version, commit)
	return err
}

// printBuildinfo prints version, commit and Go version as cri-dockerd does.
func printBuildinfo(out io.Writer, name string) error {
	_, err := fmt.Fprintf(out, "Program: %s\nVersion: %s (%s)\nGitCommit: %s\nGo version: %s\n", name, version, commit, commit, runtime.Version())
	return err
}
