package spec

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/core/ociedit"
)

var update = flag.Bool("update", false, "write the golden files")

var pod = []ociedit.IDMapping{{HostID: 200000, Size: 65536}}

// edits has the instructions for each kind of recorded container.
func edits() map[string]ociedit.Instructions {
	owner := uint32(107)
	userns := &ociedit.UserNamespace{UIDMappings: pod, GIDMappings: pod, IDMapOthers: true}
	sandbox := &ociedit.Process{PID: 254, StartTime: 1}
	return map[string]ociedit.Instructions{
		"pause": {UserNamespace: userns},
		"container": {
			Patches: []json.RawMessage{
				json.RawMessage(`{"annotations":{"dev.example/a":"1"},"linux":{"seccomp":null,"sysctl":{"kernel.msgmax":null}},"process":{"noNewPrivileges":true}}`),
				json.RawMessage(`{"annotations":{"dev.example/a":"2","dev.example/b":"<&>"}}`),
			},
			Hooks:                   &ociedit.Hooks{CreateRuntime: []ociedit.Hook{{Path: "/usr/bin/hook", Args: []string{"hook", "create"}}}},
			Devices:                 []ociedit.Device{{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232, GID: &owner, Access: "rw"}},
			DeviceOwner:             &ociedit.Owner{UID: new(uint32(1000)), GID: new(uint32(1000)), Paths: []string{"/dev"}},
			Rlimits:                 []ociedit.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 777, Hard: 1<<64 - 1}, {Type: "RLIMIT_CORE"}},
			MountOptions:            []ociedit.MountOptions{{Destination: "/data/", Options: []string{"rro", "rslave"}}},
			Unified:                 map[string]string{"memory.high": "50331648"},
			AmbientCapabilities:     []string{"CAP_NET_BIND_SERVICE", "CAP_SYS_TIME"},
			InheritableCapabilities: []string{"CAP_CHOWN"},
			Sandbox:                 sandbox,
			JoinNamespaces:          []string{"uts"},
			UserNamespace:           userns,
		},
		"hostnetwork": {UserNamespace: userns},
		"privileged":  {Patches: []json.RawMessage{json.RawMessage(`{"linux":{"devices":null}}`)}},
	}
}

// TestEditOfRecordedContainers compares the edit of what Engines wrote with golden files of the changes. The files are
// recorded by a runtime; only paths are shortened, and the lists of seccomp rules and of devices.
func TestEditOfRecordedContainers(t *testing.T) {
	files, err := filepath.Glob("testdata/*/*.json")
	if err != nil || len(files) < 13 {
		t.Fatal("recorded files:", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(strings.TrimPrefix(file, "testdata/"), ".json"), func(t *testing.T) {
			before, err := os.ReadFile(file)
			check(t, err)
			s, err := Parse(before)
			check(t, err)
			i := edits()[strings.TrimSuffix(filepath.Base(file), ".json")]
			check(t, s.Edit(&i))
			if i.UserNamespace != nil {
				editUserNamespace(t, s, &i)
			}
			after, err := s.Marshal()
			check(t, err)
			golden := strings.TrimSuffix(file, ".json") + ".diff"
			got := changes(t, before, after)
			if *update {
				check(t, os.WriteFile(golden, []byte(got), 0o644))
			}
			want, err := os.ReadFile(golden)
			if diff := cmp.Diff(string(want), got); err != nil || diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// editUserNamespace does what package userns does, without mounts.
func editUserNamespace(t *testing.T, s *Spec, i *ociedit.Instructions) {
	t.Helper()
	binds, err := s.Binds(i.UserNamespace)
	check(t, err)
	for n, b := range binds {
		if len(b.UIDs) == 0 || !filepath.IsAbs(b.Source) {
			t.Errorf("bind mount %+v is not to be id-mapped", b)
		}
		check(t, b.Replace(fmt.Sprintf("/run/berth-oci/volumes/%d", n), "nosuid"))
	}
	path, host, err := s.NetworkNamespace()
	check(t, err)
	if i.Sandbox != nil {
		if path != NamespacePath(i.Sandbox, "net") && !strings.HasPrefix(path, "/proc/") {
			t.Errorf("network namespace %q", path)
		}
		check(t, s.SetUserNamespace(i.UserNamespace, NamespacePath(i.Sandbox, "user"), ""))
	} else {
		sys := ""
		if host || path != "" {
			sys = "/run/berth-oci/sys"
		}
		check(t, s.SetUserNamespace(i.UserNamespace, "", sys))
	}
	check(t, s.SetRoot("/run/berth-oci/rootfs"))
}

// changes returns the values that differ in two JSON texts, one a line.
func changes(t *testing.T, before, after []byte) string {
	t.Helper()
	a, b := map[string]string{}, map[string]string{}
	for text, values := range map[*[]byte]map[string]string{&before: a, &after: b} {
		v, err := decode(*text)
		check(t, err)
		flatten("", v, values)
	}
	var lines strings.Builder
	all := maps.Clone(a)
	maps.Copy(all, b)
	for _, path := range slices.Sorted(maps.Keys(all)) {
		if a[path] == b[path] {
			continue
		}
		if a[path] != "" {
			fmt.Fprintf(&lines, "- %s = %s\n", path, a[path])
		}
		if b[path] != "" {
			fmt.Fprintf(&lines, "+ %s = %s\n", path, b[path])
		}
	}
	return lines.String()
}

// flatten adds the values in v by their paths. Elements of arrays have the number of two digits, or the name of a mount.
func flatten(path string, v any, values map[string]string) {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			flatten(path+"."+name, value, values)
		}
		if len(v) == 0 {
			values[path] = "{}"
		}
	case []any:
		for n, value := range v {
			name := fmt.Sprintf("%02d", n)
			for _, key := range []string{"destination", "path", "type"} {
				if s := text(value, key); s != "" && !strings.HasSuffix(path, "resources.devices") {
					name = s
					break
				}
			}
			if strings.HasSuffix(path, ".namespaces") {
				name = text(value, "type")
			}
			flatten(path+"["+name+"]", value, values)
		}
	default:
		text, _ := encode(v)
		values[path] = strings.TrimSpace(string(text))
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The examples of RFC 7396, appendix A, that have objects.
func TestMergePatch(t *testing.T) {
	for _, test := range [][3]string{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`{"e":null}`, `{"a":1}`, `{"a":1,"e":null}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
		{`{"n":18446744073709551615}`, `{"m":1.50}`, `{"m":1.50,"n":18446744073709551615}`},
	} {
		s, err := Parse([]byte(test[0]))
		check(t, err)
		check(t, s.Edit(&ociedit.Instructions{Patches: []json.RawMessage{json.RawMessage(test[1])}}))
		got, err := s.Marshal()
		if err != nil || strings.TrimSpace(string(got)) != test[2] {
			t.Errorf("%s with %s: %s, %v, want %s", test[0], test[1], got, err, test[2])
		}
	}
}

// What does not fit the container is an error: nothing is left out.
func TestEditRefuses(t *testing.T) {
	userns := func(u ociedit.UserNamespace) func(s *Spec) error {
		u.UIDMappings, u.GIDMappings = pod, pod
		return func(s *Spec) error {
			_, err := s.Binds(&u)
			return errors.Join(err, s.SetUserNamespace(&u, "", "/run/berth-oci/sys"))
		}
	}
	edit := func(i ociedit.Instructions) func(s *Spec) error { return func(s *Spec) error { return s.Edit(&i) } }
	for _, test := range []struct {
		config string
		edit   func(s *Spec) error
		want   string
	}{
		{`{}`, edit(ociedit.Instructions{MountOptions: []ociedit.MountOptions{{Destination: "/data"}}}), "mount options of /data: the container has no such mount"},
		{`{"mounts":[{"destination":"/a","options":7}]}`, edit(ociedit.Instructions{MountOptions: []ociedit.MountOptions{{Destination: "/a"}}}), "mount /a: options is not an array"},
		{`{"mounts":{}}`, edit(ociedit.Instructions{MountOptions: []ociedit.MountOptions{{Destination: "/a"}}}), "mounts is not an array"},
		{`{"mounts":[1]}`, userns(ociedit.UserNamespace{}), "mounts has an element that is not an object"},
		{`{"linux":[]}`, edit(ociedit.Instructions{Unified: map[string]string{"a": "b"}}), "linux is not an object"},
		{`{"linux":{"devices":[1]}}`, edit(ociedit.Instructions{DeviceOwner: &ociedit.Owner{}}), "linux.devices has an element that is not an object"},
		{`{"linux":{"devices":{}}}`, edit(ociedit.Instructions{HostDevices: &ociedit.HostDevices{}}), "linux.devices is not an array"},
		{`{"hooks":{"poststop":1}}`, edit(ociedit.Instructions{Hooks: &ociedit.Hooks{Poststop: []ociedit.Hook{{Path: "/a"}}}}), "hooks.poststop is not an array"},
		{`{"process":{"capabilities":{"ambient":1}}}`, edit(ociedit.Instructions{AmbientCapabilities: []string{"CAP_CHOWN"}}), "process.capabilities.ambient is not an array"},
		{`{}`, edit(ociedit.Instructions{Patches: []json.RawMessage{json.RawMessage(`[]`)}}), "patch 1 is not a JSON object"},
		{`{}`, edit(ociedit.Instructions{JoinNamespaces: []string{"uts"}}), "cannot be joined without a process of the sandbox"},
		{`{"mounts":[{"destination":"/a","type":"tmpfs"}]}`, userns(ociedit.UserNamespace{Mounts: []ociedit.MountMapping{{Destination: "/a"}}}), "mappings of mount /a: the container has no such bind mount"},
		{`{"linux":{"namespaces":[{"type":"user"}]}}`, userns(ociedit.UserNamespace{}), "the Engine gives the container a user namespace itself (userns-remap)"},
		{`{"root":{"path":"rootfs"}}`, func(s *Spec) error { _, err := s.Root(); return err }, `root.path "rootfs" is not an absolute path`},
	} {
		s, err := Parse([]byte(test.config))
		check(t, err)
		if err := test.edit(s); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.config, err, test.want)
		}
	}
	for text, want := range map[string]string{"": "is not JSON", "[]": "is not a JSON object", "{} {}": "has something behind the JSON object", "{": "is not JSON"} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestNamespacesAreReplaced(t *testing.T) {
	s, err := Parse([]byte(`{"linux":{"namespaces":[{"type":"ipc","path":"/proc/7/ns/ipc"},{"type":"cgroup"},{"type":"mount"}]}}`))
	check(t, err)
	check(t, s.Edit(&ociedit.Instructions{Namespaces: []ociedit.Namespace{{Type: "ipc"}, {Type: "network", Path: "/n"}, {Type: "cgroup", Remove: true}, {Type: "time", Remove: true}}}))
	want := `[{"type":"mount"},{"type":"ipc"},{"path":"/n","type":"network"}]`
	if got, _ := json.Marshal(s.fields["linux"].(map[string]any)["namespaces"]); string(got) != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestMountsGetTheirOwnMappings(t *testing.T) {
	s, err := Parse([]byte(`{"mounts":[{"destination":"/a","type":"bind","source":"/1","options":["rbind"]},{"destination":"/b","source":"/2","options":["bind"]},` +
		`{"destination":"/c","type":"bind","source":"/3"},{"destination":"/proc","type":"proc"}]}`))
	check(t, err)
	other := []ociedit.IDMapping{{ContainerID: 0, HostID: 7, Size: 1}}
	binds, err := s.Binds(&ociedit.UserNamespace{UIDMappings: pod, GIDMappings: pod, IDMapOthers: true, Mounts: []ociedit.MountMapping{
		{Destination: "/a", UIDMappings: other, GIDMappings: other}, {Destination: "/b"},
	}})
	check(t, err)
	var got []string
	for _, b := range binds {
		got = append(got, fmt.Sprintf("%s %s %v %v", b.Destination, b.Source, b.Recursive, b.UIDs))
	}
	want := []string{"/a /1 true [{0 7 1}]", "/b /2 false []", "/c /3 false [{0 200000 65536}]"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSystemdCgroupIsRecognized(t *testing.T) {
	for path, want := range map[string]bool{
		"/docker/1": false, "/kubepods/pod:1": false, "kubepods-pod1.slice:docker:1": true, "system.slice:docker:1": true, ":docker:1": true,
		"": false, "a:b:c": false, "a.slice:b:": false, "a.slice:b:c:d": false,
	} {
		s, err := Parse([]byte(`{"linux":{"cgroupsPath":"` + path + `"}}`))
		check(t, err)
		if got := s.SystemdCgroup(); got != want {
			t.Errorf("%q: %v", path, got)
		}
	}
}

func TestExecGetsAmbientCapabilities(t *testing.T) {
	got, err := EditProcess([]byte(`{"args":["id"],"capabilities":{"bounding":["CAP_CHOWN"]}}`), &ociedit.Instructions{AmbientCapabilities: []string{"CAP_CHOWN"}, InheritableCapabilities: []string{"CAP_KILL"}})
	want := `{"args":["id"],"capabilities":{"ambient":["CAP_CHOWN"],"bounding":["CAP_CHOWN"],"effective":["CAP_CHOWN"],"inheritable":["CAP_CHOWN"],"permitted":["CAP_CHOWN"]}}`
	if err != nil || strings.TrimSpace(string(got)) != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
}

// FuzzEdit checks that no config.json makes the edit panic, and that one that is accepted has the user namespace.
func FuzzEdit(f *testing.F) {
	check := func(err error) {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.Fatal(err)
		}
	}
	files, err := filepath.Glob("testdata/28.5/*.json")
	check(err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		check(err)
		f.Add(text)
	}
	f.Add([]byte(`{"linux":{"namespaces":[{"type":"user"},1,null]},"mounts":[null]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		i := edits()["container"]
		i.MountOptions = nil
		if s.Edit(&i) != nil {
			return
		}
		if _, err := s.Binds(i.UserNamespace); err != nil {
			return
		}
		if s.SetUserNamespace(i.UserNamespace, "/proc/1/ns/user", "/run/berth-oci/sys") != nil || s.SetRoot("/r") != nil {
			return
		}
		after, err := s.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(after)
		if err != nil {
			t.Fatal(err)
		}
		if path, ok, err := again.namespace("user"); err != nil || !ok || path != "/proc/1/ns/user" {
			t.Errorf("user namespace %q, %v, %v", path, ok, err)
		}
		if root, err := again.Root(); err != nil || root != "/r" {
			t.Errorf("root %q, %v", root, err)
		}
	})
}

func TestOwnersOfDevices(t *testing.T) {
	s, err := Parse([]byte(`{"linux":{"devices":[{"path":"/dev/kvm","uid":0,"gid":104},{"path":"/dev/snd/timer","uid":0,"gid":29},{"path":"/dev/snd2","uid":0,"gid":1},{"path":"/dev/gpu","uid":3,"gid":3}]}}`))
	check(t, err)
	check(t, s.Edit(&ociedit.Instructions{
		Devices:     []ociedit.Device{{Path: "/dev/gpu", Type: "c", Major: 1, Minor: 2, UID: new(uint32(7))}, {Path: "/dev/nic", Type: "c", Major: 1, Minor: 3}},
		DeviceOwner: &ociedit.Owner{UID: new(uint32(1000)), Paths: []string{"/dev/kvm", "/dev/snd/", "/dev/gpu", "/dev/nic"}},
	}))
	got, err := s.Marshal()
	check(t, err)
	want := `{"linux":{"devices":[{"gid":104,"path":"/dev/kvm","uid":1000},{"gid":29,"path":"/dev/snd/timer","uid":1000},{"gid":1,"path":"/dev/snd2","uid":0},` +
		`{"major":1,"minor":2,"path":"/dev/gpu","type":"c","uid":7},{"major":1,"minor":3,"path":"/dev/nic","type":"c","uid":1000}]}}` + "\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPrivilegedContainerWithoutDevicesOfTheHost(t *testing.T) {
	s, err := Parse([]byte(`{"linux":{"devices":[{"path":"/dev/sda","type":"b","major":8,"minor":0},{"path":"/dev/fuse","type":"c","major":10,"minor":229}],"resources":{"devices":[{"allow":true,"access":"rwm"}]}}}`))
	check(t, err)
	check(t, s.Edit(&ociedit.Instructions{
		HostDevices: &ociedit.HostDevices{Allowed: []ociedit.DeviceAccess{{Path: "/dev/fuse", Access: "rw"}}},
		Devices:     []ociedit.Device{{Path: "/dev/gpu", Type: "c", Major: 1, Minor: 2, Access: "r"}},
	}))
	got, err := s.Marshal()
	check(t, err)
	want := `{"linux":{"devices":[{"major":10,"minor":229,"path":"/dev/fuse","type":"c"},{"major":1,"minor":2,"path":"/dev/gpu","type":"c"}],` +
		`"resources":{"devices":[{"access":"rwm","allow":false},{"access":"rw","allow":true,"major":10,"minor":229,"type":"c"},{"access":"r","allow":true,"major":1,"minor":2,"type":"c"}]}}}` + "\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
