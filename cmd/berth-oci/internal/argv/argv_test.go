package argv_test

import (
	"flag"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/cmd/berth-oci/internal/argv"
)

func TestParse(t *testing.T) {
	for line, want := range map[string]argv.Invocation{
		"":          {},
		"--version": {},
		// containerd's shim, by go-runc.
		"--root /run/docker/runtime-runc/moby --log /b/log.json --log-format json create --bundle /b --pid-file /b/init.pid --console-socket /tmp/pty id": {Verb: "create", Log: "/b/log.json", JSONLog: true, Bundle: "/b", ID: "id", PIDFile: "/b/init.pid", Console: "/tmp/pty"},
		"--root /r --log /l --log-format json --systemd-cgroup create --bundle /b --pid-file /p --no-pivot id":                                            {Verb: "create", Log: "/l", JSONLog: true, SystemdCgroup: true, Bundle: "/b", ID: "id", PIDFile: "/p", NoPivot: true},
		"--root /r start id":     {Verb: "start", ID: "id"},
		"start -- id":            {Verb: "start", ID: "id"},
		"start --help id":        {Verb: "start", Help: true},
		"start a b":              {Verb: "start"},
		"start --future id":      {Verb: "start"},
		"create --no-pivot=0 id": {Verb: "create", Bundle: ".", ID: "id"},
		"--root /r exec --process /tmp/p --detach --pid-file /x id":  {Verb: "exec", Process: "/tmp/p", ID: "id"},
		"--root create kill id KILL":                                 {Verb: "kill"},
		"--root=/r -log=/l --log-format=text -debug create -b=/b id": {Verb: "create", Log: "/l", Bundle: "/b", ID: "id"},
		"create id":                              {Verb: "create", Bundle: ".", ID: "id"},
		"create --bundle= id":                    {Verb: "create", Bundle: ".", ID: "id"},
		"create --bundle --no-pivot id":          {Verb: "create", Bundle: "--no-pivot", ID: "id"},
		"create -b /a --bundle /b -- --id":       {Verb: "create", Bundle: "/b", ID: "--id"},
		"-- create id":                           {Verb: "create", Bundle: ".", ID: "id"},
		"run --detach --bundle /b id":            {Verb: "run", Bundle: "/b", ID: "id"},
		"create --help":                          {Verb: "create", Bundle: ".", Help: true},
		"--systemd-cgroup=false create id":       {Verb: "create", Bundle: ".", ID: "id"},
		"--cgroup-manager systemd create id":     {Verb: "create", Bundle: ".", ID: "id"},
		"--future=create kill id":                {Verb: "kill"},
		"--future kill id":                       {},
		"exec id create":                         {Verb: "exec", ID: "id"},
		"exec --future id create":                {Verb: "exec"},
		"features":                               {Verb: "features"},
		"- create":                               {Verb: "-"},
		"delete --force id":                      {Verb: "delete"},
		"--log /l --log-format json state id":    {Verb: "state", Log: "/l", JSONLog: true},
		"create --preserve-fds 2 id":             {Verb: "create", Bundle: ".", ID: "id"},
		"--rootless false --criu /c events id":   {Verb: "events"},
		"--debug=true --log-format json list -q": {Verb: "list", JSONLog: true},
	} {
		args := strings.Fields(line)
		got, err := argv.Parse(args)
		if got.Verb != "" && args[got.Global] != got.Verb {
			t.Errorf("%q: %d arguments before the verb", line, got.Global)
		}
		got.Global = 0
		if diff := cmp.Diff(&want, got); err != nil || diff != "" {
			t.Errorf("%q: %v (-want +got):\n%s", line, err, diff)
		}
	}
}

// A call that could create a container but is not understood is refused.
func TestParseRefuses(t *testing.T) {
	for line, want := range map[string]string{
		"--future create id":              `flag "--future" is not known`,
		"--future x create --bundle /b i": `flag "--future" is not known`,
		"--systemd-cgroup=x create id":    "must be true or false",
		"create --future id":              `create: flag "--future" is not known`,
		"create -bB id":                   `create: flag "-bB" is not known`,
		"create --bundle":                 "flag --bundle has no value",
		"create":                          "must be the container ID alone",
		"create --bundle /b":              "must be the container ID alone",
		"create id --bundle /b":           "must be the container ID alone",
		"run --detach=7 id":               "must be true or false",
		"run a b":                         "must be the container ID alone",
		"--debug restore id":              "restore is not supported",
		"create --config /x id":           `flag "--config" is not known`, // crun reads another file than the bundle's
		"create --config=/x id":           `flag "--config" is not known`,
	} {
		if got, err := argv.Parse(strings.Fields(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v, want %q", line, got, err, want)
		}
	}
}

// FuzzParse compares the verb, the bundle and the ID with those that the package flag finds, which is what runc's
// urfave/cli uses.
func FuzzParse(f *testing.F) {
	f.Add("--root\n/r\n--log-format\njson\ncreate\n--bundle\n/b\nid")
	f.Add("--systemd-cgroup=1\n-debug\n--\nrun\n-b=/b\n--\n--id")
	f.Add("exec\n--process\nx\nid")
	f.Fuzz(func(t *testing.T, text string) {
		args := strings.Split(text, "\n")
		got, err := argv.Parse(args)
		if err != nil {
			return
		}
		verb, bundle, id, ok := reference(args)
		if ok && (verb == "create" || verb == "run") && !got.Help && (got.Verb != verb || got.Bundle != bundle || got.ID != id) {
			t.Errorf("%q: %+v, runc has %s of %q with bundle %q", args, got, verb, id, bundle)
		}
	})
}

// reference reads args as runc does. ok is false if runc refuses them.
func reference(args []string) (verb, bundle, id string, ok bool) {
	set := func(values, bools []string) *flag.FlagSet {
		s := flag.NewFlagSet("", flag.ContinueOnError)
		s.SetOutput(io.Discard)
		for _, name := range values {
			s.String(name, "", "")
		}
		for _, name := range bools {
			s.Bool(name, false, "")
		}
		return s
	}
	global := set([]string{"log", "log-format", "root", "rootless", "criu"}, []string{"debug", "systemd-cgroup", "help", "h", "version", "v"})
	if global.Parse(args) != nil || global.NArg() == 0 {
		return "", "", "", false
	}
	verb = global.Arg(0)
	create := set([]string{"console-socket", "pid-file", "pidfd-socket", "preserve-fds"}, []string{"no-pivot", "no-new-keyring", "help", "h", "detach", "d", "keep", "no-subreaper"})
	create.StringVar(&bundle, "bundle", "", "")
	create.StringVar(&bundle, "b", "", "")
	if create.Parse(global.Args()[1:]) != nil || create.NArg() != 1 {
		return verb, "", "", false
	}
	if bundle == "" {
		bundle = "."
	}
	return verb, bundle, create.Arg(0), true
}
