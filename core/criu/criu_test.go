package criu

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"berth/core/bundle"
	"berth/core/criu/archive"
	"berth/core/tartest"
)

const spec = `{"ociVersion":"1.0.2","unknown":1,"annotations":{"own":"1"},"mounts":[
	{"destination":"/proc","type":"proc","source":"proc"},{"destination":"/data","type":"bind","source":"/node/secret"}]}`

// A fixture is a Checkpointer with programs in place of runc and criu, and a writable layer.
type fixture struct {
	*Checkpointer
	t             *testing.T
	dir           string
	target        Container
	location      string
	programs, log string
}

// newFixture returns a fixture whose runc runs the script dump for checkpoints. $images and $work are its directories.
func newFixture(t *testing.T, criu, dump string) *fixture {
	t.Helper()
	dir := t.TempDir()
	f := &fixture{t: t, dir: dir, programs: filepath.Join(dir, "bin"), log: filepath.Join(dir, "calls"), location: filepath.Join(dir, "out", "c.tar")}
	for _, d := range []string{"bin", "out", "layer"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	f.program("criu", criu)
	f.program("runc", `echo "$3" >>`+f.log+`
case $3 in
state) echo '{"status":"paused"}' ;;
checkpoint) images=$6 work=$8; `+dump+` ;;
esac`)
	t.Setenv("PATH", f.programs+":"+os.Getenv("PATH"))
	f.Checkpointer = New(filepath.Join(dir, "checkpoints"), slog.New(slog.DiscardHandler))
	// The PATH of a process is that of its start.
	f.runtimeOf = func(int, string) (bundle.Runtime, error) {
		return bundle.Runtime{Shim: os.Getpid(), Program: filepath.Join(f.programs, "runc"), Root: "/run/runc/moby"}, nil
	}
	f.specOf = func(int, string) (json.RawMessage, error) { return json.RawMessage(spec), nil }
	f.hostOf = func(pid int) host { return host{pid, f.programs + ":" + defaultPath} }
	f.target = Container{
		ID: "c", PID: os.Getpid(), Upper: filepath.Join(dir, "layer"), Roots: []string{dir},
		Config: metadata.ContainerConfig{ID: "c", Name: "web"}, Status: map[string]string{"id": "c"}, Annotations: map[string]string{"added": "2"},
	}
	return f
}

func (f *fixture) program(name, script string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.programs, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		f.t.Fatal(err)
	}
}

// nothingLeft fails the test if there is anything but the given files beside the archive, or a checkpoint's directory.
func (f *fixture) nothingLeft(want ...string) {
	f.t.Helper()
	var found []string
	for _, dir := range []string{"out", "checkpoints"} {
		entries, err := os.ReadDir(filepath.Join(f.dir, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.t.Fatal(err)
		}
		for _, e := range entries {
			found = append(found, e.Name())
		}
	}
	if !slices.Equal(found, want) {
		f.t.Errorf("left: %q, want %q", found, want)
	}
}

const (
	goodCRIU = `case $1 in --version) echo Version: 4.1.1 ;; esac`
	goodDump = `echo pages >$images/pages-1.img; echo log >$work/dump.log; echo stats >$work/stats-dump`
)

func TestCheckpointWritesTheArchive(t *testing.T) {
	f := newFixture(t, goodCRIU, goodDump)
	layer := f.target.Upper
	for name, text := range map[string]string{"a/file": "text", "data": "mount point"} {
		path := filepath.Join(layer, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o750), os.WriteFile(path, []byte(text), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(os.Link(filepath.Join(layer, "a/file"), filepath.Join(layer, "b")), os.Symlink("/etc/shadow", filepath.Join(layer, "l")))
	if err != nil {
		t.Fatal(err)
	}
	wantDeleted := ""
	if err := unix.Mknod(filepath.Join(layer, "gone"), unix.S_IFCHR, 0); err == nil { // needs CAP_MKNOD
		wantDeleted = `["/gone"]`
	}
	if _, err := f.Checkpoint(t.Context(), f.target, f.location); err != nil {
		t.Fatal(err)
	}
	f.nothingLeft("c.tar")
	info, err := os.Stat(f.location)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("archive: %v, %v; want mode 0600", info, err)
	}
	archive, err := os.Open(f.location)
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	got := tartest.Entries(t, archive)
	for name, want := range map[string]string{"checkpoint/pages-1.img": "pages\n", "dump.log": "log\n", "stats-dump": "stats\n"} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
	var dumped struct {
		Unknown     int
		Annotations map[string]string
	}
	if err := json.Unmarshal([]byte(got["spec.dump"]), &dumped); err != nil || dumped.Unknown != 1 || dumped.Annotations["own"] != "1" || dumped.Annotations["added"] != "2" {
		t.Errorf("spec.dump: %s, %v", got["spec.dump"], err)
	}
	if deleted := strings.Join(strings.Fields(got["deleted.files"]), ""); deleted != wantDeleted {
		t.Errorf("deleted.files: %q, want %q", deleted, wantDeleted)
	}
	want := map[string]string{"a/": "", "a/file": "text", "b": "1 a/file", "l": "2 /etc/shadow"}
	if d := cmp.Diff(want, tartest.Entries(t, strings.NewReader(got["rootfs-diff.tar"]))); d != "" {
		t.Errorf("rootfs-diff.tar (-want +got):\n%s", d)
	}
}

func TestFailedCheckpointLeavesNothing(t *testing.T) {
	for name, c := range map[string]struct{ criu, dump, want string }{
		"no version":  {"exit 1", goodDump, "install the package criu"},
		"old version": {`case $1 in --version) echo Version: 3.17.1 ;; *) echo "Error (criu/vdso.c:1): Unexpected rt vDSO area bounds"; exit 1 ;; esac`, goodDump, "CRIU 3.17.1 does not work with Linux"},
		"refused":     {goodCRIU, `echo "(00.1) Error (criu/tty.c:9): tty: /node/secret/x" >$work/dump.log; exit 1`, "Error (criu/tty.c:9): tty: /data/x"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, c.criu, c.dump)
			_, err := f.Checkpoint(t.Context(), f.target, f.location)
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "/node/secret") {
				t.Errorf("%v, want FailedPrecondition with %q", err, c.want)
			}
			f.nothingLeft()
		})
	}
}

func TestTimeoutEndsCRIUAndResumesTheContainer(t *testing.T) {
	f := newFixture(t, goodCRIU, "echo pie: 1: waits >$work/dump.log; sleep 600 & wait")
	ctx, cancel := contextWithTimeout(t, 2*time.Second)
	defer cancel()
	if _, err := f.Checkpoint(ctx, f.target, f.location); err == nil || !strings.Contains(err.Error(), `its log ends with "pie: 1: waits"`) {
		t.Errorf("a checkpoint that does not end: %v", err)
	}
	f.nothingLeft()
	calls, err := os.ReadFile(f.log)
	if err != nil || !strings.HasSuffix(string(calls), "state\nresume\n") {
		t.Errorf("calls of the runtime: %q, %v; want a resume at the end", calls, err)
	}
}

func TestGCUndoesTheCheckpointOfAnotherBerthd(t *testing.T) {
	f := newFixture(t, goodCRIU, goodDump)
	out, err := archive.Open(f.location)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := f.begin(&job{target: f.target}, out.TempPath()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(out.TempPath(), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.GC(t.Context(), nil); err != nil { // its own are in progress
		t.Fatal(err)
	}
	clear(f.running)
	if err := f.GC(t.Context(), inspectSelf); err != nil {
		t.Fatal(err)
	}
	f.nothingLeft()
}

func contextWithTimeout(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}

func inspectSelf(context.Context, string) (container.InspectResponse, error) {
	return container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{State: &container.State{Running: true, Pid: os.Getpid()}}}, nil
}

func TestProbeRestore(t *testing.T) {
	const runc = "echo 'runc version 1.3.6\ncommit: x'"
	for name, test := range map[string]struct {
		runc, criu string
		runtime    error
		want       string
	}{
		"all there":        {runc, goodCRIU, nil, ""},
		"wrapped runc":     {"echo 'NVIDIA Container Runtime version 1.17'; " + runc, goodCRIU, nil, ""},
		"crun":             {"echo 'crun version 1.8.1'", goodCRIU, nil, `only runc restores containers, and the OCI runtime of the pod is "crun version 1.8.1"`},
		"failing":          {runc + "; exit 1", goodCRIU, nil, "only runc restores containers"},
		"another shim":     {runc, goodCRIU, fs.ErrNotExist, "the pod has another OCI runtime"},
		"CRIU of old days": {runc, "case $1 in --version) echo Version: 3.17 ;; *) echo 'Error (criu/x.c:1): old'; exit 1 ;; esac", nil, "CRIU 3.17 does not work with Linux"},
	} {
		f := newFixture(t, test.criu, goodDump)
		f.program("runc", test.runc)
		if test.runtime != nil {
			f.runtimeOf = func(int, string) (bundle.Runtime, error) { return bundle.Runtime{}, test.runtime }
		}
		err := f.ProbeRestore(t.Context(), os.Getpid(), "pause", f.dir)
		if test.want == "" && err != nil || test.want != "" && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	f := newFixture(t, "", "")
	if err := os.Remove(filepath.Join(f.programs, "criu")); err != nil {
		t.Fatal(err)
	}
	f.program("runc", runc)
	f.hostOf = func(pid int) host { return host{pid, f.programs} }
	if err := f.ProbeRestore(t.Context(), os.Getpid(), "pause", f.dir); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "install the package criu") {
		t.Errorf("without CRIU: %v", err)
	}
}
