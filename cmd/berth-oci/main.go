// Command berth-oci is an OCI runtime for Docker. It changes the configuration of a container as berthd has written it down for
// this container (core/ociedit), and becomes the runtime below it, such as runc. It has no daemon and does not need berthd to run.
//
//	berth-oci [--berth-instructions DIR] [--berth-runtime PROGRAM] <arguments of the runtime below>
//	berth-oci --berth-version
//
// Without --berth-runtime the program below is runc, or NAME if berth-oci is called by the name berth-oci-NAME, such as a
// symbolic link berth-oci-crun: a runtime without arguments spares the shell that Docker otherwise puts before it.
//
// A container that has no instructions is refused: it would run with less isolation than its pod was given. One that is restored from a
// checkpoint is created by the verb restore of the runtime below, and runs from then on, so that its start does nothing. Verbs other than
// create, run, start and exec become the runtime below at once.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/cmd/berth-oci/internal/argv"
	"berth/cmd/berth-oci/internal/restore"
	"berth/cmd/berth-oci/internal/spec"
	"berth/cmd/berth-oci/internal/userns"
	"berth/core/ociedit"
)

// version and commit are set by the linker.
var (
	version = "0.0.0-dev"
	commit  = "unknown"
)

func main() {
	if os.Args[0] == userns.HolderName {
		userns.Hold()
		return
	}
	runtime.LockOSThread() // for packages userns and restore
	call, err := run(os.Args)
	report(call, err)
	os.Exit(1)
}

// options are the own arguments of this program.
type options struct {
	instructions string // directory
	below        string // program
	showVersion  bool
	rest         []string
}

// run becomes the runtime below. It returns only if that fails, with the call if it could be read.
func run(args []string) (*argv.Invocation, error) {
	o, err := parseOptions(args)
	if err != nil {
		return nil, err
	}
	if o.showVersion {
		_, err := fmt.Fprintf(os.Stdout, "berth-oci %s (%s)\n", version, commit)
		if err == nil {
			os.Exit(0)
		}
		return nil, err
	}
	call, err := argv.Parse(o.rest)
	if err != nil {
		return call, err
	}
	flags, environ := o.rest, os.Environ()
	switch {
	case call.Creates() && !call.Help:
		next, err := create(call, o.instructions)
		if err != nil {
			return call, err
		}
		if next.verb != nil {
			flags = slices.Concat(flags[:call.Global], next.verb)
			environ = append(environ, next.environ)
		}
		flags = append(next.flags, flags...)
	case call.Verb == "start" && call.ID != "":
		if i, err := ociedit.Read(o.instructions, call.ID); err == nil && i.Restore != nil {
			os.Exit(0) // the container runs since its create
		}
	case call.Process != "":
		if err := editExec(call, o.instructions); err != nil {
			return call, err
		}
	}
	path, err := find(o.below)
	if err != nil {
		return call, err
	}
	err = syscall.Exec(path, append([]string{o.below}, flags...), environ)
	return call, fmt.Errorf("runtime %s: %w", path, err)
}

// parseOptions takes the own arguments off.
func parseOptions(args []string) (o options, err error) {
	o = options{instructions: ociedit.DefaultDir, below: "runc", rest: args[1:]}
	if name, ok := strings.CutPrefix(filepath.Base(args[0]), "berth-oci-"); ok && name != "" {
		o.below = name
	}
	for len(o.rest) > 0 && strings.HasPrefix(o.rest[0], "--berth-") {
		name, value, ok := strings.Cut(o.rest[0], "=")
		o.rest = o.rest[1:]
		if name == "--berth-version" && !ok {
			o.showVersion = true
			continue
		}
		if !ok {
			if len(o.rest) == 0 {
				return o, fmt.Errorf("flag %s has no value", name)
			}
			value, o.rest = o.rest[0], o.rest[1:]
		}
		switch {
		case value == "":
			return o, fmt.Errorf("flag %s has an empty value", name)
		case name == "--berth-instructions":
			o.instructions = value
		case name == "--berth-runtime":
			o.below = value
		default:
			return o, fmt.Errorf("flag %s is not known: must be --berth-instructions, --berth-runtime or --berth-version", name)
		}
	}
	return o, nil
}

// find returns the path of the runtime below. A program in PATH that is this one is left out, so that berth-oci can be installed under
// the name of the runtime below.
func find(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", err
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if !filepath.IsAbs(dir) {
			continue
		}
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 && !os.SameFile(info, self) {
			return path, nil
		}
	}
	return "", fmt.Errorf("runtime %s is not in PATH", name)
}

// A creation is what a create has changed in the arguments for the runtime below.
type creation struct {
	flags   []string // before all others
	verb    []string // that takes the place of create, with its arguments; nil for none
	environ string   // added to the environment with verb
}

// create applies the instructions of the container to its config.json.
func create(call *argv.Invocation, dir string) (next creation, err error) {
	i, err := ociedit.Read(dir, call.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return next, fmt.Errorf("container %.64s has no instructions of berthd in %s: it is not started, because it would have less isolation than its pod", call.ID, dir)
	}
	if err != nil {
		return next, err
	}
	path := filepath.Join(call.Bundle, "config.json")
	text, err := readBounded(path)
	if err != nil {
		return next, err
	}
	s, err := spec.Parse(text)
	if err != nil {
		return next, fmt.Errorf("%s: %w", path, err)
	}
	if err := apply(s, i); err != nil {
		return next, fmt.Errorf("instructions of container %.64s: %w", call.ID, err)
	}
	if i.Restore != nil {
		if err := restore.Configure(s, i.Restore); err != nil {
			return next, fmt.Errorf("restore container %.64s: %w", call.ID, err)
		}
	}
	if text, err = s.Marshal(); err != nil {
		return next, err
	}
	if err := replace(path, text); err != nil {
		return next, err
	}
	if s.SystemdCgroup() && !call.SystemdCgroup {
		// A shim that is found by its name gets no options, so that the runtime would take slice:prefix:name for a path.
		next.flags = append(next.flags, "--systemd-cgroup")
	}
	if i.Restore != nil {
		next.environ = ociedit.RestoreMarker + "=" + filepath.Base(i.Restore.Dir)
		if next.verb, err = restore.Prepare(call, s, i.Restore); err != nil {
			return next, fmt.Errorf("restore container %.64s: %w", call.ID, err)
		}
	}
	return next, nil
}

func apply(s *spec.Spec, i *ociedit.Instructions) error {
	if i.Sandbox != nil {
		if err := i.Sandbox.Check(); err != nil {
			return err
		}
	}
	if err := s.Edit(i); err != nil {
		return err
	}
	if i.UserNamespace == nil {
		return nil
	}
	return userns.Apply(s, i.UserNamespace, i.Sandbox)
}

// editExec gives the process of an exec the ambient capabilities of the container's instructions. A container whose instructions cannot
// be read gets its exec without them.
func editExec(call *argv.Invocation, dir string) error {
	i, err := ociedit.Read(dir, call.ID)
	if err != nil || len(i.AmbientCapabilities) == 0 {
		return nil
	}
	text, err := readBounded(call.Process)
	if err != nil {
		return err
	}
	if text, err = spec.EditProcess(text, i); err != nil {
		return fmt.Errorf("%s: %w", call.Process, err)
	}
	return replace(call.Process, text)
}

// readBounded returns the contents of a regular file of containerd.
func readBounded(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file: %w", path, errors.Join(err))
	}
	text, err := io.ReadAll(io.LimitReader(f, spec.MaxSize+1))
	if err == nil && len(text) > spec.MaxSize {
		err = fmt.Errorf("%s has more than %d bytes", path, spec.MaxSize)
	}
	return text, err
}

// replace replaces a file of containerd. What a killed process leaves beside it is in the bundle, which containerd removes, or is
// overwritten.
func replace(path string, text []byte) error {
	temporary := path + ".berth"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		_ = os.Remove(temporary)
	}
	return err
}

// report writes an error where the caller finds it: containerd reads the last error of the log, in the format of logrus.
func report(call *argv.Invocation, err error) {
	message := "berth-oci: " + strings.Join(strings.Fields(err.Error()), " ")
	fmt.Fprintln(os.Stderr, message)
	if call == nil || call.Log == "" {
		return
	}
	log, err := os.OpenFile(call.Log, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return
	}
	defer log.Close()
	now := time.Now().Format(time.RFC3339)
	if !call.JSONLog {
		fmt.Fprintf(log, "time=%q level=error msg=%q\n", now, message)
		return
	}
	_ = json.NewEncoder(log).Encode(map[string]string{"level": "error", "msg": message, "time": now})
}
