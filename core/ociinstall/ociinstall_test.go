package ociinstall

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/system"
	"golang.org/x/sys/unix"

	"berth/core/dockerconfig"
	"berth/core/engine"
	"berth/core/engine/enginetest"
	"berth/core/hostprobe"
	"berth/core/names"
	"berth/core/ociedit"
)

// A fakeNode is a node with a fake Docker Engine, whose dockerd reads a file on SIGHUP.
type fakeNode struct {
	t        *testing.T
	docker   *enginetest.Engine
	cfg      Config
	flags    []string // of dockerd
	onHangup func()   // in place of reading the file
	hangups  int
	ended    bool
}

func newNode(t *testing.T, text string, opts ...enginetest.Option) *fakeNode {
	t.Helper()
	dir := t.TempDir()
	n := &fakeNode{t: t, docker: enginetest.New(t, opts...)}
	n.cfg = Config{
		Docker: engine.Config{Host: n.docker.Host}, ConfigFile: filepath.Join(dir, "etc", "daemon.json"), Program: filepath.Join(dir, "package", programName),
		Dir: filepath.Join(dir, "berth", "oci"), Instructions: filepath.Join(dir, "run", "oci"), Version: "1.1.0-2-gabc", reloadTimeout: enginetest.WaitTimeout,
	}
	n.cfg.find = func(string) (dockerd, error) {
		return dockerd{hostprobe.Process{PID: 4711, Args: append([]string{"--config-file", n.cfg.ConfigFile}, n.flags...)}, n}, nil
	}
	n.write(n.cfg.Program, "the program", 0o755)
	n.write(n.cfg.ConfigFile, text, 0o644)
	n.read()
	n.docker.AddImage(enginetest.Image{}, "image:1")
	return n
}

func (n *fakeNode) write(path, text string, mode os.FileMode) {
	n.t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
		n.t.Fatal(err)
	}
}

// Signal is that of the process of dockerd.
func (n *fakeNode) Signal(s os.Signal) error {
	switch {
	case n.ended:
		return os.ErrProcessDone
	case s == unix.SIGHUP:
		n.hangups++
		if n.onHangup != nil {
			n.onHangup()
		} else {
			n.read()
		}
	}
	return nil
}

// read has the Engine read the file as dockerd does: without the key of the runtimes it keeps those that it has.
func (n *fakeNode) read() {
	n.t.Helper()
	text, err := os.ReadFile(n.cfg.ConfigFile)
	if err != nil {
		n.t.Fatal(err)
	}
	var file struct {
		Runtimes map[string]system.Runtime
		Default  string `json:"default-runtime"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return // dockerd logs that
	}
	n.docker.SetInfo(func(i *system.Info) {
		if file.Default != "" {
			i.DefaultRuntime = file.Default
		}
		if file.Runtimes == nil {
			return
		}
		i.Runtimes = map[string]system.RuntimeWithStatus{"runc": {Runtime: system.Runtime{Path: "runc"}}}
		for name, r := range file.Runtimes {
			i.Runtimes[name] = system.RuntimeWithStatus{Runtime: r}
		}
	})
}

// create creates a container with the runtime.
func (n *fakeNode) create(name, runtime string) string {
	n.t.Helper()
	created, err := n.docker.Client(n.t).ContainerCreate(n.t.Context(), &container.Config{Image: "image:1"}, &container.HostConfig{Runtime: runtime}, nil, nil, name)
	if err != nil {
		n.t.Fatal(err)
	}
	return created.ID
}

func (n *fakeNode) run(change func(out *strings.Builder) error) (string, error) {
	n.t.Helper()
	var out strings.Builder
	err := change(&out)
	if err != nil && strings.Contains(err.Error(), "\n") {
		n.t.Errorf("the error has several lines: %v", err)
	}
	return out.String(), err
}

func (n *fakeNode) install(dryRun bool) (string, error) {
	n.t.Helper()
	return n.run(func(out *strings.Builder) error { return Install(n.t.Context(), n.cfg, dryRun, out) })
}

func (n *fakeNode) remove(dryRun bool) (string, error) {
	n.t.Helper()
	return n.run(func(out *strings.Builder) error { return Remove(n.t.Context(), n.cfg, dryRun, out) })
}

func (n *fakeNode) mustInstall() string {
	n.t.Helper()
	out, err := n.install(false)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// text returns the content of the file.
func (n *fakeNode) text() string {
	n.t.Helper()
	text, err := os.ReadFile(n.cfg.ConfigFile)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(text)
}

// installed lists the directory of the program.
func (n *fakeNode) installed() (names []string) {
	n.t.Helper()
	entries, err := os.ReadDir(n.cfg.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func wantText(t *testing.T, what, got string, want ...string) {
	t.Helper()
	for _, part := range want {
		if !strings.Contains(got, part) {
			t.Errorf("%s: got %q, want it to have %q", what, got, part)
		}
	}
}

const withCrun = `{
  "debug": true,
  "runtimes": {
    "crun": {"path": "/bin/sh", "runtimeArgs": ["--x=y"]},
    "nvidia": {"path": "sh"},
    "odd": {"path": "sh", "runtimeArgs": ["--x", "y"]},
    "kata": {"runtimeType": "io.containerd.kata.v2"}
  },
  "log-driver": "local"
}
`

func TestInstallAndRemove(t *testing.T) {
	n := newNode(t, withCrun)
	out, err := n.install(true)
	if err != nil || n.text() != withCrun || n.hangups != 0 || len(n.installed()) != 0 {
		t.Fatalf("a dry run: %v, %d SIGHUPs, %s", err, n.hangups, n.text())
	}
	wantText(t, "a dry run", out, "would copy", "--- "+n.cfg.ConfigFile, `+    "berth": {`, "would send SIGHUP to dockerd, process 4711\n")

	out = n.mustInstall()
	wantText(t, "install", out, "installed berth-oci in "+n.cfg.Dir+", version 1.1.0-2-gabc\n", "changed the runtimes in", "linked the program in "+n.cfg.Dir+" for ", "Docker knows berth, berth-crun, berth-nvidia\n")
	doc, err := dockerconfig.Parse([]byte(n.text()))
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(n.cfg.Dir, programName)
	for _, want := range []dockerconfig.Runtime{
		{Name: "berth", Path: program, Args: []string{"--berth-instructions=" + n.cfg.Instructions}},
		{Name: "berth-crun", Path: program, Args: []string{"--berth-instructions=" + n.cfg.Instructions, "--berth-runtime=/bin/sh", "--x=y"}},
		{Name: "berth-nvidia", Path: program + "-sh", Args: []string{"--berth-instructions=" + n.cfg.Instructions}},
	} {
		if got, _ := doc.Runtime(want.Name); !got.Equal(want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	for _, name := range []string{"berth-kata", "berth-odd"} {
		if _, ok := doc.Runtime(name); ok {
			t.Errorf("there is %s, which the program cannot call", name)
		}
	}
	if target, err := filepath.EvalSymlinks(program + "-sh"); err != nil || filepath.Dir(target) != n.cfg.Dir || !strings.HasPrefix(filepath.Base(target), versionPrefix) {
		t.Errorf("the link is to %s, %v", target, err)
	}
	if info, err := os.Stat(n.cfg.Instructions); err != nil || info.Mode() != os.ModeDir|0o700 {
		t.Errorf("instructions: %v, %v", info, err)
	}

	before, files := n.text(), n.installed()
	if out := n.mustInstall(); out != upToDate || n.text() != before || !slices.Equal(n.installed(), files) || n.hangups != 1 {
		t.Errorf("a second time: %s, %d SIGHUPs, %v", out, n.hangups, n.installed())
	}
	if out, err := n.install(true); out != upToDate || err != nil {
		t.Errorf("a dry run of it: %s, %v", out, err)
	}

	out, err = n.remove(true)
	if err != nil || n.text() != before {
		t.Errorf("a dry run of remove: %v", err)
	}
	wantText(t, "a dry run of remove", out, `-    "berth": {`, "would send SIGHUP", "would remove "+program)
	out, err = n.remove(false)
	if err != nil {
		t.Fatal(err)
	}
	wantText(t, "remove", out, "removed berth, berth-crun, berth-nvidia from Docker and from", "removed "+program)
	if n.text() != withCrun || len(n.installed()) != 0 {
		t.Errorf("after remove: %s, %v", n.text(), n.installed())
	}
	for _, path := range []string{filepath.Dir(n.cfg.Dir), n.cfg.Instructions} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if out, err := n.remove(false); out != nothingInstalled || err != nil || n.hangups != 2 {
		t.Errorf("a second time: %s, %v, %d SIGHUPs", out, err, n.hangups)
	}
}

// Docker keeps the runtimes that it has if the file names none.
func TestRemoveOfTheOnlyRuntimes(t *testing.T) {
	const text = "{\n  \"debug\": true\n}\n"
	n := newNode(t, text)
	n.mustInstall()
	if _, err := n.remove(false); err != nil || n.text() != text {
		t.Errorf("remove: %v, %s", err, n.text())
	}
	n.mustInstall()
	n.write(n.cfg.ConfigFile, text, 0o644) // by the operator
	if out, err := n.remove(false); err != nil || n.text() != text {
		t.Errorf("of what only Docker has: %s, %v, %s", out, err, n.text())
	}
	if r := Inspect(t.Context(), n.cfg); r.Installed() {
		t.Errorf("after remove: %+v", r)
	}
}

func TestUpgradeReplacesTheProgramOnly(t *testing.T) {
	n := newNode(t, withCrun)
	n.mustInstall()
	n.create("k8s_app_web-0_default_uid_0", "berth")
	before, files := n.text(), n.installed()
	n.write(n.cfg.Program, "a newer program", 0o755)
	n.cfg.Version = "1.2.0"
	r := Inspect(t.Context(), n.cfg)
	if len(r.Problems) != 1 || r.Problems[0].Fix != installFix || r.Err() != nil {
		t.Errorf("before: %+v", r.Problems)
	}
	if out := n.mustInstall(); out != "installed berth-oci in "+n.cfg.Dir+", version 1.2.0\n" || n.text() != before || n.hangups != 1 {
		t.Errorf("got %s, %d SIGHUPs", out, n.hangups)
	}
	if got := n.installed(); len(got) != 3 || slices.Equal(got, files) {
		t.Errorf("there are %v, before %v", got, files)
	}
	if text, err := os.ReadFile(filepath.Join(n.cfg.Dir, programName)); err != nil || string(text) != "a newer program" {
		t.Errorf("the program is %q, %v", text, err)
	}
	if r := Inspect(t.Context(), n.cfg); len(r.Problems) != 0 || r.Program.Version != "1.2.0" {
		t.Errorf("after: %+v", r)
	}
}

func TestInstallElsewhereRemovesTheFormerProgram(t *testing.T) {
	n := newNode(t, withCrun)
	n.mustInstall()
	former := n.cfg.Dir
	n.cfg.Dir = filepath.Join(filepath.Dir(n.cfg.ConfigFile), "oci")
	n.mustInstall()
	if _, err := os.Stat(former); !os.IsNotExist(err) || len(n.installed()) != 3 {
		t.Errorf("the former directory: %v; the new one has %v", err, n.installed())
	}
	wantText(t, "the file", n.text(), filepath.Join(n.cfg.Dir, programName))
}

func TestInstallFollowsTheRuntimesInTheFile(t *testing.T) {
	n := newNode(t, withCrun)
	n.mustInstall()
	n.write(n.cfg.ConfigFile, strings.Replace(n.text(), `"/bin/sh", "runtimeArgs": ["--x=y"]`, `"/bin/cat"`, 1), 0o644)
	n.mustInstall()
	doc, err := dockerconfig.Parse([]byte(n.text()))
	if err != nil {
		t.Fatal(err)
	}
	if r, _ := doc.Runtime("berth-crun"); belowOf(r) != "/bin/cat" {
		t.Errorf("it is %+v", r)
	}
	id := n.create("k8s_app_web-0_default_uid_0", "berth-crun")
	n.write(n.cfg.ConfigFile, strings.Replace(n.text(), `"/bin/cat"`, `"/bin/sh"`, 1), 0o644)
	_, err = n.install(false)
	if err == nil {
		t.Fatal("a runtime that a container has was changed")
	}
	wantText(t, "in use", err.Error(), `the runtime "berth-crun" must change from`, "default/web-0")
	without, err := doc.With(nil, []string{"crun"})
	if err != nil {
		t.Fatal(err)
	}
	n.write(n.cfg.ConfigFile, string(without.Text()), 0o644)
	n.mustInstall()
	wantText(t, "kept while in use", n.text(), "berth-crun")
	if err := n.docker.Client(t).ContainerRemove(t.Context(), id, container.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	n.mustInstall()
	if strings.Contains(n.text(), "berth-crun") {
		t.Errorf("still there: %s", n.text())
	}
}

func TestInstallRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		text    string
		opts    []enginetest.Option
		prepare func(n *fakeNode)
		want    string
	}{
		"--add-runtime":     {text: "{}", prepare: func(n *fakeNode) { n.flags = []string{"--add-runtime", "clamp=/c"} }, want: `dockerd is started with --add-runtime clamp=/c: it would`},
		"--default-runtime": {text: "{}", prepare: func(n *fakeNode) { n.flags = []string{"--default-runtime=clamp"} }, want: `dockerd is started with --default-runtime clamp: Docker 20.10 can crash`},
		"another file":      {text: "{}", prepare: func(n *fakeNode) { n.flags = []string{"--config-file=/etc/other.json"} }, want: "it does not read"},
		"comment":           {text: "{\n// x\n}", want: "is not changed: line 2, column 1: comments are not allowed in JSON"},
		"default runtime that only Docker has": {text: "{}", prepare: func(n *fakeNode) {
			n.docker.SetInfo(func(i *system.Info) { i.DefaultRuntime = "clamp" })
		}, want: `the default runtime "clamp" of Docker 20.10.24 is not among the runtimes in`},
		"default runtime of the file": {text: "{}", prepare: func(n *fakeNode) {
			n.write(n.cfg.ConfigFile, `{"default-runtime": "nvidia"}`, 0o644)
		}, want: `the default runtime "nvidia" of`},
		"default runtime that 20.10 forgets": {text: "{}", prepare: func(n *fakeNode) {
			n.docker.SetInfo(func(i *system.Info) { i.DefaultRuntime = stockShim })
		}, want: `the default runtime "io.containerd.runc.v2" of`},
		"containers with a runtime that 20.10 forgets": {text: "{}", prepare: func(n *fakeNode) { n.create("mine", stockShim) }, want: "these containers use it: mine"},
		"the name is taken":                            {text: `{"runtimes": {"berth": {"path": "/mine"}}}`, want: `has a runtime "berth" that is not berth's`},
		"a path with a space":                          {text: `{"runtimes": {"x": {"path": "/my crun"}}}`, want: `the runtime "x": Docker cannot pass "--berth-runtime=/my crun"`},
		"no program":                                   {text: "{}", prepare: func(n *fakeNode) { n.cfg.Program = "/none" }, want: "/none is missing: it comes with the package"},
		"not executable":                               {text: "{}", prepare: func(n *fakeNode) { n.write(n.cfg.Program, "x", 0o644) }, want: "is not executable"},
		"writable by others":                           {text: "{}", prepare: func(n *fakeNode) { n.write(n.cfg.Program, "x", 0o777) }, want: "can be changed by others than root"},
		"a directory that others can write": {text: "{}", prepare: func(n *fakeNode) {
			n.write(filepath.Join(filepath.Dir(n.cfg.Dir), "x"), "", 0o644)
			if err := os.Chmod(filepath.Dir(n.cfg.Dir), 0o777); err != nil {
				n.t.Fatal(err)
			}
		}, want: "can be changed by others than root"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, c.text, c.opts...)
			if c.prepare != nil {
				c.prepare(n)
			}
			before := n.text()
			out, err := n.install(false)
			if err == nil {
				t.Fatalf("it was installed: %s", out)
			}
			wantText(t, "error", err.Error(), c.want)
			if n.text() != before || n.hangups != 0 || len(n.installed()) != 0 {
				t.Errorf("something was changed: %s, %d SIGHUPs, %v", n.text(), n.hangups, n.installed())
			}
		})
	}
}

// Since Docker 23 the name of a shim is a runtime, also as the default.
func TestInstallWithAShimAsDefault(t *testing.T) {
	n := newNode(t, `{"default-runtime": "io.containerd.runc.v2"}`, enginetest.API("1.42"))
	n.create("mine", stockShim)
	n.mustInstall()
}

func TestFailedReloadLeavesEverythingAsBefore(t *testing.T) {
	for name, c := range map[string]struct {
		onHangup func(n *fakeNode)
		want     string
	}{
		"Docker ignores the file": {func(*fakeNode) {}, "docker has not read its configuration within 500ms after SIGHUP: its log says why (journalctl -u docker.service); "},
		"dockerd ends":            {func(n *fakeNode) { n.ended = true }, "dockerd, process 4711, has ended after SIGHUP: see journalctl -u docker.service; "},
	} {
		n := newNode(t, withCrun)
		n.onHangup = func() { c.onHangup(n) }
		n.cfg.reloadTimeout = 500 * time.Millisecond
		out, err := n.install(false)
		if err == nil {
			t.Fatalf("%s: it was installed", name)
		}
		wantText(t, name, err.Error(), c.want, n.cfg.ConfigFile+" is as before")
		if n.text() != withCrun || len(n.installed()) != 0 || out != "" {
			t.Errorf("%s: %s, %v, %s", name, n.text(), n.installed(), out)
		}
		n.onHangup, n.ended, n.cfg.reloadTimeout = nil, false, enginetest.WaitTimeout
		n.mustInstall()
		before, files := n.text(), n.installed()
		n.onHangup, n.cfg.reloadTimeout = func() { c.onHangup(n) }, 500*time.Millisecond
		if _, err := n.remove(false); err == nil || n.text() != before || !slices.Equal(files, n.installed()) {
			t.Errorf("%s: remove: %v, %s, %v", name, err, n.text(), n.installed())
		}
	}
}

func TestRemoveRefusesWhileContainersNeedTheRuntime(t *testing.T) {
	n := newNode(t, withCrun)
	n.mustInstall()
	before := n.text()
	ids := []string{n.create("k8s_POD_web-0_default_uid_0", "berth"), n.create("k8s_app_web-0_default_uid_0", "berth"), n.create("mine", "berth-crun")}
	_, err := n.remove(false)
	if err == nil || err.Error() != "3 containers need the runtime, running or not: remove these pods first: default/web-0, mine" || n.text() != before || n.hangups != 1 {
		t.Errorf("got %v", err)
	}
	r := Inspect(t.Context(), n.cfg)
	if len(r.Problems) != 0 || len(r.Runtimes) != 3 || len(r.Runtimes[0].Users) != 2 || r.Runtimes[0].Users[0].Pod != "default/web-0" {
		t.Errorf("status: %+v", r)
	}
	for _, id := range ids {
		if err := n.docker.Client(t).ContainerRemove(t.Context(), id, container.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	// A pod is created after the check.
	n.onHangup = func() {
		n.onHangup = nil
		n.create("k8s_POD_late_default_uid_0", "berth")
		n.read()
	}
	_, err = n.remove(false)
	if err == nil {
		t.Fatal("it was removed")
	}
	wantText(t, "late", err.Error(), "1 container needs the runtime, running or not: remove these pods first: default/late; ", "is as before")
	if r := Inspect(t.Context(), n.cfg); n.text() != before || len(r.Problems) != 0 || n.hangups != 3 {
		t.Errorf("after it: %+v, %s, %d SIGHUPs", r.Problems, n.text(), n.hangups)
	}
}

func TestReportNamesWhatIsWrong(t *testing.T) {
	link := func(n *fakeNode) string { return filepath.Join(n.cfg.Dir, programName) }
	version := func(n *fakeNode) string {
		target, err := os.Readlink(link(n))
		if err != nil {
			n.t.Fatal(err)
		}
		return filepath.Join(n.cfg.Dir, target)
	}
	must := func(n *fakeNode, err error) {
		n.t.Helper()
		if err != nil {
			n.t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		change func(n *fakeNode)
		want   []string
		severe bool
	}{
		"nothing":        {func(*fakeNode) {}, nil, false},
		"no program":     {func(n *fakeNode) { must(n, os.Remove(link(n))) }, []string{"is missing, and Docker is to call it: pods that have it cannot be stopped properly: default/web-0"}, true},
		"not executable": {func(n *fakeNode) { must(n, os.Chmod(version(n), 0o644)) }, []string{"is not executable"}, true},
		"writable":       {func(n *fakeNode) { must(n, os.Chmod(version(n), 0o777)) }, []string{"can be changed by others than root (mode 0777)"}, true},
		"damaged":        {func(n *fakeNode) { n.write(version(n), "half", 0o755) }, []string{"is damaged"}, true},
		"no version":     {func(n *fakeNode) { must(n, os.Remove(link(n))); n.write(link(n), "x", 0o755) }, []string{"is not a link to a version"}, true},
		"link to elsewhere": {func(n *fakeNode) {
			must(n, os.Remove(link(n)))
			must(n, os.Symlink("/bin/true", link(n)))
		}, []string{`is a link to "/bin/true"`}, true},
		"another version": {func(n *fakeNode) { n.write(n.cfg.Program, "newer", 0o755) }, []string{"has version 1.1.0-2-gabc, which is not the one of the package"}, false},
		"not reloaded": {func(n *fakeNode) {
			n.docker.SetInfo(func(i *system.Info) {
				i.Runtimes["berth"] = system.RuntimeWithStatus{Runtime: system.Runtime{Path: "/old"}}
			})
		}, []string{"the runtime berth is in " + "", "but Docker does not have it so; containers have it: default/web-0"}, true},
		"gone from Docker": {func(n *fakeNode) {
			n.write(n.cfg.ConfigFile, `{"runtimes": {}}`, 0o644)
			n.read()
		}, []string{"containers have the runtime berth, which Docker does not have: default/web-0"}, true},
		"gone from the file": {func(n *fakeNode) { n.write(n.cfg.ConfigFile, `{}`, 0o644) }, []string{"Docker has the runtime berth, but", "it is gone after the next start of Docker; containers have it"}, false},
		"no link": {func(n *fakeNode) {
			n.write(n.cfg.ConfigFile, `{"runtimes": {"sh": {"path": "sh"}}}`, 0o644)
			n.mustInstall()
			must(n, os.Remove(link(n)+"-sh"))
		}, []string{"/berth-oci-sh, which is the runtime berth-sh, is missing"}, true},
		"flag":         {func(n *fakeNode) { n.flags = []string{"--add-runtime", "x=/x"} }, []string{"dockerd is started with --add-runtime x=/x"}, true},
		"instructions": {func(n *fakeNode) { must(n, os.Chmod(n.cfg.Instructions, 0o755)) }, []string{"must be a directory that only root can read"}, true},
		"broken file":  {func(n *fakeNode) { n.write(n.cfg.ConfigFile, `{`, 0o644) }, []string{"unexpected end of JSON input"}, true},
		"another runtime": {func(n *fakeNode) {
			n.write(n.cfg.ConfigFile, strings.Replace(n.text(), `"debug": true`, `"debug": true`, 1), 0o644)
			doc, err := dockerconfig.Parse([]byte(n.text()))
			must(n, err)
			doc, err = doc.With([]dockerconfig.Runtime{{Name: "new", Path: "/bin/sh"}}, nil)
			must(n, err)
			n.write(n.cfg.ConfigFile, string(doc.Text()), 0o644)
		}, []string{"does not have, or not as they should be: berth-new"}, false},
		"no Docker": {func(n *fakeNode) { n.docker.Stop() }, []string{"docker cannot be asked for its runtimes"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, `{"debug": true}`)
			n.mustInstall()
			n.create("k8s_app_web-0_default_uid_0", "berth")
			c.change(n)
			r := Inspect(t.Context(), n.cfg)
			var messages []string
			for _, p := range r.Problems {
				messages = append(messages, p.Message)
				if p.Fix == "" {
					t.Errorf("%s: nothing to do about it", p.Message)
				}
			}
			text := strings.Join(messages, "\n")
			wantText(t, "problems", text, c.want...)
			if c.want == nil && text != "" || (r.Err() != nil) != c.severe || len(r.Problems) > 2 {
				t.Errorf("got %s, error %v", text, r.Err())
			}
			var table strings.Builder
			if err := r.WriteTable(&table); err != nil || c.want != nil && !strings.Contains(table.String(), messages[0]+" -> ") {
				t.Errorf("%v, %s", err, table.String())
			}
		})
	}
}

func TestRuntimeBelowThatIsMissing(t *testing.T) {
	n := newNode(t, `{"runtimes": {"crun": {"path": "/none/crun"}}}`)
	n.mustInstall()
	r := Inspect(t.Context(), n.cfg)
	if len(r.Problems) != 1 || !strings.HasPrefix(r.Problems[0].Message, "/none/crun, which the runtime berth-crun calls, is not installed") {
		t.Errorf("got %+v", r.Problems)
	}
	var table, asJSON strings.Builder
	if err := errors.Join(r.WriteTable(&table), r.WriteJSON(&asJSON)); err != nil {
		t.Fatal(err)
	}
	wantText(t, "table", table.String(), "RUNTIME     CALLS       DAEMON.JSON  DOCKER  CONTAINERS  PODS\n", "berth       runc        yes          yes     0           -\n", "fail  /none/crun")
	wantText(t, "JSON", asJSON.String(), `"name": "berth-crun",`, `"registered": true,`, `"severe": true,`)
}

func TestNotInstalled(t *testing.T) {
	n := newNode(t, "{}")
	r := Inspect(t.Context(), n.cfg)
	var table strings.Builder
	if err := r.WriteTable(&table); err != nil || table.String() != "not installed; to install it: berthd runtime install\n" || r.Err() != nil {
		t.Errorf("got %v, %s", err, table.String())
	}
}

func TestDefaultPathsNeedNoArguments(t *testing.T) {
	c := Config{Dir: DefaultDir, Instructions: names.DefaultInstructionsDir}
	for _, below := range []dockerconfig.Runtime{
		{Name: "runc", Path: "runc"}, {Name: "nvidia", Path: "nvidia-container-runtime"}, {Name: "crun", Path: "/usr/bin/crun"},
	} {
		r := c.entry(below)
		if (len(r.Args) > 0) != strings.HasPrefix(below.Path, "/") || belowOf(r) != below.Path || !isOurs(r) {
			t.Errorf("for %+v it is %+v", below, r)
		}
	}
}

// berth-oci and berthd agree on the directory of instructions for which a runtime needs no argument.
func TestProgramHasTheDefaultDirectory(t *testing.T) {
	t.Parallel()
	if ociedit.DefaultDir != names.DefaultInstructionsDir {
		t.Errorf("berth-oci reads %s, a runtime without arguments is taken to read %s", ociedit.DefaultDir, names.DefaultInstructionsDir)
	}
}
