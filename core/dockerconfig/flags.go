package dockerconfig

import (
	"bytes"
	"cmp"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/unit"

	"berth/core/systemd"
)

// Flags are the flags of dockerd that decide what its configuration file means.
type Flags struct {
	ConfigFile     string   // --config-file, or DefaultFile
	AddRuntime     []string // --add-runtime, each NAME=PATH
	DefaultRuntime string   // --default-runtime
}

// ParseFlags reads the arguments of dockerd, without its name.
func ParseFlags(args []string) Flags {
	f := Flags{}
	for len(args) > 0 {
		name, value, assigned := strings.Cut(args[0], "=")
		args = args[1:]
		target := func() string {
			if assigned || len(args) == 0 {
				return value
			}
			value, args = args[0], args[1:]
			return value
		}
		switch name {
		case "--config-file":
			f.ConfigFile = target()
		case "--add-runtime":
			f.AddRuntime = append(f.AddRuntime, target())
		case "--default-runtime":
			f.DefaultRuntime = target()
		}
	}
	f.ConfigFile = filepath.Clean(cmp.Or(f.ConfigFile, DefaultFile))
	return f
}

// Conflict returns why dockerd with these flags would not use runtimes in the file, "" if it would. fix says
// what the operator should do.
func (f Flags) Conflict(file string) (reason, fix string) {
	switch {
	case len(f.AddRuntime) > 0:
		name, path, _ := strings.Cut(f.AddRuntime[0], "=")
		return fmt.Sprintf("dockerd is started with --add-runtime %s: it would replace or ignore runtimes when it reads them from %s", f.AddRuntime[0], file),
			fmt.Sprintf(`set "runtimes": {%q: {"path": %q}} in %s instead of the flag, and restart Docker`, name, path, file)
	case f.DefaultRuntime != "":
		return fmt.Sprintf("dockerd is started with --default-runtime %s: Docker 20.10 can crash when it reads runtimes from %s", f.DefaultRuntime, file),
			fmt.Sprintf(`set "default-runtime": %q in %s instead of the flag, and restart Docker`, f.DefaultRuntime, file)
	case f.ConfigFile != filepath.Clean(file):
		return fmt.Sprintf("dockerd is started with --config-file %s: it does not read %s", f.ConfigFile, file), "give --docker-config " + f.ConfigFile
	}
	return "", ""
}

// unitDirs are the directories of units and their drop-ins; the first one with a file of that name wins (systemd.unit(5)).
var unitDirs = []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

// ServiceFlags returns the flags that systemd will start docker.service with, from its unit and drop-ins below root; false
// if there is no such unit.
func ServiceFlags(root string) (Flags, bool) {
	var command string
	environment := map[string]string{}
	for _, file := range serviceFiles(root) {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		options, err := unit.DeserializeOptions(bytes.NewReader(text))
		if err != nil {
			continue // systemd says so too
		}
		for _, o := range options {
			if o.Section != "Service" {
				continue
			}
			switch o.Name {
			case "ExecStart":
				command = o.Value // an empty one resets it
			case "Environment":
				maps.Copy(environment, assignments(systemd.SplitCommand(o.Value)))
			case "EnvironmentFile":
				text, err := os.ReadFile(filepath.Join(root, strings.TrimPrefix(o.Value, "-")))
				if err == nil {
					maps.Copy(environment, environmentFile(string(text)))
				}
			}
		}
	}
	words := systemd.SplitCommand(command)
	if len(words) == 0 {
		return Flags{}, false
	}
	return ParseFlags(expand(words[1:], environment)), true
}

// serviceFiles returns the unit docker.service and its drop-ins in the order in which systemd reads them.
func serviceFiles(root string) (files []string) {
	dropins := map[string]string{}
	for _, dir := range unitDirs {
		if file := filepath.Join(root, dir, "docker.service"); len(files) == 0 {
			if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
				files = append(files, file)
			}
		}
		found, _ := fs.Glob(os.DirFS(filepath.Join(root, dir)), "docker.service.d/*.conf")
		for _, name := range found {
			base := filepath.Base(name)
			dropins[base] = cmp.Or(dropins[base], filepath.Join(root, dir, name))
		}
	}
	for _, base := range slices.Sorted(maps.Keys(dropins)) {
		files = append(files, dropins[base])
	}
	return files
}

// assignments returns the variables that the words NAME=VALUE set.
func assignments(words []string) map[string]string {
	set := map[string]string{}
	for _, word := range words {
		if name, value, ok := strings.Cut(word, "="); ok {
			set[name] = value
		}
	}
	return set
}

// environmentFile returns the variables of an EnvironmentFile=: one assignment a line, whose value may be quoted.
func environmentFile(text string) map[string]string {
	set := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(name, "#") || strings.HasPrefix(name, ";") {
			continue
		}
		value = strings.TrimSpace(value)
		if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		set[strings.TrimSpace(name)] = value
	}
	return set
}

// expand replaces variables in the words of a command as systemd.service(5) says: $NAME as a word of its own becomes several
// words, ${NAME} is replaced inside of a word.
func expand(words []string, environment map[string]string) (expanded []string) {
	for _, word := range words {
		if name, ok := strings.CutPrefix(word, "$"); ok && !strings.HasPrefix(name, "{") {
			expanded = append(expanded, systemd.SplitCommand(environment[name])...)
			continue
		}
		expanded = append(expanded, os.Expand(word, func(name string) string { return environment[name] }))
	}
	return expanded
}
