package spec

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth/core/ociedit"
)

// checkpointOf returns what a checkpoint of the container of s has.
func checkpointOf(t *testing.T, s *Spec) *ociedit.Restore {
	t.Helper()
	r := &ociedit.Restore{Seccomp: true, NoNewPrivileges: true, Capabilities: 1<<0 | 1<<10}
	mounts, err := s.mounts()
	if err != nil {
		t.Fatal(err)
	}
	texts := func(o map[string]any, name string) (out []string) {
		elements, err := list(o, name)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range elements {
			out = append(out, e.(string))
		}
		return out
	}
	for _, m := range mounts {
		r.Mounts = append(r.Mounts, ociedit.RestoredMount{Destination: text(m, "destination"), Type: text(m, "type"), Options: texts(m, "options")})
	}
	linux, err := s.object("linux")
	if err != nil {
		t.Fatal(err)
	}
	namespaces, err := list(linux, "namespaces")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range namespaces {
		r.Namespaces = append(r.Namespaces, ociedit.RestoredNamespace{Type: text(n, "type"), Joined: text(n, "path") != ""})
	}
	r.MaskedPaths, r.ReadonlyPaths = texts(linux, "maskedPaths"), texts(linux, "readonlyPaths")
	return r
}

// The containers of all Engines fit to checkpoints of the same container, and to no other ones.
func TestFitsCheckpoint(t *testing.T) {
	for _, engine := range []string{"20.10", "26.1", "28.5", "28.5-containerd"} {
		written, err := os.ReadFile("testdata/" + engine + "/container.json")
		if err != nil {
			t.Fatal(err)
		}
		for name, test := range map[string]struct {
			spec   string // merge patch of the container
			change func(r *ociedit.Restore)
			want   string
		}{
			"the same":          {"{}", func(*ociedit.Restore) {}, ""},
			"less capabilities": {"{}", func(r *ociedit.Restore) { r.Capabilities = 0 }, ""},
			"more options": {"{}", func(r *ociedit.Restore) {
				for i := range r.Mounts {
					r.Mounts[i].Options = append(slices.Clone(r.Mounts[i].Options), "ro", "nodev")
				}
			}, ""},
			"capabilities":  {"{}", func(r *ociedit.Restore) { r.Capabilities |= 1<<21 | 1<<63 }, "capabilities that the container does not have: CAP_SYS_ADMIN, capability 63"},
			"root":          {`{"process": {"user": {"uid": 1000}}}`, func(r *ociedit.Restore) { r.Root = true }, "the user of the container is 1000, and the checkpoint has processes of root"},
			"no root":       {`{"process": {"user": {"uid": 1000}}}`, func(*ociedit.Restore) {}, ""},
			"root as root":  {`{"process": {"user": {"uid": 0}}}`, func(r *ociedit.Restore) { r.Root = true }, ""},
			"no seccomp":    {"{}", func(r *ociedit.Restore) { r.Seccomp = false }, "processes without"},
			"may escalate":  {`{"process": {"noNewPrivileges": true}}`, func(r *ociedit.Restore) { r.NoNewPrivileges = false }, "may get new privileges"},
			"writable root": {`{"root": {"readonly": true}}`, func(*ociedit.Restore) {}, "the root file system is read-only in the container"},
			"unmasked":      {"{}", func(r *ociedit.Restore) { r.MaskedPaths = r.MaskedPaths[1:] }, "maskedPaths of the container that the checkpoint does not have: /proc/"},
			"writable proc": {"{}", func(r *ociedit.Restore) { r.ReadonlyPaths = nil }, "readonlyPaths of the container that the checkpoint does not have: /proc/"},
			"a mount less":  {"{}", func(r *ociedit.Restore) { r.Mounts = r.Mounts[1:] }, "only in the container: /proc;"},
			"a mount more": {"{}", func(r *ociedit.Restore) {
				r.Mounts = append(r.Mounts, ociedit.RestoredMount{Destination: "/data/../secret", Type: "bind"})
			}, "only in the checkpoint: /secret; only in the container: none"},
			"writable mount": {"{}", func(r *ociedit.Restore) { r.Mounts[slices.IndexFunc(r.Mounts, isSys)].Options = nil }, "in the checkpoint: /sys"},
			"tmpfs for a volume": {"{}", func(r *ociedit.Restore) {
				i := slices.IndexFunc(r.Mounts, isSys)
				r.Mounts[i].Type = "tmpfs"
			}, "different in the checkpoint: /sys (of type tmpfs)"},
			"own network": {"{}", func(r *ociedit.Restore) {
				r.Namespaces[slices.IndexFunc(r.Namespaces, func(n ociedit.RestoredNamespace) bool { return n.Type == "network" })].Joined = false
			}, "network of another container"},
			"a namespace less": {"{}", func(r *ociedit.Restore) { r.Namespaces = r.Namespaces[1:] }, "must have the namespaces of its checkpoint"},
			"the hostname of the node": {"{}", func(r *ociedit.Restore) {
				r.Namespaces = slices.DeleteFunc(r.Namespaces, func(n ociedit.RestoredNamespace) bool { return n.Type == "uts" })
			}, "must have the namespaces of its checkpoint"},
			"a hostname per pod": {"{}", func(r *ociedit.Restore) {
				r.Namespaces[slices.IndexFunc(r.Namespaces, func(n ociedit.RestoredNamespace) bool { return n.Type == "uts" })].Joined = true
			}, ""},
			"a hostname less": {`{"linux": {"namespaces": [{"type": "ipc", "path": "/proc/1/ns/ipc"}]}}`, func(r *ociedit.Restore) {
				r.Namespaces = []ociedit.RestoredNamespace{{Type: "ipc", Joined: true}, {Type: "uts", Joined: true}}
			}, ""},
			"user namespace": {`{"linux": {"namespaces": [{"type": "user"}]}}`, func(*ociedit.Restore) {}, "a user namespace cannot be restored"},
			"terminal":       {`{"process": {"terminal": true}}`, func(*ociedit.Restore) {}, "with a terminal"},
		} {
			s, err := Parse(written)
			if err != nil {
				t.Fatal(err)
			}
			r := checkpointOf(t, s)
			test.change(r)
			if err := s.Edit(&ociedit.Instructions{Patches: []json.RawMessage{json.RawMessage(test.spec)}}); err != nil {
				t.Fatal(err)
			}
			err = s.FitsCheckpoint(r)
			if (err != nil) != (test.want != "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: %s: %v, want %q", engine, name, err, test.want)
			}
		}
	}
}

// Docker 25 and newer mount some files recursively read-only, containerd never.
func TestReadOnlyFilesFitWhetherRecursiveOrNot(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "hosts")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		source string
		before []string
		want   string
	}{
		"a file":          {file, []string{"bind", "ro"}, ""},
		"a writable file": {file, []string{"bind", "rw"}, "/x (not rro)"},
		"a directory":     {dir, []string{"bind", "ro"}, "/x (not rro)"},
		"nothing":         {file + "x", []string{"bind", "ro"}, "/x (not rro)"},
	} {
		s, err := Parse(fmt.Appendf(nil, `{"mounts": [{"destination": "/x", "type": "bind", "source": %q, "options": ["rbind", "rro"]}]}`, test.source))
		if err != nil {
			t.Fatal(err)
		}
		err = s.sameMounts(&ociedit.Restore{Mounts: []ociedit.RestoredMount{{Destination: "/x", Type: "bind", Options: test.before}}})
		if (err != nil) != (test.want != "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func isSys(m ociedit.RestoredMount) bool { return m.Destination == "/sys" }

func TestRestoreFlagsAreTheLabelsOfTheContainer(t *testing.T) {
	for text, want := range map[string]string{
		`{}`: "",
		`{"process": {"apparmorProfile": "unconfined"}}`:                                       "",
		`{"process": {"apparmorProfile": "docker-default"}}`:                                   "--lsm-profile apparmor:docker-default",
		`{"process": {"selinuxLabel": "a:b:c:s0:c1"}, "linux": {"mountLabel": "a:b:d:s0:c1"}}`: "--lsm-profile selinux:a:b:c:s0:c1 --lsm-mount-context a:b:d:s0:c1",
	} {
		s, err := Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(s.RestoreFlags(), " "); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}
