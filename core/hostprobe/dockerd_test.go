package hostprobe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A fakeProc is a directory as proc(5) has it.
type fakeProc struct {
	t   *testing.T
	dir string
}

// add adds a process that has the Unix socket at path, or waits for connections there if it listens.
func (p fakeProc) add(pid int, exe, root, path string, listens bool, args ...string) {
	p.t.Helper()
	dir := filepath.Join(p.dir, fmt.Sprint(pid))
	flags := "00000000"
	if listens {
		flags = "00010000"
	}
	if err := errors.Join(
		os.MkdirAll(filepath.Join(dir, "fd"), 0o755), os.Mkdir(filepath.Join(dir, "net"), 0o755),
		os.Symlink(exe, filepath.Join(dir, "exe")), os.Symlink(root, filepath.Join(dir, "root")),
		os.Symlink("/dev/null", filepath.Join(dir, "fd", "0")), os.Symlink(fmt.Sprintf("socket:[%d]", pid+1000), filepath.Join(dir, "fd", "3")),
		os.WriteFile(filepath.Join(dir, "cmdline"), []byte(strings.Join(append([]string{exe}, args...), "\x00")+"\x00"), 0o644),
		os.WriteFile(filepath.Join(dir, "cgroup"), []byte("1:name=systemd:/system.slice/docker.service\n0::/\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "net", "unix"), fmt.Appendf(nil, "Num RefCount Protocol Flags Type St Inode Path\n"+
			"0000000000000000: 00000002 00000000 00010000 0001 01 77\n"+
			"0000000000000000: 00000002 00000000 %s 0001 01 %d %s\n", flags, pid+1000, path), 0o644),
	); err != nil {
		p.t.Fatal(err)
	}
}

func TestDockerdIsFoundByItsSocket(t *testing.T) {
	p := fakeProc{t, t.TempDir()}
	node, inner := t.TempDir(), t.TempDir()
	for _, root := range []string{node, inner} {
		if err := errors.Join(os.Mkdir(filepath.Join(root, "run"), 0o755), os.Symlink("run", filepath.Join(root, "var")), os.WriteFile(filepath.Join(root, "run", "docker.sock"), nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(node, "run", "docker.sock")
	p.add(1, "/usr/lib/systemd/systemd", node, "/run/docker.sock", true)
	p.add(20, "/usr/bin/dockerd", inner, "/run/docker.sock", true, "in a container")
	p.add(21, "/usr/bin/dockerd", node, "/run/docker.sock", false, "a client of its own")
	if got, err := Dockerd(p.dir, socket); err == nil || !strings.Contains(err.Error(), "no dockerd of this node listens on") {
		t.Errorf("got %v, %v, want an error", got, err)
	}
	p.add(22, "/usr/bin/dockerd (deleted)", node, "/var/docker.sock", true, "-H", "fd://", "--label", "a b")
	got, err := Dockerd(p.dir, socket)
	if err != nil || got.PID != 22 || !slices.Equal(got.Args, []string{"-H", "fd://", "--label", "a b"}) || got.Unit != "docker.service" || got.Root != filepath.Join(p.dir, "22", "root") {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := Dockerd(p.dir, filepath.Join(node, "none")); !os.IsNotExist(err) {
		t.Errorf("without a socket: %v", err)
	}
}
