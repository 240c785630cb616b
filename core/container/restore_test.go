package container_test

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/ociedit"
)

// checkpointFiles are those of a checkpoint of a container of the image server, with one process without capabilities.
func checkpointFiles() map[string]string {
	return map[string]string{
		"config.dump": `{"rootfsImage":"server"}`, "spec.dump": `{"process":{"args":["count","up"]},"linux":{"namespaces":[{"type":"mount"}]}}`,
		"checkpoint/inventory.img": "i", "checkpoint/descriptors.json": "[]", "checkpoint/core-1.img": "\x19\x43\x56\x54\x47\x38\x05\x55\x0a\x00\x00\x00\x1a\x02\x08\x01\x2a\x04\x52\x00\x58\x02",
	}
}

// archive writes a checkpoint, and returns a container that is restored from it.
func (f *fixture) archive(files map[string]string) *runtimeapi.ContainerConfig {
	f.Helper()
	path := filepath.Join(f.archives, "a.tar")
	out, err := os.Create(path)
	if err != nil {
		f.Fatal(err)
	}
	w := tar.NewWriter(out)
	for name, text := range files {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(text))}))
		_, writeErr := w.Write([]byte(text))
		err = errors.Join(err, writeErr)
	}
	if err := errors.Join(err, w.Close(), out.Close(), os.Chmod(f.archives, 0o700)); err != nil {
		f.Fatal(err)
	}
	c := config()
	c.Image.Image = path
	return c
}

// requireFiles fails the test unless there are as many checkpoints in the directory of the daemon.
func (f *fixture) requireFiles(after string, want int) {
	f.Helper()
	left, err := os.ReadDir(f.restores)
	if err != nil && !errors.Is(err, os.ErrNotExist) || len(left) != want {
		f.Errorf("after %s there are %d checkpoints, %v, want %d", after, len(left), err, want)
	}
}

func TestContainerIsRestoredFromACheckpoint(t *testing.T) {
	for _, from := range []string{"archive", "image"} {
		f := newFixture(t)
		f.addOCIRuntime()
		c := f.archive(checkpointFiles())
		if from == "image" {
			c.Image.Image, f.logs.imageFiles = "checkpoint", checkpointFiles()
		}
		id, err := f.Create(t.Context(), f.pod, c, nil)
		if err != nil {
			t.Fatal(from, err)
		}
		got, err := ociedit.Read(f.ociDir, id)
		if err != nil || got.Restore == nil || filepath.Dir(got.Restore.Dir) != f.restores || !got.Restore.Seccomp || len(got.Restore.Namespaces) != 1 {
			t.Fatalf("%s: %+v, %v", from, got, err)
		}
		if _, err := os.Stat(filepath.Join(got.Restore.Dir, "checkpoint", "inventory.img")); err != nil {
			t.Error(err)
		}
		seen, err := f.client.ContainerInspect(t.Context(), id)
		if err != nil || seen.HostConfig.Runtime != "berth" || strings.Join(seen.Config.Entrypoint, " ") != "count up" || len(seen.Config.Cmd) > 0 || seen.Config.Image != "server" {
			t.Errorf("%s: %+v, %v", from, seen.Config, err)
		}
		if s := f.status(id); s.GetState() != runtimeapi.ContainerState_CONTAINER_CREATED || s.GetImage().GetImage() != "server" {
			t.Errorf("%s: %v", from, s)
		}
		f.requireFiles("CreateContainer", 1)
		if err := f.Start(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		f.requireFiles("StartContainer", 0)
		if err := f.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		f.requireNoInstructions("RemoveContainer")
	}
}

func TestNothingIsLeftOfARestoreThatFails(t *testing.T) {
	for name, test := range map[string]struct {
		change func(f *fixture, c *runtimeapi.ContainerConfig, files map[string]string)
		is     func(error) bool
		want   string
	}{
		"no archive": {func(_ *fixture, c *runtimeapi.ContainerConfig, _ map[string]string) { c.Image.Image += "x" }, errdefs.IsNotFound, "no such file"},
		"elsewhere":  {func(_ *fixture, c *runtimeapi.ContainerConfig, _ map[string]string) { c.Image.Image = "/etc/passwd" }, errdefs.IsInvalidArgument, "must be a path below"},
		"no image": {func(_ *fixture, _ *runtimeapi.ContainerConfig, files map[string]string) {
			files["config.dump"] = `{"rootfsImage":"other:1"}`
		}, errdefs.IsNotFound, "image other:1 of the checkpoint is not on the node: pull other:1"},
		"no CRIU": {func(f *fixture, _ *runtimeapi.ContainerConfig, _ map[string]string) {
			f.probe = errdefs.ErrFailedPrecondition
		}, errdefs.IsFailedPrecondition, ""},
		"terminal": {func(_ *fixture, c *runtimeapi.ContainerConfig, _ map[string]string) { c.Tty = true }, errdefs.IsFailedPrecondition, "with a terminal cannot be restored"},
		"hostile":  {func(_ *fixture, _ *runtimeapi.ContainerConfig, files map[string]string) { files["checkpoint/a/b"] = "" }, errdefs.IsInvalidArgument, "is not a name of CRIU's images"},
		"docker refuses": {func(f *fixture, _ *runtimeapi.ContainerConfig, _ map[string]string) {
			f.engine.Fail("POST /containers/create", 400)
		}, errdefs.IsInvalidArgument, ""},
		"log fails": {func(f *fixture, _ *runtimeapi.ContainerConfig, _ map[string]string) {
			f.logs.broken = errors.New("disk full")
		}, nil, "disk full"},
		"no instructions": {func(f *fixture, _ *runtimeapi.ContainerConfig, _ map[string]string) {
			_ = os.WriteFile(f.ociDir, nil, 0o600)
		}, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.addOCIRuntime()
			files := checkpointFiles()
			c := f.archive(files)
			test.change(f, c, files)
			_ = f.archive(files)
			_, err := f.Create(t.Context(), f.pod, c, nil)
			if err == nil || !strings.Contains(err.Error(), test.want) || test.is != nil && !test.is(err) {
				t.Errorf("%v, want %q", err, test.want)
			}
			f.requireFiles("a failed create", 0)
			f.requireClean("a failed create")
		})
	}
	f := newFixture(t)
	if _, err := f.Create(t.Context(), f.pod, f.archive(checkpointFiles()), nil); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "run berthd runtime install") {
		t.Errorf("without the OCI runtime: %v", err)
	}
	f.requireFiles("a create without the OCI runtime", 0)
}

func TestRestoreThatFailsAtTheStart(t *testing.T) {
	f := newFixture(t)
	f.addOCIRuntime()
	id, err := f.Create(t.Context(), f.pod, f.archive(checkpointFiles()), nil)
	if err != nil {
		t.Fatal(err)
	}
	i, err := ociedit.Read(f.ociDir, id)
	if err != nil {
		t.Fatal(err)
	}
	work := filepath.Join(i.Restore.Dir, ociedit.RestoreWork)
	if err := errors.Join(os.Mkdir(work, 0o700), os.WriteFile(filepath.Join(work, ociedit.RestoreLog), []byte("(0.1) Error (criu/tty.c:1): tty: no\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	f.engine.Fail("POST /containers/{id}/start", 400)
	if err := f.Start(t.Context(), id); err == nil || !strings.Contains(err.Error(), "CRIU cannot restore the container: Error (criu/tty.c:1): tty: no") {
		t.Errorf("%v, want the error of CRIU", err)
	}
	f.requireFiles("a failed start", 0)
}
