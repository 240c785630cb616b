package ociinstall

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"berth/core/dockerconfig"
	"berth/core/names"
)

const (
	programName  = "berth-oci"
	linkPrefix   = programName + "-"
	stockRuntime = "runc"         // Docker has it without a configuration
	stockShim    = names.RuncShim // another name of it

	// InstructionsName is the directory of the instructions in the run-dir of berthd.
	InstructionsName = "oci"

	// runtimeFlag is a flag of the program, before the arguments of the runtime below.
	runtimeFlag = "--berth-runtime="
)

// isOurs reports whether a runtime in daemon.json calls the program.
func isOurs(r dockerconfig.Runtime) bool { return names.IsOCIProgram(r.Path) }

// plainWord matches what a shell leaves as it is: Docker writes path and runtimeArgs into a shell script without quotes
// (wrapRuntime in daemon/runtime_unix.go of moby).
var plainWord = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9/_.,:=@%+-]+$`) })

// entry returns the runtime of berth for the one below.
//
// Docker puts a shell before a runtime with arguments, so there are none if a link in the directory is sufficient: called
// as berth-oci-NAME the program calls NAME in PATH.
func (c Config) entry(below dockerconfig.Runtime) dockerconfig.Runtime {
	r := dockerconfig.Runtime{Name: names.OCIRuntime(below.Name), Path: filepath.Join(c.Dir, programName)}
	if c.Instructions != names.DefaultInstructionsDir {
		r.Args = append(r.Args, names.InstructionsFlag+c.Instructions)
	}
	switch {
	case strings.Contains(below.Path, "/"):
		r.Args = append(r.Args, runtimeFlag+below.Path)
	case below.Path != stockRuntime:
		r.Path = filepath.Join(c.Dir, linkPrefix+below.Path)
	}
	r.Args = append(r.Args, below.Args...)
	return r
}

// belowOf returns the program that a runtime of berth calls, or "".
func belowOf(r dockerconfig.Runtime) string {
	for _, arg := range r.Args {
		if path, ok := strings.CutPrefix(arg, runtimeFlag); ok {
			return path
		}
	}
	name := filepath.Base(r.Path)
	if name == programName {
		return stockRuntime
	}
	below, _ := strings.CutPrefix(name, linkPrefix)
	return below
}

// canCall reports whether the program can be put before a runtime: not before a shim, and not with arguments that could
// be taken for the verb of a call or for its value.
func canCall(r dockerconfig.Runtime) bool {
	return r.Path != "" && !slices.ContainsFunc(r.Args, func(arg string) bool {
		return !strings.HasPrefix(arg, "-") || !strings.Contains(arg, "=") && arg != "--debug" && arg != "--systemd-cgroup"
	})
}

// wantedRuntimes returns the runtimes that the file should have: one for each that the program can call.
func (c Config) wantedRuntimes(doc *dockerconfig.Document) ([]dockerconfig.Runtime, error) {
	below := []dockerconfig.Runtime{{Name: stockRuntime, Path: stockRuntime}}
	for _, r := range doc.Runtimes() {
		if r.Name != stockRuntime && !isOurs(r) && canCall(r) {
			below = append(below, r)
		}
	}
	var wanted []dockerconfig.Runtime
	for _, b := range below {
		r := c.entry(b)
		for _, word := range append(slices.Clone(r.Args), r.Path) {
			if !plainWord().MatchString(word) {
				return nil, fmt.Errorf("the runtime %q: Docker cannot pass %q: only letters, digits and /_.,:=@%%+- are supported", b.Name, word)
			}
		}
		if present, ok := doc.Runtime(r.Name); ok && !isOurs(present) {
			return nil, fmt.Errorf("%s has a runtime %q that is not berth's: rename it", c.ConfigFile, r.Name)
		}
		wanted = append(wanted, r)
	}
	return wanted, nil
}

// ours returns the runtimes of berth in the file.
func ours(doc *dockerconfig.Document) []dockerconfig.Runtime {
	return slices.DeleteFunc(doc.Runtimes(), func(r dockerconfig.Runtime) bool { return !isOurs(r) })
}

// dirsOf returns the directories of the programs that the runtimes call.
func dirsOf(runtimes []dockerconfig.Runtime) (dirs []string) {
	for _, r := range runtimes {
		if dir := filepath.Dir(r.Path); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// linksOf returns the names in the directory by which the runtimes call the program, but for the program's own.
func linksOf(runtimes []dockerconfig.Runtime) (links []string) {
	for _, r := range runtimes {
		if name := filepath.Base(r.Path); name != programName && !slices.Contains(links, name) {
			links = append(links, name)
		}
	}
	return links
}
