// Package argv reads the arguments with which an OCI runtime is called, as runc does.
//
// runc uses urfave/cli v1 and so the rules of the package flag: "-name" and "--name", values in the same argument or the next,
// "--" and the first argument that is no flag end the flags. What runc or crun could read in another way than this package is an
// error: a create that is not recognized would start a container without its instructions.
package argv

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Invocation is one call of the runtime.
type Invocation struct {
	// Verb is the command, such as create, or "" if there is none (--version).
	Verb string
	// Log is the value of --log, JSONLog whether its format is JSON.
	Log     string
	JSONLog bool
	// SystemdCgroup is the value of --systemd-cgroup.
	SystemdCgroup bool
	// Bundle and ID are those of create and run. ID is also that of exec and start.
	Bundle, ID string
	// Process is the file of exec --process.
	Process string
	// Global is how many arguments precede the verb. PIDFile, Console and NoPivot are flags of create.
	Global           int
	PIDFile, Console string
	NoPivot          bool
	// Help reports that the verb only prints its help.
	Help bool
}

// Creates reports whether the verb makes a container, so that instructions must be applied.
func (i *Invocation) Creates() bool { return i.Verb == "create" || i.Verb == "run" }

// takesValue says of each flag whether it has a value.
type takesValue map[string]bool

// help are the flags that urfave/cli adds to each command.
var help = takesValue{"help": false, "h": false}

// global are the flags before the verb of runc 1.0 to 1.4 and crun 1.8.
var global = takesValue{
	"debug": false, "systemd-cgroup": false, "version": false, "v": false, "help": false, "h": false,
	"log": true, "log-format": true, "root": true, "rootless": true, "criu": true, // runc
	"cgroup-manager": true, "log-level": true, // crun
}

var create = takesValue{
	"bundle": true, "b": true, "console-socket": true, "pid-file": true, "pidfd-socket": true, "preserve-fds": true,
	"no-pivot": false, "no-new-keyring": false, "detach": false, "d": false, "keep": false, "no-subreaper": false,
}

var exec = takesValue{
	"console-socket": true, "pidfd-socket": true, "cwd": true, "env": true, "e": true, "user": true, "u": true, "additional-gids": true, "g": true,
	"process": true, "p": true, "pid-file": true, "process-label": true, "apparmor": true, "cap": true, "c": true, "preserve-fds": true, "cgroup": true,
	"tty": false, "t": false, "detach": false, "d": false, "no-new-privs": false, "ignore-paused": false,
}

// errNoValue is returned for a flag at the end of the arguments that needs a value: no runtime accepts that.
var errNoValue = errors.New("has no value")

func unknown(flag string) error { return fmt.Errorf("flag %.100q is not known", flag) }

// flags calls set with the flags at the beginning of args, also with unknown ones of the form --name=value, and returns the
// arguments behind them. The value of a flag without one is "true".
func (known takesValue) flags(args []string, set func(name, value string) error) (rest []string, err error) {
	for len(args) > 0 {
		name, isFlag := flagName(args[0])
		if !isFlag {
			return args, nil
		}
		if name == "" {
			return args[1:], nil // "--"
		}
		arg := args[0]
		args = args[1:]
		name, value, hasValue := strings.Cut(name, "=")
		needsValue, ok := known[name]
		if _, isHelp := help[name]; !ok && !isHelp {
			if !hasValue {
				return args, unknown(arg) // the next argument may be its value, or not
			}
		}
		if needsValue && !hasValue {
			if len(args) == 0 {
				return nil, fmt.Errorf("flag %s %w", arg, errNoValue)
			}
			value, args = args[0], args[1:]
		}
		if !needsValue && !hasValue {
			value = "true"
		}
		if err := set(name, value); err != nil {
			return args, err
		}
	}
	return nil, nil
}

// flagName returns an argument without its dashes, if it is a flag. The name of "--" is empty.
func flagName(arg string) (string, bool) {
	name, ok := strings.CutPrefix(arg, "-")
	if !ok || name == "" { // "-" alone is no flag
		return "", false
	}
	return strings.TrimPrefix(name, "-"), true
}

// Parse reads the arguments behind the name of the program.
func Parse(args []string) (*Invocation, error) {
	i := &Invocation{}
	rest, err := global.flags(args, func(name, value string) (err error) {
		switch name {
		case "log":
			i.Log = value
		case "log-format":
			i.JSONLog = value == "json"
		case "systemd-cgroup":
			i.SystemdCgroup, err = parseBool(name, value)
		}
		return err
	})
	if err != nil {
		return i, creating(rest, err)
	}
	if len(rest) == 0 {
		return i, nil
	}
	i.Verb, i.Global = rest[0], len(args)-len(rest)
	switch i.Verb {
	case "create", "run":
		return i, i.parseCreate(rest[1:])
	case "exec":
		i.parseExec(rest[1:])
	case "start":
		if rest, err := help.flags(rest[1:], func(string, string) error { i.Help = true; return nil }); err == nil && len(rest) == 1 && !i.Help {
			i.ID = rest[0]
		}
	case "restore":
		return i, errors.New("restore is not supported: the container would not get its instructions")
	}
	return i, nil
}

// creating returns err if the arguments could make a container. All others are left to the runtime, which reports its own error.
func creating(rest []string, err error) error {
	if slices.ContainsFunc(rest, func(arg string) bool { return arg == "create" || arg == "run" || arg == "restore" }) {
		return err
	}
	return nil
}

func (i *Invocation) parseCreate(args []string) error {
	i.Bundle = "."
	rest, err := create.flags(args, func(name, value string) error {
		switch name {
		case "bundle", "b":
			if value != "" { // as in runc, which then takes the working directory
				i.Bundle = value
			}
		case "help", "h":
			i.Help = true
		case "pid-file":
			i.PIDFile = value
		case "console-socket":
			i.Console = value
		default:
			needsValue, ok := create[name]
			if !ok {
				return unknown("--" + name) // crun's --config names another file than the bundle's
			}
			if !needsValue {
				on, err := parseBool(name, value)
				i.NoPivot = name == "no-pivot" && on || name != "no-pivot" && i.NoPivot
				return err
			}
		}
		return nil
	})
	if i.Help && err == nil {
		return nil
	}
	// urfave/cli also accepts flags behind the ID. containerd never writes them there.
	if err == nil && len(rest) != 1 {
		err = fmt.Errorf("%d arguments %.100q: must be the container ID alone, behind all flags", len(rest), rest)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", i.Verb, err)
	}
	i.ID = rest[0]
	return nil
}

// parseExec leaves out what it cannot read: without its instructions a process has fewer privileges.
func (i *Invocation) parseExec(args []string) {
	process := ""
	rest, err := exec.flags(args, func(name, value string) error {
		if name == "process" || name == "p" {
			process = value
		}
		return nil
	})
	if err == nil && len(rest) > 0 {
		i.Process, i.ID = process, rest[0]
	}
}

func parseBool(name, value string) (bool, error) {
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, fmt.Errorf("flag %s has the value %.100q: must be true or false", name, value)
	}
	return b, nil
}
