package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzOf parses /proc/PID/cgroup, whose content a process that may create cgroups and namespaces can influence.
func FuzzOf(f *testing.F) {
	id := strings.Repeat("a1", 32)
	for _, text := range []string{
		"0::/kubepods.slice/docker-" + id + ".scope/init.scope\n",
		"3:memory:/kubepods/" + id + "\n2:cpu,cpuacct:/kubepods/" + id + "/x\n1:name=systemd:/\n",
		"0::/../../" + id + "\n", "4:memory:/" + id + "/../../../etc\n", "4:../..:/" + id + "\n", "4:name=../../x:/" + id + "\n", "::\n", "a:b", "",
	} {
		f.Add(text, id, true)
		f.Add(text, id, false)
	}
	f.Fuzz(func(t *testing.T, text, id string, v2 bool) {
		g, ok := parse(text, v2).ofContainer(id)
		if !ok {
			return
		}
		dirs := []string{g.V2}
		for _, dir := range g.V1 {
			dirs = append(dirs, dir)
		}
		for _, dir := range dirs {
			if dir == "" {
				continue
			}
			if filepath.Clean(dir) != dir || !strings.HasPrefix(dir, Root+"/") || !strings.Contains(filepath.Base(dir), id) {
				t.Errorf("%q is the cgroup of %q by %q", dir, id, text)
			}
		}
	})
}

// FuzzFiles reads cgroup files with any content.
func FuzzFiles(f *testing.F) {
	for _, text := range []string{
		"max\n", "18446744073709551615\n", "-1\n", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
		"oom 0\noom_kill 3\n", "oom_kill\n", "oom_kill -3\n", "8:0 rbytes=1 wbytes=\n", "\n\n", "", "some", "some avg10=x\n", "anon 12 13\n",
	} {
		f.Add([]byte(text))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(filepath.Join(dir, "file"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = ReadUint(dir, "file")
		found, err := ReadKeyed(dir, "file", "oom", "oom_kill", "anon")
		if err == nil && len(found) > 3 {
			t.Errorf("%v", found)
		}
		_, _, _ = ReadPressure(dir, "file")
	})
}
