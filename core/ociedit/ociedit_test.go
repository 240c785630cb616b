package ociedit

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var id = strings.Repeat("0123456789abcdef", 4)

// example has every field.
func example() Instructions {
	seven := 7
	mode, owner := uint32(0o600), uint32(1000)
	mappings := []IDMapping{{HostID: 200000, Size: 65536}}
	return Instructions{
		ContainerID:             id,
		Patches:                 []json.RawMessage{json.RawMessage(`{"annotations":{"a":"b"}}`)},
		Hooks:                   &Hooks{CreateRuntime: []Hook{{Path: "/bin/true", Args: []string{"true"}, Timeout: &seven}}},
		Devices:                 []Device{{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232, FileMode: &mode, UID: &owner, GID: &owner, Access: "rw"}},
		HostDevices:             &HostDevices{Allowed: []DeviceAccess{{Path: "/dev/fuse", Access: "rw"}}},
		DeviceOwner:             &Owner{UID: &owner, GID: &owner, Paths: []string{"/dev/kvm"}},
		Rlimits:                 []Rlimit{{Type: "RLIMIT_NOFILE", Soft: 777, Hard: 1 << 40}},
		MountOptions:            []MountOptions{{Destination: "/data", Options: []string{"rro"}}},
		Unified:                 map[string]string{"memory.high": "50331648"},
		AmbientCapabilities:     []string{"CAP_NET_BIND_SERVICE"},
		InheritableCapabilities: []string{"CAP_CHOWN"},
		Sandbox:                 &Process{PID: 1, StartTime: 1},
		JoinNamespaces:          []string{"uts"},
		Namespaces:              []Namespace{{Type: "ipc"}, {Type: "network", Path: "/run/netns/a"}, {Type: "cgroup", Remove: true}},
		UserNamespace: &UserNamespace{
			UIDMappings: mappings, GIDMappings: mappings, IDMapOthers: true,
			Mounts: []MountMapping{{Destination: "/data", UIDMappings: mappings, GIDMappings: mappings}, {Destination: "/host"}},
		},
	}
}

func TestReadReturnsWhatWasWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "oci")
	want := example()
	for range 2 { // the second one replaces the file
		if err := Write(dir, want); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Read(dir, id)
	if err != nil {
		t.Fatal(err)
	}
	want.Version = Version
	if diff := cmp.Diff(&want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for path, want := range map[string]fs.FileMode{dir: 0o700 | fs.ModeDir, filepath.Join(dir, id+".json"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v, want mode %v", path, info.Mode(), err, want)
		}
	}
	if err := Remove(dir, id); err != nil {
		t.Fatal(err)
	}
	if err := Remove(dir, id); err != nil {
		t.Errorf("removed again: %v", err)
	}
	if _, err := Read(dir, id); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v, want fs.ErrNotExist", err)
	}
}

func TestListFindsInterruptedWrites(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "oci")
	if ids, err := List(dir); err != nil || len(ids) != 0 {
		t.Errorf("without a directory: %q, %v", ids, err)
	}
	if err := Write(dir, Instructions{ContainerID: id}); err != nil {
		t.Fatal(err)
	}
	other := strings.Repeat("f", 64)
	for _, name := range []string{temporary(id + suffix), temporary(other + suffix), "README"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ids, err := List(dir)
	if err != nil || !slices.Equal(ids, []string{id, other}) {
		t.Fatalf("got %q, %v", ids, err)
	}
	for _, id := range ids {
		if err := Remove(dir, id); err != nil {
			t.Error(err)
		}
	}
	if names, _ := filepath.Glob(filepath.Join(dir, "*")); len(names) != 1 {
		t.Errorf("left %q, want README", names)
	}
}

func TestRestoreNeedsTheNewestFormat(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "oci")
	want := Instructions{ContainerID: id, Restore: &Restore{
		Dir: "/a/b", Mounts: []RestoredMount{{Destination: "/proc", Type: "proc", Options: []string{"ro"}}}, Namespaces: []RestoredNamespace{{Type: "network", Joined: true}},
		Capabilities: 1 << 63, Root: true, Seccomp: true, NoNewPrivileges: true, MaskedPaths: []string{"/a"}, ReadonlyPaths: []string{"/b"}, ReadonlyRoot: true,
	}}
	check(t, Write(dir, want))
	got, err := Read(dir, id)
	want.Version = Version
	if diff := cmp.Diff(&want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	want.UserNamespace = example().UserNamespace
	if err := Write(dir, want); err == nil || !strings.Contains(err.Error(), "user namespace cannot be restored") {
		t.Error(err)
	}
}

// Each file that Read must not believe has an error of one line that says why.
func TestReadRefuses(t *testing.T) {
	good := `{"version":1,"containerID":"` + id + `"}`
	file := func(dir string) string { return filepath.Join(dir, id+".json") }
	for name, test := range map[string]struct {
		want   string
		change func(t *testing.T, dir string)
	}{
		"newer":           {"knows versions up to 2: upgrade berth-oci", write(strings.Replace(good, `"version":1`, `"version":3`, 1))},
		"older, field":    {"has version 1 and fields of version 2", write(strings.Replace(good, "}", `,"restore":{"dir":"/a"}}`, 1))},
		"bad checkpoint":  {`checkpoint "/a/../b": must be an absolute path`, write(strings.Replace(strings.Replace(good, "1", "2", 1), "}", `,"restore":{"dir":"/a/../b"}}`, 1))},
		"newer, field":    {"has version 9", write(`{"version":9,"new":true}`)},
		"no version":      {"has version 0", write(`{"containerID":"` + id + `"}`)},
		"another":         {`has the instructions of container "other"`, write(`{"version":1,"containerID":"other"}`)},
		"unknown field":   {`unknown field "patch"`, write(strings.Replace(good, "}", `,"patch":[]}`, 1))},
		"unknown inside":  {`unknown field "kind"`, write(strings.Replace(good, "}", `,"devices":[{"kind":1}]}`, 1))},
		"truncated":       {"is truncated or not JSON", write(good[:len(good)-5])},
		"empty":           {"is truncated or not JSON", write("")},
		"two values":      {"is truncated or not JSON", write(good + good)},
		"too big":         {"must have at most 1048576", write(strings.Repeat(" ", MaxSize) + good)},
		"bad mapping":     {"needs UID and GID mappings", write(strings.Replace(good, "}", `,"userNamespace":{"uidMappings":[],"gidMappings":[]}}`, 1))},
		"bad patch":       {"patch 1 is not a JSON object", write(strings.Replace(good, "}", `,"patches":[[]]}`, 1))},
		"missing":         {"no such file", func(t *testing.T, dir string) { check(t, os.Remove(file(dir))) }},
		"writable":        {"has mode 0620: others than its owner can write it", func(t *testing.T, dir string) { check(t, os.Chmod(file(dir), 0o620)) }},
		"not regular":     {"is not a regular file", replaced(func(path string) error { return unix.Mkfifo(path, 0o600) })},
		"a directory":     {"is not a regular file", replaced(func(path string) error { return os.Mkdir(path, 0o700) })},
		"symlink":         {"is a symbolic link", replaced(func(path string) error { return os.Symlink("/dev/null", path) })},
		"open directory":  {"has mode 0750: must be 0700", func(t *testing.T, dir string) { check(t, os.Chmod(dir, 0o750)) }},
		"open parent":     {"has mode 0777: others than its owner can write it", func(t *testing.T, dir string) { check(t, os.Chmod(filepath.Dir(dir), 0o777)) }},
		"symlink to dir":  {"is a symbolic link or not a directory", linked(false)},
		"symlink parent":  {"is a symbolic link or not a directory", linked(true)},
		"foreign file":    {"belongs to user 4242: must belong to root", owned(file)},
		"foreign dir":     {"belongs to user 4242: must belong to root", owned(func(dir string) string { return dir })},
		"foreign parents": {"belongs to user 4242: must belong to root", owned(filepath.Dir)},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "run", "oci")
			check(t, os.MkdirAll(dir, 0o700))
			check(t, os.WriteFile(file(dir), []byte(good), 0o600))
			if _, err := Read(dir, id); err != nil {
				t.Fatal("the file is refused before it is changed:", err)
			}
			test.change(t, dir)
			got, err := Read(dir, id)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, %v, want an error of one line with %q", got, err, test.want)
			}
			if err != nil && !strings.Contains(err.Error(), dir) {
				t.Errorf("the error %q does not have the path", err)
			}
		})
	}
	for _, bad := range []string{"", "../x", ".x", "-x", "a/b", "a b", strings.Repeat("a", 129)} {
		if _, err := Read(t.TempDir(), bad); err == nil || !strings.Contains(err.Error(), "not a container ID") {
			t.Errorf("container %q: %v", bad, err)
		}
	}
	if _, err := Read("run", id); err == nil || !strings.Contains(err.Error(), "must be an absolute path") {
		t.Errorf("a relative directory: %v", err)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(text string) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		check(t, os.WriteFile(filepath.Join(dir, id+".json"), []byte(text), 0o600))
	}
}

func replaced(create func(path string) error) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		path := filepath.Join(dir, id+".json")
		check(t, os.Remove(path))
		check(t, create(path))
	}
}

// linked moves the directory, or its parent, and leaves a symbolic link.
func linked(parent bool) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		if parent {
			dir = filepath.Dir(dir)
		}
		check(t, os.Rename(dir, dir+".moved"))
		check(t, os.Symlink(dir+".moved", dir))
	}
}

func owned(path func(dir string) string) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		if os.Geteuid() != 0 {
			t.Skip("needs root to give a file to another user")
		}
		check(t, os.Chown(path(dir), 4242, -1))
	}
}

func TestWriteRefuses(t *testing.T) {
	mapping := []IDMapping{{HostID: 200000, Size: 65536}}
	for want, i := range map[string]Instructions{
		"not a container ID":                          {ContainerID: "../x"},
		`device "kvm": the path must be absolute`:     {Devices: []Device{{Path: "kvm", Type: "c"}}},
		`type "x": must be one of b, c, u, p`:         {Devices: []Device{{Path: "/dev/kvm", Type: "x"}}},
		`access "rx": must be of r, w and m`:          {Devices: []Device{{Path: "/dev/kvm", Type: "c", Access: "rx"}}},
		`hook "true": the path must be absolute`:      {Hooks: &Hooks{Poststop: []Hook{{Path: "true"}}}},
		`cgroup file "../x": must be a name`:          {Unified: map[string]string{"../x": ""}},
		`capability "CHOWN": must begin with CAP_`:    {AmbientCapabilities: []string{"CHOWN"}},
		"needs a PID and a start time":                {Sandbox: &Process{PID: 1}},
		`namespace "net" cannot be joined`:            {Sandbox: &Process{PID: 1, StartTime: 1}, JoinNamespaces: []string{"net"}},
		"uts cannot be joined without":                {JoinNamespaces: []string{"uts"}},
		"needs both UID and GID mappings":             {UserNamespace: &UserNamespace{UIDMappings: mapping, GIDMappings: mapping, Mounts: []MountMapping{{Destination: "/a", UIDMappings: mapping}}}},
		"has mappings that overlap":                   {UserNamespace: &UserNamespace{UIDMappings: mapping, GIDMappings: []IDMapping{{HostID: 1, Size: 10}, {ContainerID: 9, HostID: 100, Size: 1}}}},
		"mapping 0 4294967295 1: must be within":      {UserNamespace: &UserNamespace{UIDMappings: []IDMapping{{HostID: 1<<32 - 1, Size: 1}}, GIDMappings: mapping}},
		"mapping 0 5 0: must be within 32":            {UserNamespace: &UserNamespace{UIDMappings: []IDMapping{{HostID: 5}}, GIDMappings: mapping}},
		"the user namespace has 341 mappings":         {UserNamespace: &UserNamespace{UIDMappings: make([]IDMapping, 341), GIDMappings: mapping}},
		`mount "a": the destination must be absolute`: {UserNamespace: &UserNamespace{UIDMappings: mapping, GIDMappings: mapping, Mounts: []MountMapping{{Destination: "a"}}}},
	} {
		if i.ContainerID == "" {
			i.ContainerID = id
		}
		if err := Write(filepath.Join(t.TempDir(), "oci"), i); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// A berth-oci that was installed before Namespaces reads the files without them.
func TestFilesHaveTheOldestVersionThatReadsThem(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "oci")
	for want, i := range map[int]Instructions{1: {ContainerID: "a", AmbientCapabilities: []string{"CAP_CHOWN"}}, 2: {ContainerID: "b", Namespaces: []Namespace{{Type: "ipc"}}}} {
		check(t, Write(dir, i))
		if got, err := Read(dir, i.ContainerID); err != nil || got.Version != want {
			t.Errorf("%+v, %v, want version %d", got, err, want)
		}
	}
	for _, n := range []Namespace{{Type: "user"}, {Type: "ipc", Path: "relative"}, {Type: "ipc", Path: "/a", Remove: true}} {
		if err := Write(dir, Instructions{ContainerID: "c", Namespaces: []Namespace{n}}); err == nil || !strings.Contains(err.Error(), "must be one of cgroup, ") {
			t.Errorf("%+v: %v", n, err)
		}
	}
}

func TestProcessThatHasExitedIsNotTheSandbox(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	check(t, cmd.Start())
	p, err := FindProcess(cmd.Process.Pid)
	check(t, err)
	if err := p.Check(); err != nil {
		t.Errorf("a running process: %v", err)
	}
	other := p
	other.StartTime++
	if err := other.Check(); err == nil || !strings.Contains(err.Error(), "is not the one of the sandbox any more") {
		t.Errorf("another process of the same PID: %v", err)
	}
	check(t, cmd.Process.Kill())
	_ = cmd.Wait()
	if err := p.Check(); err == nil {
		t.Error("an exited process is taken for the sandbox")
	}
}

// FuzzDecode checks that what is accepted is written and read as the same.
func FuzzDecode(f *testing.F) {
	whole := example()
	whole.Version = Version
	text, _ := json.Marshal(whole)
	f.Add(text)
	f.Add([]byte(`{"version":1,"containerID":"a"}`))
	f.Add([]byte(`{"version":3}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		i, err := decode(text)
		if err != nil {
			return
		}
		again, err := json.Marshal(i)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode(again); err != nil {
			t.Errorf("%s is accepted, but what it becomes is not: %v", text, err)
		}
	})
}
