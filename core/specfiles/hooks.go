package specfiles

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/ociedit"
	"berth/core/trust"
)

// A Container is what the conditions of hooks are about.
type Container struct {
	PodAnnotations map[string]string
	Config         *runtimeapi.ContainerConfig
	Program        string // process.args[0]
}

// annotations returns those of the pod, and those of the container, which win.
func (c Container) annotations() map[string]string {
	all := maps.Clone(c.PodAnnotations)
	if all == nil {
		return c.Config.GetAnnotations()
	}
	maps.Copy(all, c.Config.GetAnnotations())
	return all
}

// hasBindMounts reports whether the container was requested with a directory or file of the node.
func (c Container) hasBindMounts() bool {
	return slices.ContainsFunc(c.Config.GetMounts(), func(m *runtimeapi.Mount) bool { return m.GetHostPath() != "" })
}

// hookVersion is the version of the format.
const hookVersion = "1.0.0"

// hookFile is a file of oci-hooks(5).
type hookFile struct {
	Version string       `json:"version"`
	Hook    ociedit.Hook `json:"hook"`
	When    struct {
		Always        *bool             `json:"always"`
		Annotations   map[string]string `json:"annotations"`
		Commands      []string          `json:"commands"`
		HasBindMounts *bool             `json:"hasBindMounts"`
	} `json:"when"`
	Stages []string `json:"stages"`

	annotations map[*regexp.Regexp]*regexp.Regexp
	commands    []*regexp.Regexp
}

// hooks returns the hooks of a container, nil for none.
func (cfg Config) hooks(c Container) (*ociedit.Hooks, error) {
	paths, err := cfg.hookFiles()
	if err != nil {
		return nil, err
	}
	var all *ociedit.Hooks
	for _, path := range paths {
		file, err := readHook(path)
		if err != nil {
			return nil, unusable(HooksDirsOption, path, err)
		}
		if !file.matches(c) {
			continue
		}
		if all == nil {
			all = &ociedit.Hooks{}
		}
		for _, stage := range file.Stages {
			list := all.Stage(stage)
			*list = append(*list, file.Hook)
		}
	}
	return all, nil
}

// hookFiles returns the paths of the files with hooks, in the order in which these are called.
func (cfg Config) hookFiles() ([]string, error) {
	byName := map[string]string{}
	for _, dir := range cfg.HooksDirs {
		paths, err := list(dir)
		if err != nil {
			return nil, unusable(HooksDirsOption, dir, err)
		}
		for _, path := range paths {
			byName[filepath.Base(path)] = path
		}
	}
	names := slices.SortedFunc(maps.Keys(byName), func(a, b string) int {
		if n := strings.Compare(strings.ToLower(a), strings.ToLower(b)); n != 0 {
			return n
		}
		return strings.Compare(a, b)
	})
	var paths []string
	for _, name := range names {
		paths = append(paths, byName[name])
	}
	return paths, nil
}

// readHook reads and validates a file.
func readHook(path string) (*hookFile, error) {
	text, err := read(path, maxHook)
	if err != nil {
		return nil, err
	}
	f := &hookFile{}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields() // an unknown condition would leave the hook with fewer
	if err := d.Decode(f); err != nil {
		return nil, err
	}
	return f, f.compile()
}

// compile validates a file, and compiles its patterns.
func (f *hookFile) compile() error {
	w := f.When
	switch {
	case f.Version != hookVersion:
		return fmt.Errorf("version %q: must be %s", f.Version, hookVersion)
	case len(f.Stages) == 0:
		return errors.New("stages: must not be empty")
	case w.Always == nil && w.HasBindMounts == nil && len(w.Annotations) == 0 && len(w.Commands) == 0:
		return errors.New("when: must have always, annotations, commands or hasBindMounts")
	case !strings.HasPrefix(f.Hook.Path, "/"):
		return fmt.Errorf("hook.path %q: must be absolute", f.Hook.Path)
	case f.Hook.Timeout != nil && *f.Hook.Timeout <= 0:
		return fmt.Errorf("hook.timeout %d: must be greater than 0", *f.Hook.Timeout)
	}
	for _, stage := range f.Stages {
		if new(ociedit.Hooks).Stage(stage) == nil {
			return fmt.Errorf("stage %q: must be prestart, createRuntime, createContainer, startContainer, poststart or poststop", stage)
		}
	}
	// The program of a startContainer hook is in the container.
	if !slices.Equal(f.Stages, []string{"startContainer"}) {
		if err := trust.Check(f.Hook.Path); err != nil {
			return fmt.Errorf("hook.path: %w", err)
		}
	}
	f.annotations = map[*regexp.Regexp]*regexp.Regexp{}
	for key, value := range w.Annotations {
		k, err := regexp.Compile(key)
		if err != nil {
			return fmt.Errorf("when.annotations: %w", err)
		}
		if f.annotations[k], err = regexp.Compile(value); err != nil {
			return fmt.Errorf("when.annotations: %w", err)
		}
	}
	for _, pattern := range w.Commands {
		command, err := regexp.Compile(pattern)
		if err != nil {
			return fmt.Errorf("when.commands: %w", err)
		}
		f.commands = append(f.commands, command)
	}
	return nil
}

// matches reports whether all conditions of a file match a container.
func (f *hookFile) matches(c Container) bool {
	if f.When.Always != nil && !*f.When.Always {
		return false
	}
	if f.When.HasBindMounts != nil && (!*f.When.HasBindMounts || !c.hasBindMounts()) {
		return false
	}
	all := c.annotations()
	for key, value := range f.annotations {
		found := false
		for k, v := range all {
			found = found || key.MatchString(k) && value.MatchString(v)
		}
		if !found {
			return false
		}
	}
	return len(f.commands) == 0 || slices.ContainsFunc(f.commands, func(r *regexp.Regexp) bool { return r.MatchString(c.Program) })
}
