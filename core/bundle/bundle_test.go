package bundle

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadTakesTheSpecOfTheContainerOnly(t *testing.T) {
	root := t.TempDir()
	tasks := filepath.Join(root, "state", taskDir, "moby")
	write := func(id, text string) {
		t.Helper()
		dir := filepath.Join(tasks, id)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("own", `{"ociVersion":"1.0.2"}`)
	write("shared", `{"ociVersion":"1.1.0"}`)
	write("text", "{")
	write("huge", `"`+strings.Repeat("x", MaxSpec)+`"`)
	secret := filepath.Join(root, "secret")
	if err := os.WriteFile(secret, []byte(`"secret"`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"link", "fifo"} {
		if err := os.MkdirAll(filepath.Join(tasks, id), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	link := func(from, to string) {
		t.Helper()
		if err := os.Symlink(to, from); err != nil {
			t.Fatal(err)
		}
	}
	link(filepath.Join(tasks, "link", "config.json"), secret)
	link(filepath.Join(tasks, "dirlink"), filepath.Join(tasks, "own"))
	if err := os.Mkdir(filepath.Join(tasks, "fifo", "config.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	cwd, other := filepath.Join(root, "cwd"), filepath.Join(root, "other")
	link(cwd, filepath.Join(tasks, "own"))
	link(other, root)

	for _, c := range []struct{ cwd, id, want, err string }{
		{cwd, "own", `{"ociVersion":"1.0.2"}`, ""},
		{cwd, "shared", `{"ociVersion":"1.1.0"}`, ""},
		{cwd, "missing", "", "no such file"},
		{cwd, "link", "", "open config.json"},
		{cwd, "dirlink", "", "open the bundle"},
		{cwd, "fifo", "", "not a regular file"},
		{cwd, "text", "", "is not JSON"},
		{cwd, "huge", "", "more than"},
		{cwd, "../../../own", `{"ociVersion":"1.0.2"}`, ""}, // the last element only
		{other, "own", "", "is not a bundle"},
	} {
		got, err := read(c.cwd, c.id)
		if string(got) != c.want || (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %.50q, %v; want %q, %q", c.id, got, err, c.want, c.err)
		}
	}
}

func TestSpecNeedsTheContainersCgroup(t *testing.T) {
	if _, err := Spec(os.Getpid(), strings.Repeat("a", 64)); err == nil {
		t.Error("a process outside of the container's cgroup is believed")
	}
	if _, err := Spec(0, "x"); err == nil {
		t.Error("a container without a process has a spec")
	}
}
