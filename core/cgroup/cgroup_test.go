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
	"github.com/prometheus/procfs"
)

func TestParseFindsTheCgroupOfTheContainer(t *testing.T) {
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
		"a controller without a cgroup of the container": {"3:memory:/docker/abc\n4:misc:/\n", false, Group{V1: map[string]string{
			"memory": "/sys/fs/cgroup/memory/docker/abc",
		}}},
		"moved to another group of one controller": {"3:memory:/system.slice/sshd.service\n4:cpu:/docker/abc\n", false, Group{V1: map[string]string{
			"cpu": "/sys/fs/cgroup/cpu/docker/abc",
		}}},
		"moved elsewhere on v1": {"3:memory:/\n1:name=systemd:/system.slice\n", false, Group{}},
		"empty":                 {"", false, Group{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := parse(tt.text, tt.v2).ofContainer("abc")
			if diff := cmp.Diff(tt.want, got); diff != "" || ok != (tt.want.V2 != "" || tt.want.V1 != nil) {
				t.Error(ok, diff)
			}
		})
	}
}

// On v1 the kernel reports a process that has exited in the root cgroup.
func TestOfFailsForProcessesThatExitedOrMoved(t *testing.T) {
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
	if g, err := ForContainer(cmd.Process.Pid, "abc"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, %v", g, err)
	}
	// This process is in no cgroup of that container.
	if g, err := ForContainer(os.Getpid(), "abc"); !errors.Is(err, ErrMoved) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a process in another cgroup: %v, %v; want ErrMoved", g, err)
	}
	if g, err := ForContainer(os.Getpid(), ""); !errors.Is(err, ErrMoved) {
		t.Errorf("without an ID: %v, %v; want ErrMoved", g, err)
	}
}

func TestExitedReadsStateAndFlags(t *testing.T) {
	for stat, want := range map[string]bool{
		"7 (a) Z 1 7 7 0 -1 4194304": true, "7 (Z) Z) S 1 7 7 0 -1 4194304": false, "7 () R 0) X 1 7 7 0 -1 0": true,
		"7 (exiting) S 1 7 7 0 -1 4194308": true,
	} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "7"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "7", "stat"), []byte(stat+strings.Repeat(" 0", 43)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		proc, err := procfs.NewFS(dir)
		if err != nil {
			t.Fatal(err)
		}
		process, err := proc.Proc(7)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := process.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if got := exited(parsed); got != want {
			t.Errorf("%q: %v, want %v", stat, got, want)
		}
	}
}

func TestGroupAtAPath(t *testing.T) {
	for name, tt := range map[string]struct {
		own, want Group
		path      string
	}{
		"v2": {Group{V2: "/sys/fs/cgroup/system.slice"}, Group{V2: "/sys/fs/cgroup/docker/abc"}, "/docker/abc"},
		"v1": {Group{V1: map[string]string{"memory": "/sys/fs/cgroup/memory", "name=systemd": "/sys/fs/cgroup/systemd/x"}}, Group{V1: map[string]string{
			"memory": "/sys/fs/cgroup/memory/docker/abc", "name=systemd": "/sys/fs/cgroup/systemd/docker/abc", "unified": "/sys/fs/cgroup/unified/docker/abc",
		}}, "/docker/abc"},
		"outside": {Group{V2: "/sys/fs/cgroup"}, Group{V2: "/sys/fs/cgroup/etc/abc"}, "/../../etc/abc"},
	} {
		if diff := cmp.Diff(tt.want, tt.own.at(tt.path)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestParent(t *testing.T) {
	v1 := Group{V1: map[string]string{"memory": "/sys/fs/cgroup/memory/pod1/abc"}}
	if dir, ok := v1.Parent().Dir("memory"); !ok || dir != "/sys/fs/cgroup/memory/pod1" {
		t.Errorf("parent in %q, %v", dir, ok)
	}
	if dir, ok := v1.Dir("memory"); !ok || dir != "/sys/fs/cgroup/memory/pod1/abc" {
		t.Errorf("Parent has changed the group: %q, %v", dir, ok)
	}
	if dir, _ := (Group{V2: "/sys/fs/cgroup/pod1/abc"}).Parent().Dir("memory"); dir != "/sys/fs/cgroup/pod1" {
		t.Errorf("parent in %q", dir)
	}
}

func TestReadsNumbersAndPressure(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"one": "4096\n", "max": "max\n", "bad": "x\n", "stat": "anon 10\nfile 20\nodd\nworse x\n",
		"psi": "some avg10=1.50 avg60=0.25 avg300=0.00 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := ReadUint(dir, "one"); err != nil || n != 4096 {
		t.Errorf("one: %d, %v", n, err)
	}
	if n, err := ReadUint(dir, "max"); err != nil || n != Unlimited {
		t.Errorf("max: %d, %v", n, err)
	}
	if _, err := ReadUint(dir, "bad"); err == nil {
		t.Error("no error for a file without a number")
	}
	if _, err := ReadUint(dir, "none"); !os.IsNotExist(err) {
		t.Errorf("missing file: %v", err)
	}
	if got, err := ReadKeyed(dir, "stat", "file", "anon", "none"); err != nil || !cmp.Equal(got, map[string]uint64{"anon": 10, "file": 20}) {
		t.Errorf("stat: %v, %v", got, err)
	}
	some, full, err := ReadPressure(dir, "psi")
	if err != nil || !cmp.Equal(some, &Pressure{Avg10: 1.5, Avg60: 0.25, Total: 123_000}) || !cmp.Equal(full, &Pressure{Total: 7000}) {
		t.Errorf("pressure: %v, %v, %v", some, full, err)
	}
	if some, full, err := ReadPressure(dir, "none"); some != nil || full != nil || err != nil {
		t.Errorf("no pressure: %v, %v, %v", some, full, err)
	}
}

func TestMakeCreatesControllersThatTheNodeHas(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"memory", "hugetlb", "pods/p1"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	g, err := createIn(root, "/pods/p1/c1", []string{"memory", "hugetlb", "nonsense"}, false)
	if err != nil {
		t.Fatal(err)
	}
	for controller, exists := range map[string]bool{"memory": true, "hugetlb": true, "nonsense": false} {
		if dir, ok := g.Dir(controller); ok != exists || ok && dir != filepath.Join(root, controller, "pods/p1/c1") {
			t.Errorf("%s: %s", controller, dir)
		}
	}
	if err := errors.Join(g.Remove(), g.Remove()); err != nil {
		t.Error(err)
	}

	parents := []string{root, root + "/pods", root + "/pods/p1"}
	if err := os.WriteFile(root+"/cgroup.controllers", []byte("cpu memory io\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range parents {
		if err := os.WriteFile(dir+"/cgroup.subtree_control", nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if g, err = createIn(root, "/pods/p1/c1", []string{"memory", "nonsense"}, true); err != nil || g.V2 != root+"/pods/p1/c1" {
		t.Errorf("%+v, %v", g, err)
	}
	for _, dir := range parents {
		if text, err := os.ReadFile(dir + "/cgroup.subtree_control"); string(text) != "+memory" || err != nil {
			t.Errorf("%s enables %q, %v", dir, text, err)
		}
	}
}
