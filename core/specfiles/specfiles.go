// Package specfiles reads what files of the operator change in the OCI specs of containers: a JSON merge patch for each
// runtime handler (spec-dir), and hooks in the format of oci-hooks(5), as CRI-O has them (hooks-dirs).
//
// The files are read for each container, so that a change needs no restart. Only root may be able to change them, and the programs of
// hooks; what is read is bounded. A file that cannot be used is an error with its name, never skipped: the containers that it may be for are not
// created.
//
// Errors are of kind FailedPrecondition.
package specfiles

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth/core/podpolicy"
	"berth/core/specedit"
	"berth/core/trust"
)

// Names of the options, for messages.
const (
	SpecDirOption   = "spec-dir"
	HooksDirsOption = "hooks-dirs"
)

// DefaultSpecDir is the default of spec-dir.
const DefaultSpecDir = "/etc/berth/spec.d"

const (
	// maxPatch and maxHook bound a file in bytes. The instructions of a container have at most 1 MiB.
	maxPatch = 256 << 10
	maxHook  = 64 << 10
	// maxFiles bounds the files of a directory.
	maxFiles = 256

	suffix = ".json"
)

// Config says where the files are.
type Config struct {
	SpecDir   string   // "" for none; one that does not exist has no files
	HooksDirs []string // must exist. A file in a later one replaces that of the same name in earlier ones
}

// Sandbox returns what the files change in a pause container.
func (cfg Config) Sandbox(handler string) (specedit.Files, error) {
	patches, err := cfg.patches(handler)
	return specedit.Files{Patches: patches}, err
}

// Container returns what the files change in a container of a pod with a runtime handler.
func (cfg Config) Container(handler string, c Container) (specedit.Files, error) {
	patches, err := cfg.patches(handler)
	if err != nil {
		return specedit.Files{}, err
	}
	hooks, err := cfg.hooks(c)
	return specedit.Files{Patches: patches, Hooks: hooks}, err
}

// patches returns the patch for a runtime handler, if there is one.
func (cfg Config) patches(handler string) ([]json.RawMessage, error) {
	name := podpolicy.HandlerName(handler)
	if cfg.SpecDir == "" || name == "" {
		return nil, nil
	}
	path := filepath.Join(cfg.SpecDir, name+suffix)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	patch, err := readPatch(path)
	if err != nil {
		return nil, unusable(SpecDirOption, path, err)
	}
	return []json.RawMessage{patch}, nil
}

// A Problem is why a file, or a directory, cannot be used.
type Problem struct {
	Option string
	Err    error // names the file
}

// Check reads all files. It returns how many can be used, by option, and the problems of the others.
func (cfg Config) Check() (usable map[string]int, problems []Problem) {
	usable = map[string]int{}
	if paths, err := list(cfg.SpecDir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		problems = append(problems, Problem{SpecDirOption, unusable(SpecDirOption, cfg.SpecDir, err)})
	} else {
		for _, path := range paths {
			if _, err := readPatch(path); err != nil {
				problems = append(problems, Problem{SpecDirOption, unusable(SpecDirOption, path, err)})
				continue
			}
			usable[SpecDirOption]++
		}
	}
	files, err := cfg.hookFiles()
	if err != nil {
		return usable, append(problems, Problem{HooksDirsOption, err})
	}
	for _, path := range files {
		if _, err := readHook(path); err != nil {
			problems = append(problems, Problem{HooksDirsOption, unusable(HooksDirsOption, path, err)})
			continue
		}
		usable[HooksDirsOption]++
	}
	return usable, problems
}

// Handlers returns the names of the runtime handlers that have a patch, as podpolicy.HandlerName returns them, and those of
// files that no handler can have.
func (cfg Config) Handlers() (names []string) {
	paths, _ := list(cfg.SpecDir) // Check returns the error
	for _, path := range paths {
		names = append(names, strings.TrimSuffix(filepath.Base(path), suffix))
	}
	return names
}

// Problems returns the problems that Check finds.
func (cfg Config) Problems() []Problem {
	_, problems := cfg.Check()
	return problems
}

// list returns the paths of the files in a directory, ordered by name; "" has none.
func list(dir string) (paths []string, err error) {
	if dir == "" {
		return nil, nil
	}
	if err := trust.Check(dir); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) && !strings.HasPrefix(e.Name(), ".") {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	if len(paths) > maxFiles {
		return nil, fmt.Errorf("has %d files: must be at most %d", len(paths), maxFiles)
	}
	return paths, nil
}

// read returns the text of a file that only root can change.
func read(path string, limit int64) ([]byte, error) {
	if err := trust.Check(path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // opening a named pipe would block
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, errors.New("is not a regular file"))
	}
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("has more than %d bytes", limit)
	}
	return text, err
}

// protected are the fields of an OCI spec that no patch may change: without what Docker and berthd have put there a container has another
// root, other namespaces or other volumes than they know of. A patch replaces arrays as a whole.
var protected = []string{
	"ociVersion", "root", "mounts", "hooks", "process.args", "process.terminal", "linux.namespaces", "linux.uidMappings", "linux.gidMappings", "linux.cgroupsPath",
}

// readPatch reads and validates a patch.
func readPatch(path string) (json.RawMessage, error) {
	text, err := read(path, maxPatch)
	if err != nil {
		return nil, err
	}
	var patch map[string]any
	if err := json.Unmarshal(text, &patch); err != nil || patch == nil {
		return nil, errors.Join(errors.New("must be a JSON object, a merge patch of config.json (RFC 7396)"), err)
	}
	for _, field := range protected {
		if replaces(patch, strings.Split(field, ".")) {
			return nil, fmt.Errorf("changes %s, which no patch may change", field)
		}
	}
	var compact bytes.Buffer
	err = json.Compact(&compact, text)
	return compact.Bytes(), err
}

// replaces reports whether a patch changes the field at a path of names.
func replaces(patch map[string]any, path []string) bool {
	value, ok := patch[path[0]]
	inner, isObject := value.(map[string]any)
	return ok && (len(path) == 1 || !isObject || replaces(inner, path[1:]))
}

// unusable is the error for a file or directory of an option.
func unusable(option, path string, err error) error {
	text := strings.ReplaceAll(err.Error(), "\n", ": ")
	return fmt.Errorf("%s: %s: %s: %w", option, path, text, errdefs.ErrFailedPrecondition)
}
