package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestGroups(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		v2   bool
		want Group
	}{
		"v2": {"0::/kubepods/pod1/abc\n", true, Group{V2: "/sys/fs/cgroup/kubepods/pod1/abc"}},
		"v1": {"5:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n1:name=systemd:/docker/abc\n", false, Group{V1: map[string]string{
			"cpu": "/sys/fs/cgroup/cpu/docker/abc", "cpuacct": "/sys/fs/cgroup/cpuacct/docker/abc",
			"memory": "/sys/fs/cgroup/memory/docker/abc", "name=systemd": "/sys/fs/cgroup/systemd/docker/abc",
		}}},
		"v1 with an empty v2 beside it": {"3:memory:/a:b/abc\n0::/system.slice\n", false, Group{V1: map[string]string{"memory": "/sys/fs/cgroup/memory/a:b/abc"}}},
		"moved itself on v2":            {"0::/kubepods/pod1/abc/init\n", true, Group{V2: "/sys/fs/cgroup/kubepods/pod1/abc"}},
		"moved itself, of systemd":      {"0::/kubepods.slice/docker-abc.scope/system.slice/abc.service\n", true, Group{V2: "/sys/fs/cgroup/kubepods.slice/docker-abc.scope"}},
		"moved itself on v1": {"3:memory:/docker/abc\n1:name=systemd:/docker/abc/init.scope\n", false, Group{V1: map[string]string{
			"memory": "/sys/fs/cgroup/memory/docker/abc", "name=systemd": "/sys/fs/cgroup/systemd/docker/abc",
		}}},
		"below another cgroup with the ID": {"0::/a/docker-abc.scope/b/abc/c\n", true, Group{V2: "/sys/fs/cgroup/a/docker-abc.scope"}},
		"somewhere else":                   {"0::/system.slice/x.service\n", true, Group{}},
		"the root":                         {"0::/\n", true, Group{}},
		"the ID in a longer name":          {"0::/system.slice/xabc.service/abc.d/zabc\n", true, Group{}},
		"the ID in the name of a service":  {"0::/system.slice/x-abc.service\n", true, Group{}},
		"a controller that the runtime does not know": {"3:memory:/docker/abc\n4:misc:/\n", false, Group{V1: map[string]string{
			"memory": "/sys/fs/cgroup/memory/docker/abc",
		}}},
		"moved to another group of one controller": {"3:memory:/system.slice/sshd.service\n4:cpu:/docker/abc\n", false, Group{V1: map[string]string{
			"cpu": "/sys/fs/cgroup/cpu/docker/abc",
		}}},
		"moved elsewhere on v1": {"3:memory:/\n1:name=systemd:/system.slice\n", false, Group{}},
		"nothing":               {"", false, Group{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := parse(tt.text, tt.v2).of("abc")
			if diff := cmp.Diff(tt.want, got); diff != "" || ok != (tt.want.V2 != "" || tt.want.V1 != nil) {
				t.Error(ok, diff)
			}
		})
	}
}

// What a container has been is not to be looked for in the root once it has ended.
func TestOfWhatHasEnded(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	stat := "/proc/" + strconv.Itoa(cmd.Process.Pid) + "/stat"
	for {
		text, err := os.ReadFile(stat)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), ") Z ") {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if g, err := Of(cmd.Process.Pid, "abc"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, %v", g, err)
	}
	// This process is in no cgroup of that container.
	if g, err := Of(os.Getpid(), "abc"); !errors.Is(err, ErrMoved) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of one that runs in another cgroup: %v, %v; want ErrMoved", g, err)
	}
	if g, err := Of(os.Getpid(), ""); !errors.Is(err, ErrMoved) {
		t.Errorf("of no container: %v, %v; want ErrMoved", g, err)
	}
	for stat, want := range map[string]bool{
		"7 (a) Z 1 7 7 0 -1 4194304 0": true, "7 (Z) Z) S 1 7 7 0 -1 4194304 0": false, "7 () R 0) X 1 7 7 0 -1 0 0": true,
		"7 (at it) S 1 7 7 0 -1 4194308 0": true, "7 (a) S": false, "": false,
	} {
		if got := over(stat); got != want {
			t.Errorf("%q: %v, want %v", stat, got, want)
		}
	}
}

func TestParent(t *testing.T) {
	v1 := Group{V1: map[string]string{"memory": "/sys/fs/cgroup/memory/pod1/abc"}}
	if dir, ok := v1.Parent().Dir("memory"); !ok || dir != "/sys/fs/cgroup/memory/pod1" {
		t.Errorf("parent in %q, %v", dir, ok)
	}
	if dir, ok := v1.Dir("memory"); !ok || dir != "/sys/fs/cgroup/memory/pod1/abc" {
		t.Errorf("asking for the parent has changed the group: %q, %v", dir, ok)
	}
	if dir, _ := (Group{V2: "/sys/fs/cgroup/pod1/abc"}).Parent().Dir("memory"); dir != "/sys/fs/cgroup/pod1" {
		t.Errorf("parent in %q", dir)
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"one": "4096\n", "max": "max\n", "bad": "x\n", "stat": "anon 10\nfile 20\nodd\nworse x\n",
		"psi": "some avg10=1.50 avg60=0.25 avg300=0.00 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := Number(dir, "one"); err != nil || n != 4096 {
		t.Errorf("one: %d, %v", n, err)
	}
	if n, err := Number(dir, "max"); err != nil || n != Unlimited {
		t.Errorf("max: %d, %v", n, err)
	}
	if _, err := Number(dir, "bad"); err == nil {
		t.Error("a number was read where there is none")
	}
	if _, err := Number(dir, "none"); !os.IsNotExist(err) {
		t.Errorf("no file: %v", err)
	}
	if got, err := Numbers(dir, "stat", "file", "anon", "none"); err != nil || !cmp.Equal(got, map[string]uint64{"anon": 10, "file": 20}) {
		t.Errorf("stat: %v, %v", got, err)
	}
	some, full, err := Pressures(dir, "psi")
	if err != nil || !cmp.Equal(some, &Pressure{Avg10: 1.5, Avg60: 0.25, Total: 123_000}) || !cmp.Equal(full, &Pressure{Total: 7000}) {
		t.Errorf("pressure: %v, %v, %v", some, full, err)
	}
	if some, full, err := Pressures(dir, "none"); some != nil || full != nil || err != nil {
		t.Errorf("no pressure: %v, %v, %v", some, full, err)
	}
}

func TestMake(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"memory", "hugetlb", "pods/p1"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	g, err := makeIn(root, "/pods/p1/c1", []string{"memory", "hugetlb", "nonsense"}, false)
	if err != nil {
		t.Fatal(err)
	}
	for controller, there := range map[string]bool{"memory": true, "hugetlb": true, "nonsense": false} {
		if dir, ok := g.Dir(controller); ok != there || ok && dir != filepath.Join(root, controller, "pods/p1/c1") {
			t.Errorf("%s: %s", controller, dir)
		}
	}
	if err := errors.Join(g.Remove(), g.Remove()); err != nil {
		t.Error(err)
	}

	passed := []string{root, root + "/pods", root + "/pods/p1"}
	if err := os.WriteFile(root+"/cgroup.controllers", []byte("cpu memory io\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range passed {
		if err := os.WriteFile(dir+"/cgroup.subtree_control", nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if g, err = makeIn(root, "/pods/p1/c1", []string{"memory", "nonsense"}, true); err != nil || g.V2 != root+"/pods/p1/c1" {
		t.Errorf("%+v, %v", g, err)
	}
	for _, dir := range passed {
		if text, err := os.ReadFile(dir + "/cgroup.subtree_control"); string(text) != "+memory" || err != nil {
			t.Errorf("%s passes on %q, %v", dir, text, err)
		}
	}
}
