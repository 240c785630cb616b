package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"berth/core/cgroup"
	"berth/core/hostprobe"
)

const (
	// optionsFile has the options of the shim for a container, runtimeFile only the name of its OCI runtime: WriteOptions and
	// WriteRuntime in pkg/process of containerd's shim; the first from containerd 1.5 on.
	optionsFile, runtimeFile = "options.json", "runtime"
	// maxOptions bounds these files, in bytes.
	maxOptions = 64 << 10
	// stockRuntime is the runtime of shims without a binary_name, stockRoot its root: RuncRoot in containerd.
	stockRuntime, stockRoot = "runc", "/run/containerd/runc"
)

// engineRoots are where the state of an OCI runtime may be if the options do not say it: with Docker's default exec-root, or without
// the option.
var engineRoots = []string{"/run/docker/runtime-runc", "/var/run/docker/runtime-runc", stockRoot}

// A Runtime is the OCI runtime of a running container, as containerd's shim calls it.
type Runtime struct {
	Shim    int    // process, in whose mount namespace the paths are
	Program string // name or path
	Root    string // the value of --root: the directory with the state of the containers
}

// RuntimeOf returns the OCI runtime of the container id, whose first process is pid. The error is fs.ErrNotExist if the runtime does
// not keep its state as runc does.
func RuntimeOf(pid int, id string) (Runtime, error) {
	if pid <= 0 {
		return Runtime{}, errors.New("the container does not run")
	}
	if _, err := cgroup.ForContainer(pid, id); err != nil {
		return Runtime{}, err
	}
	shim, err := parent(pid)
	if err != nil {
		return Runtime{}, err
	}
	return runtimeOf(shim, filepath.Join("/proc", strconv.Itoa(shim), "cwd"), id, func(path string) (*os.File, error) {
		return hostprobe.OpenAs(shim, path, unix.O_PATH)
	})
}

// runtimeOf returns the Runtime of the container id, whose bundle is beside the one that cwd is a link to. open opens a path of
// the shim.
func runtimeOf(shim int, cwd, id string, open func(path string) (*os.File, error)) (Runtime, error) {
	dir, target, err := openBundle(cwd, id)
	if err != nil {
		return Runtime{}, err
	}
	defer unix.Close(dir)
	r := Runtime{Shim: shim, Program: stockRuntime}
	roots := engineRoots
	var options struct {
		Binary string `json:"binary_name"`
		Root   string `json:"root"`
	}
	text, err := readFile(dir, optionsFile, maxOptions)
	switch {
	case err == nil:
		if err := json.Unmarshal(text, &options); err != nil {
			return Runtime{}, fmt.Errorf("%s of %s: %w", optionsFile, id, err)
		}
		if options.Root != "" {
			roots = []string{options.Root}
		}
	case errors.Is(err, unix.ENOENT):
		name, err := readFile(dir, runtimeFile, maxOptions)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return Runtime{}, err
		}
		options.Binary = string(name)
	default:
		return Runtime{}, err
	}
	if options.Binary != "" {
		r.Program = options.Binary
	}
	var errs []error
	for _, root := range roots {
		// The shim adds containerd's namespace, which is that of the bundle.
		r.Root = filepath.Join(root, filepath.Base(filepath.Dir(target)))
		state, err := open(filepath.Join(r.Root, filepath.Base(id), "state.json"))
		if err == nil {
			return r, state.Close()
		}
		errs = append(errs, err)
	}
	return Runtime{}, fmt.Errorf("state of the OCI runtime %s: %w", r.Program, errors.Join(errs...))
}

// openBundle opens the bundle of the container id, which is beside the one that cwd is a link to. No link but that of /proc is
// followed. target is that bundle in the mount namespace of the shim.
func openBundle(cwd, id string) (dir int, target string, err error) {
	if target, err = os.Readlink(cwd); err != nil {
		return -1, "", err
	}
	if filepath.Base(filepath.Dir(filepath.Dir(target))) != taskDir {
		return -1, "", fmt.Errorf("%s is not a bundle in a directory %s", target, taskDir)
	}
	// Through the process and not by target, which may be in another mount namespace.
	shimDir, err := unix.Open(cwd, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", fmt.Errorf("open %s: %w", target, err)
	}
	defer unix.Close(shimDir)
	dir, err = unix.Openat(shimDir, "../"+filepath.Base(id), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", fmt.Errorf("open the bundle of %s beside %s: %w", id, target, err)
	}
	return dir, target, nil
}

// readFile returns the text of the regular file name in the directory dir, which has at most limit bytes.
func readFile(dir int, name string, limit int64) ([]byte, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	case int64(len(text)) > limit:
		return nil, fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return text, nil
}
