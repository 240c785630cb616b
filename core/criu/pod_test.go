package criu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"

	"berth/core/criu/archive"
	"berth/core/tartest"
)

// A podFixture is a Checkpointer for two containers, whose runc keeps their states in files.
type podFixture struct {
	*fixture
	targets        []Container
	states, output string
	inspected      map[string]container.State // what Docker says
}

// newPodFixture returns a podFixture whose runc runs the script dump for checkpoints, with $id, $images and $work, and extra for each call, with $3.
func newPodFixture(t *testing.T, dump, extra string) *podFixture {
	t.Helper()
	f := &podFixture{fixture: newFixture(t, goodCRIU, ""), inspected: map[string]container.State{}}
	f.states, f.output = filepath.Join(f.dir, "states"), filepath.Join(f.dir, "output")
	for _, d := range []string{f.states, f.output} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"ping", "pong"} {
		target := f.target
		target.ID, target.Config.ID, target.Config.Name = "id-"+name, "id-"+name, name
		f.targets = append(f.targets, target)
		f.inspected[target.ID] = container.State{Running: true, Pid: os.Getpid()}
		f.setState(target.ID, "running")
	}
	f.program("runc", fmt.Sprintf(`states=%s
for id; do :; done
[ $3 = state ] || echo $3 $id: $(cat $states/*) >>%s
set_state() { echo $1 >$states/$id; }
%s
case $3 in
state) echo "{\"status\":\"$(cat $states/$id)\"}" ;;
pause) [ $(cat $states/$id) = running ] || { echo container not running; exit 1; }; set_state paused ;;
resume) [ $(cat $states/$id) = paused ] || { echo container not paused; exit 1; }; set_state running ;;
checkpoint) images=$6 work=$8; %s ;;
esac`, f.states, f.log, extra, dump))
	return f
}

func (f *podFixture) setState(id, state string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.states, id), []byte(state+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// script returns a program without its first line.
func (f *podFixture) script(name string) string {
	f.t.Helper()
	text, err := os.ReadFile(filepath.Join(f.programs, name))
	if err != nil {
		f.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\n")
	return rest
}

// requireStates fails the test unless the containers are in these states.
func (f *podFixture) requireStates(want string) {
	f.t.Helper()
	var got []string
	for _, target := range f.targets {
		text, err := os.ReadFile(filepath.Join(f.states, target.ID))
		if err != nil {
			f.t.Fatal(err)
		}
		got = append(got, strings.TrimSpace(string(text)))
	}
	if strings.Join(got, " ") != want {
		f.t.Errorf("the containers are %q, want %q", got, want)
	}
}

// requireFiles fails the test unless the files are in the output, and no checkpoint in progress.
func (f *podFixture) requireFiles(want ...string) {
	f.t.Helper()
	f.nothingLeft()
	entries, err := os.ReadDir(f.output)
	if err != nil {
		f.t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || info.Mode() != 0o600 {
			f.t.Errorf("%s: %v, %v, want mode 0600", e.Name(), info.Mode(), err)
		}
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		f.t.Errorf("files %q, want %q", got, want)
	}
}

func (f *podFixture) inspect(_ context.Context, id string) (container.InspectResponse, error) {
	state, ok := f.inspected[id]
	if !ok {
		return container.InspectResponse{}, errdefs.ErrNotFound
	}
	return container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{State: &state}}, nil
}

func (f *podFixture) take(ctx context.Context) (Manifest, error) {
	return f.CheckpointPod(ctx, f.targets, Manifest{Berth: "1.2.3", RuntimeHandler: "h", Pod: ManifestPod{Name: "web"}}, f.output, f.inspect)
}

func TestPodIsFrozenUntilAllContainersAreCaptured(t *testing.T) {
	f := newPodFixture(t, goodDump, "")
	if err := os.WriteFile(filepath.Join(f.target.Upper, "file"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	m, err := f.take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	calls, err := os.ReadFile(f.log)
	want := `pause id-ping: running running
pause id-pong: paused running
checkpoint id-ping: paused paused
checkpoint id-pong: paused paused
resume id-ping: paused paused
resume id-pong: running paused
`
	if d := cmp.Diff(want, string(calls)); err != nil || d != "" {
		t.Errorf("calls of the runtime, %v (-want +got):\n%s", err, d)
	}
	f.requireStates("running running")
	f.requireFiles("ping.tar", "pod.json", "pong.tar")
	text, err := os.ReadFile(filepath.Join(f.output, ManifestFile))
	var stored Manifest
	if err = errors.Join(err, json.Unmarshal(text, &stored)); err != nil || cmp.Diff(m, stored) != "" {
		t.Errorf("manifest: %v, %s", err, cmp.Diff(m, stored))
	}
	if m.Version != 1 || m.Berth != "1.2.3" || m.CRIU != "4.1.1" || m.Kernel == "" || m.RuntimeHandler != "h" || m.Pod.Name != "web" || m.CreatedAt.Before(begin.Add(-time.Second)) || len(m.Containers) != 2 {
		t.Errorf("manifest: %s", text)
	}
	for i, name := range []string{"ping", "pong"} {
		a, err := os.Open(filepath.Join(f.output, name+".tar"))
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		info, err := a.Stat()
		if c := m.Containers[i]; err != nil || c != (ManifestContainer{Name: name, ID: "id-" + name, Archive: name + ".tar", Bytes: info.Size()}) {
			t.Errorf("%v, %v", c, err)
		}
		got := tartest.Entries(t, a)
		if !strings.Contains(got["config.dump"], "id-"+name) || got["checkpoint/pages-1.img"] != "pages\n" || got["rootfs-diff.tar"] == "" {
			t.Errorf("%s: %q", name, slices.Sorted(maps.Keys(got)))
		}
	}
}

func TestFailedPodCheckpointResumesAllContainers(t *testing.T) {
	onPong := func(verb, script string) string {
		return fmt.Sprintf(`if [ $3 = %s ] && [ $id = id-pong ]; then %s; fi`, verb, script)
	}
	for name, c := range map[string]struct{ dump, extra, want string }{
		"pause":          {goodDump, onPong("pause", "echo no freezer; exit 1"), "freeze container id-pong: exit status 1: no freezer"},
		"pause, frozen":  {goodDump, onPong("pause", "set_state paused; echo too slow; exit 1"), "too slow"},
		"dump":           {`echo "Error (criu/x.c:1): no" >$work/dump.log; exit 1`, "", "container id-ping: CRIU cannot checkpoint the container: Error (criu/x.c:1): no"},
		"second dump":    {goodDump, onPong("checkpoint", "echo broken; exit 1"), "container id-pong: CRIU cannot checkpoint the container: broken"},
		"thawed by CRIU": {goodDump + "; set_state running", "", "not of one moment"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newPodFixture(t, c.dump, c.extra)
			if _, err := f.take(t.Context()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want FailedPrecondition with %q", err, c.want)
			}
			f.requireStates("running running")
			f.requireFiles()
		})
	}
	t.Run("changed files", func(t *testing.T) {
		f := newPodFixture(t, goodDump, "")
		f.targets[1].Upper = "/elsewhere"
		if _, err := f.take(t.Context()); err == nil || !strings.Contains(err.Error(), "container id-pong: changed files") {
			t.Errorf("%v", err)
		}
		f.requireStates("running running")
		f.requireFiles()
	})
	t.Run("archive", func(t *testing.T) {
		f := newPodFixture(t, goodDump, "")
		f.program("runc", strings.Replace(f.script("runc"), "case $3 in\n", "[ $3 != resume ] || mkdir -p "+filepath.Join(f.output, "pong.tar")+"\ncase $3 in\n", 1))
		if _, err := f.take(t.Context()); err == nil || !strings.Contains(err.Error(), "container id-pong: rename") {
			t.Errorf("%v", err)
		}
		f.requireStates("running running")
		if err := os.Remove(filepath.Join(f.output, "pong.tar")); err != nil {
			t.Fatal(err)
		}
		f.requireFiles()
	})
	t.Run("deadline", func(t *testing.T) {
		f := newPodFixture(t, goodDump, onPong("checkpoint", "sleep 600 & wait"))
		ctx, cancel := contextWithTimeout(t, 2*time.Second)
		defer cancel()
		if _, err := f.take(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want DeadlineExceeded", err)
		}
		f.requireStates("running running")
		f.requireFiles()
	})
}

// A lateContext ends once the manifest has been written.
type lateContext struct {
	context.Context
	manifest string
}

func (c lateContext) Err() error {
	if _, err := os.Stat(c.manifest); err == nil {
		return context.DeadlineExceeded
	}
	return c.Context.Err()
}

func TestPodCheckpointThatEndsAfterItsCallerLeavesNoFiles(t *testing.T) {
	f := newPodFixture(t, goodDump, "")
	if _, err := f.take(lateContext{t.Context(), filepath.Join(f.output, ManifestFile)}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want the error of the context", err)
	}
	f.requireStates("running running")
	f.requireFiles()
}

func TestPodCheckpointLeavesContainersPausedByOthers(t *testing.T) {
	f := newPodFixture(t, goodDump, "")
	f.setState("id-pong", "paused") // runc pause
	if _, err := f.take(t.Context()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `container id-pong is "paused" for its OCI runtime`) {
		t.Errorf("%v", err)
	}
	f.requireStates("running paused")
	f.requireFiles()
	// docker pause in the last moment.
	f = newPodFixture(t, goodDump, `[ $3 != pause ] || [ $id != id-pong ] || set_state paused`)
	f.inspected["id-pong"] = container.State{Running: true, Paused: true, Pid: os.Getpid()}
	if _, err := f.take(t.Context()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "freeze container id-pong") {
		t.Errorf("%v", err)
	}
	f.requireStates("running paused")
	f.requireFiles()
}

func TestPodCheckpointThatCannotBeginChangesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		change func(f *podFixture)
		is     func(error) bool
		want   string
	}{
		"no CRIU":        {func(f *podFixture) { f.program("criu", "exit 1") }, errdefs.IsFailedPrecondition, "install the package criu"},
		"same name":      {func(f *podFixture) { f.targets[1].Config.Name = "ping" }, errdefs.IsFailedPrecondition, "must be unique"},
		"path as a name": {func(f *podFixture) { f.targets[1].Config.Name = "../x" }, errdefs.IsFailedPrecondition, "container name"},
		"no directory":   {func(f *podFixture) { f.output += "/none" }, errdefs.IsInvalidArgument, "the directory must exist"},
	} {
		f := newPodFixture(t, goodDump, "")
		output := f.output
		c.change(f)
		if _, err := f.take(t.Context()); !c.is(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if calls, err := os.ReadFile(f.log); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: calls of the runtime: %s, %v", name, calls, err)
		}
		f.output = output
		f.requireFiles()
	}
}

// A resume that fails is repeated by GC, with the record of the checkpoint.
func TestGCResumesPodsThatCouldNotBeResumed(t *testing.T) {
	f := newPodFixture(t, goodDump, `[ $3 != resume ] || [ ! -e $states/../stuck ] || { echo stuck; exit 1; }`)
	stuck := filepath.Join(f.dir, "stuck")
	if err := os.WriteFile(stuck, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.take(t.Context()); err == nil || !strings.Contains(err.Error(), "stuck") {
		t.Errorf("%v", err)
	}
	f.requireStates("paused paused")
	if err := f.GC(t.Context(), f.inspect); err == nil {
		t.Error("GC has succeeded")
	}
	if err := errors.Join(os.Remove(stuck), f.GC(t.Context(), f.inspect)); err != nil {
		t.Fatal(err)
	}
	f.requireStates("running running")
	f.requireFiles()
}

func TestGCUndoesThePodCheckpointOfAnotherBerthd(t *testing.T) {
	for name, c := range map[string]struct {
		change     func(f *podFixture)
		wantStates string
		wantFiles  []string
	}{
		"frozen, half written": {func(*podFixture) {}, "running running", nil},
		"one goes on already":  {func(f *podFixture) { f.setState("id-ping", "running") }, "running running", nil},
		"one is removed":       {func(f *podFixture) { delete(f.inspected, "id-ping") }, "paused running", nil},
		"one is paused with Docker": {func(f *podFixture) {
			f.inspected["id-ping"] = container.State{Running: true, Paused: true, Pid: os.Getpid()}
		}, "paused running", nil},
		"the directory is another one": {func(f *podFixture) {
			if err := errors.Join(os.Rename(f.output, f.output+".old"), os.Mkdir(f.output, 0o700), os.WriteFile(filepath.Join(f.output, "ping.tar"), nil, 0o600)); err != nil {
				f.t.Fatal(err)
			}
		}, "running running", []string{"ping.tar"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newPodFixture(t, goodDump, "")
			out, err := archive.OpenDir(f.output)
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			p := &podJob{out: out}
			if _, err := f.preparePod(t.Context(), p, f.targets); err != nil {
				t.Fatal(err)
			}
			if err := f.beginPod(p); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"ping.tar", out.File("pong.tar").TempPath()} {
				if err := os.WriteFile(filepath.Join(f.output, filepath.Base(name)), []byte("half"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			f.setState("id-ping", "paused")
			f.setState("id-pong", "paused")
			if err := f.GC(t.Context(), nil); err != nil { // its own are in progress
				t.Fatal(err)
			}
			c.change(f)
			clear(f.running)
			if err := f.GC(t.Context(), f.inspect); err != nil {
				t.Fatal(err)
			}
			f.requireStates(c.wantStates)
			f.requireFiles(c.wantFiles...)
		})
	}
}
