package cdi

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/ociedit"
)

func TestNamesAreThoseOfTheFieldAndOfAnnotationsOnce(t *testing.T) {
	c := &runtimeapi.ContainerConfig{
		CDIDevices: []*runtimeapi.CDIDevice{{Name: "v/gpu=1"}, {Name: "v/gpu=1"}},
		Annotations: map[string]string{
			"cdi.k8s.io/b": "v/gpu=3", "cdi.k8s.io/a": "v/gpu=2,v/gpu=1", "other/cdi.k8s.io": "v/gpu=9",
		},
	}
	got, err := Config{Annotations: true}.Names(c)
	if want := []string{"v/gpu=1", "v/gpu=2", "v/gpu=3"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	c.Annotations["cdi.k8s.io/c"] = "not qualified"
	if got, err := (Config{}).Names(c); err != nil || !slices.Equal(got, []string{"v/gpu=1"}) {
		t.Errorf("without annotations: %v, %v", got, err)
	}
	if _, err := (Config{Annotations: true}).Names(c); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "cdi.k8s.io/c") {
		t.Errorf("an annotation that is no list of devices: %v", err)
	}
	if _, err := (Config{}).Names(&runtimeapi.ContainerConfig{CDIDevices: []*runtimeapi.CDIDevice{{}}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a device without a name: %v", err)
	}
}

// specDirs writes specifications of the kind v/gpu, by DIR/FILE. A text is a whole file if it begins with "!", else
// the containerEdits of the device d.
func specDirs(t *testing.T, files map[string]string) Config {
	t.Helper()
	root := t.TempDir()
	cfg := Config{SpecDirs: []string{filepath.Join(root, "low"), filepath.Join(root, "high"), filepath.Join(root, "absent")}}
	for _, dir := range cfg.SpecDirs[:2] {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, text := range files {
		whole, ok := strings.CutPrefix(text, "!")
		if !ok {
			whole = fmt.Sprintf(`{"cdiVersion": "1.1.0", "kind": "v/gpu", "devices": [{"name": "d", "containerEdits": %s}]}`, text)
		}
		if err := os.WriteFile(filepath.Join(root, path), []byte(whole), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return cfg
}

func TestResolveTranslatesEdits(t *testing.T) {
	cfg := specDirs(t, map[string]string{"low/a.yaml": `!
cdiVersion: 1.0.0
kind: v/gpu
containerEdits:
  env: [ALL=1]
  additionalGids: [44, 0]
devices:
- name: a
  containerEdits:
    env: [A=1]
    deviceNodes:
    - {path: /dev/thing, hostPath: /dev/zero, type: c, major: 1, minor: 5, permissions: rw}
    - {path: /dev/null}
- name: b
  containerEdits:
    mounts:
    - {hostPath: /etc, containerPath: /a, options: [ro, nosuid, nodev, bind, rprivate]}
    - {hostPath: /etc, containerPath: /b, type: bind, options: [rbind, rro]}
    - {hostPath: /etc, containerPath: /c, options: [rbind, rslave]}
`, "low/broken.json": "!{", "low/ignored.txt": "!x"})
	got, err := cfg.Resolve([]string{"v/gpu=b", "v/gpu=a"}, false)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"ALL=1", "A=1"}; !slices.Equal(got.Env, want) || !slices.Equal(got.GIDs, []int64{44}) {
		t.Errorf("env %v, groups %v", got.Env, got.GIDs)
	}
	for i := range got.Nodes {
		got.Nodes[i].UID, got.Nodes[i].GID, got.Nodes[i].Mode, got.Nodes[i].Device, got.Nodes[i].Type = 0, 0, 0, 0, "" // the machine's
	}
	if diff := cmp.Diff([]Node{
		{HostPath: "/dev/zero", Path: "/dev/thing", Permissions: "rw", UserOwned: true},
		{HostPath: "/dev/null", Path: "/dev/null", Permissions: "rwm", UserOwned: true},
	}, got.Nodes); diff != "" {
		t.Error(diff)
	}
	var mounts []string
	for _, m := range got.Mounts {
		mounts = append(mounts, fmt.Sprint(m.CRI.GetContainerPath(), m.NonRecursive, m.CRI.GetReadonly(), m.CRI.GetRecursiveReadOnly(), m.CRI.GetMountOptions(), m.CRI.GetPropagation()))
	}
	if want := []string{
		"/atruetruefalse[nosuid nodev]PROPAGATION_PRIVATE", "/bfalsetruetrue[]PROPAGATION_PRIVATE", "/cfalsefalsefalse[]PROPAGATION_HOST_TO_CONTAINER",
	}; len(mounts) != 3 || strings.ReplaceAll(strings.Join(mounts, ","), " ", "") != strings.ReplaceAll(strings.Join(want, ","), " ", "") {
		t.Errorf("mounts %q", mounts)
	}
}

// Engines that resolve devices themselves leave the variables out of commands in the container; 28.5 leaves the groups out, too.
func TestProcessIsFoundAlsoBesideWhatIsRefused(t *testing.T) {
	t.Parallel()
	cfg := specDirs(t, map[string]string{"low/a.json": `!{"cdiVersion": "0.7.0", "kind": "a.test/x", "containerEdits": {"additionalGids": [4], "env": ["ALL=1"]}, "devices": [
		{"name": "one", "containerEdits": {"additionalGids": [5, 0], "hooks": [{"hookName": "createContainer", "path": "/bin/true"}]}}, {"name": "two", "containerEdits": {"env": ["A=b"]}}]}`})
	got := cfg.Process([]string{"a.test/x=one", "a.test/x=absent", "a.test/x=two"})
	if !slices.Equal(got.GIDs, []int64{4, 5}) || !slices.Equal(got.Env, []string{"ALL=1", "A=b"}) || got.Hooks != nil {
		t.Errorf("groups, variables and hooks %+v", got)
	}
	if got := cfg.Process(nil); got.GIDs != nil || got.Env != nil {
		t.Errorf("of no device: %+v", got)
	}
}

func TestResolveRefusesWhatTheEngineAPICannotExpress(t *testing.T) {
	for edits, want := range map[string]string{
		`{"hooks": [{"hookName": "createContainer", "path": "/bin/hook"}]}`:              "hooks (createContainer /bin/hook)",
		`{"intelRdt": {"closID": "x"}}`:                                                  "intelRdt",
		`{"netDevices": [{"hostInterfaceName": "eth7", "name": "eth0"}]}`:                "net devices (eth7)",
		`{"deviceNodes": [{"path": "/dev/berth-none"}]}`:                                 "/dev/berth-none on the host: no such file",
		`{"deviceNodes": [{"path": "/dev/x", "type": "c", "major": 9, "minor": 9}]}`:     "/dev/x on the host: no such file",
		`{"deviceNodes": [{"path": "/dev/x", "hostPath": "/etc/passwd"}]}`:               "neither a character nor a block device",
		`{"deviceNodes": [{"path": "/dev/zero", "type": "b"}]}`:                          `the type must be "b"`,
		`{"deviceNodes": [{"path": "/dev/zero", "type": "c", "major": 1, "minor": 3}]}`:  "the device number must be 1:3",
		`{"deviceNodes": [{"path": "/dev/zero", "fileMode": 0}]}`:                        "the mode must be 0000",
		`{"deviceNodes": [{"path": "/dev/zero", "uid": 4242}]}`:                          "the owner must be 4242",
		`{"deviceNodes": [{"path": "/dev/zero", "gid": 4242}]}`:                          "the group must be 4242",
		`{"deviceNodes": [{"path": "/dev/zero", "permissions": "none"}]}`:                `permissions "none"`,
		`{"mounts": [{"hostPath": "/etc", "containerPath": "/a", "type": "tmpfs"}]}`:     `type "tmpfs"`,
		`{"mounts": [{"hostPath": "/etc", "containerPath": "/a", "options": ["exec"]}]}`: `option "exec"`,
		`{"mounts": [{"hostPath": "/berth-none", "containerPath": "/a"}]}`:               "no such file",
	} {
		cfg := specDirs(t, map[string]string{"low/a.json": edits})
		_, err := cfg.Resolve([]string{"v/gpu=d"}, false)
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "CDI device v/gpu=d of "+cfg.SpecDirs[0]+"/a.json") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", edits, err)
		}
	}
}

func TestUnresolvableDeviceNamesDirectoriesAndInvalidFiles(t *testing.T) {
	cfg := specDirs(t, map[string]string{"low/a.json": `{"env": ["A=1"]}`, "low/b.json": "!{", "high/large.json": "!" + strings.Repeat(" ", maxSpecSize+1)})
	if err := unix.Mkfifo(filepath.Join(cfg.SpecDirs[1], "pipe.json"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := cfg.Resolve([]string{"v/gpu=d", "v/gpu=other"}, false)
	if !errdefs.IsFailedPrecondition(err) {
		t.Fatal(err)
	}
	for _, want := range []string{"unresolvable CDI device v/gpu=other", strings.Join(cfg.SpecDirs, " or "), "low/b.json is not valid", "at most 4194304 are read", "pipe.json is not valid: not a regular file"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if _, err := cfg.Resolve([]string{"gpu"}, false); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a name that is not qualified: %v", err)
	}
	devices, problems := cfg.Check(false)
	if reason, ok := devices["v/gpu=d"]; !ok || reason != nil || len(devices) != 1 || len(problems) != 3 {
		t.Errorf("devices %v, problems %v", devices, problems)
	}
}

func TestLaterDirectoryHasPriorityAndConflictsAreUnresolvable(t *testing.T) {
	cfg := specDirs(t, map[string]string{"low/a.json": `{"env": ["A=low"]}`, "low/b.json": `{"env": ["A=low, too"]}`, "high/a.json": `{"env": ["A=high"]}`})
	if got, err := cfg.Resolve([]string{"v/gpu=d"}, false); err != nil || !slices.Equal(got.Env, []string{"A=high"}) {
		t.Errorf("got %v, %v", got.Env, err)
	}
	if err := os.Remove(filepath.Join(cfg.SpecDirs[1], "a.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := cfg.Resolve([]string{"v/gpu=d"}, false); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "is defined by "+cfg.SpecDirs[0]+"/a.json, too") {
		t.Errorf("a device in two files of one directory: %v", err)
	}
}

func TestNodesThatTheUserCannotOpen(t *testing.T) {
	user := &runtimeapi.LinuxContainerUser{Uid: 7, Gid: 8, SupplementalGroups: []int64{9}}
	for name, tt := range map[string]struct {
		node    Node
		refused bool
	}{
		"everybody":                    {Node{Permissions: "rwm", Mode: 0o666, UserOwned: true}, false},
		"root only":                    {Node{Permissions: "rwm", Mode: 0o600, UserOwned: true}, true},
		"read only":                    {Node{Permissions: "r", Mode: 0o664, UserOwned: true}, false},
		"own group":                    {Node{Permissions: "rw", Mode: 0o660, GID: 8, UserOwned: true}, false},
		"supplemental group":           {Node{Permissions: "rw", Mode: 0o660, GID: 9, UserOwned: true}, false},
		"owner":                        {Node{Permissions: "rw", Mode: 0o600, UID: 7, UserOwned: true}, false},
		"the specification's own root": {Node{Permissions: "rwm", Mode: 0o600}, false},
	} {
		_, err := Edits{Nodes: []Node{tt.node}}.ForUser(user)
		if errdefs.IsFailedPrecondition(err) != tt.refused {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := (Edits{Nodes: []Node{tt.node}}).ForUser(&runtimeapi.LinuxContainerUser{}); err != nil {
			t.Errorf("%s, root: %v", name, err)
		}
	}
}

// Whatever the Engine API cannot express of nodes and hooks, berth's OCI runtime can.
func TestResolveForTheOCIRuntime(t *testing.T) {
	cfg := specDirs(t, map[string]string{"low/a.json": `{
		"hooks": [{"hookName": "createContainer", "path": "/bin/hook", "args": ["hook", "-x"], "env": ["A=1"], "timeout": 3}, {"hookName": "poststop", "path": "/bin/end"}],
		"deviceNodes": [{"path": "/dev/zero"}, {"path": "/dev/z", "hostPath": "/dev/zero", "uid": 4242, "permissions": "r"}, {"path": "/dev/y", "hostPath": "/dev/zero", "fileMode": 384},
			{"path": "/dev/none", "type": "b", "major": 9, "minor": 8, "permissions": "none"}]}`})
	got, err := cfg.Resolve([]string{"v/gpu=d"}, true)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Nodes) != 1 || got.Nodes[0].Path != "/dev/zero" {
		t.Errorf("nodes that Docker copies: %+v", got.Nodes)
	}
	three, mode := 3, uint32(0o600)
	if diff := cmp.Diff(&ociedit.Hooks{
		CreateContainer: []ociedit.Hook{{Path: "/bin/hook", Args: []string{"hook", "-x"}, Env: []string{"A=1"}, Timeout: &three}}, Poststop: []ociedit.Hook{{Path: "/bin/end"}},
	}, got.Hooks); diff != "" {
		t.Errorf("hooks (-want +got):\n%s", diff)
	}
	user := &runtimeapi.LinuxContainerUser{Uid: 7, Gid: 8}
	got.Nodes = []Node{{HostPath: "/dev/tpm0", Path: "/dev/tpm0", Permissions: "rw", UserOwned: true, Mode: 0o600, Device: unix.Mkdev(10, 224), Type: "c"}}
	if got, err = got.ForUser(user); err != nil || len(got.Nodes) != 0 {
		t.Errorf("a node that the user cannot open: %v, %v", got.Nodes, err)
	}
	uid, gid, owner := uint32(7), uint32(8), uint32(4242)
	if diff := cmp.Diff([]ociedit.Device{
		{Path: "/dev/z", Type: "c", Major: 1, Minor: 5, UID: &owner, GID: &gid, Access: "r"},
		{Path: "/dev/y", Type: "c", Major: 1, Minor: 5, FileMode: &mode, UID: &uid, GID: &gid, Access: "rwm"},
		{Path: "/dev/none", Type: "b", Major: 9, Minor: 8, UID: &uid, GID: &gid},
		{Path: "/dev/tpm0", Type: "c", Major: 10, Minor: 224, FileMode: &mode, UID: &uid, GID: &gid, Access: "rw"},
	}, got.Devices); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
	if own := got.MergeDevices([]*runtimeapi.Device{{ContainerPath: "/dev/z"}, {ContainerPath: "/dev/own"}}); len(own) != 1 || own[0].GetContainerPath() != "/dev/own" {
		t.Errorf("devices of the container: %v", own)
	}
	for edits, want := range map[string]string{
		`{"intelRdt": {"closID": "x"}}`:                                    "intelRdt",
		`{"netDevices": [{"hostInterfaceName": "eth7", "name": "eth0"}]}`:  "net devices (eth7)",
		`{"deviceNodes": [{"path": "/dev/berth-none"}]}`:                   "/dev/berth-none on the host: no such file",
		`{"deviceNodes": [{"path": "/dev/x", "hostPath": "/etc/passwd"}]}`: "neither a character nor a block device",
		`{"deviceNodes": [{"path": "/dev/zero", "type": "b"}]}`:            `the type must be "b"`,
	} {
		cfg := specDirs(t, map[string]string{"low/a.json": edits})
		if _, err := cfg.Resolve([]string{"v/gpu=d"}, true); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", edits, err)
		}
	}
}
