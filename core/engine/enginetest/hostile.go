package enginetest

import (
	"os"
	"path/filepath"
	"testing"
)

// HostileLabels are labels that the author of an image may choose. The paths that
// they name lead to target, by every way that berth has been seen to go: as they
// are, and relative to its run directory.
func HostileLabels(run, target string) map[string]map[string]string {
	relative, err := filepath.Rel(filepath.Join(run, "mounts"), target)
	if err != nil {
		relative = target
	}
	everything := func(kind string) map[string]string {
		return map[string]string{
			"io.kubernetes.docker.type": kind, "io.kubernetes.sandbox.id": "0123", "io.kubernetes.container.logpath": target + "/log",
			"io.kubernetes.container.name": "x", "io.kubernetes.pod.name": "x", "io.kubernetes.pod.namespace": "kube-system", "io.kubernetes.pod.uid": "x",
			"annotation.x": "x", "berth.labels": "[]", "berth.annotations": "[]", "berth.label.x": "x",
			"berth.config": `{"metadata":{"name":"x","namespace":"n","uid":"u"},"log_directory":"` + target + `","image":{"image":"x"}}`,
			"berth.image":  "x", "berth.image-ref": "x", "berth.handler": "x", "berth.user": `{"uid":"0","gid":"0"}`,
			"berth.stage": relative, "berth.look": "x", "berth.hold": relative,
		}
	}
	return map[string]map[string]string{
		"sandbox":      everything("podsandbox"),
		"container":    everything("container"),
		"helper":       everything("idle"),
		"stage":        {"berth.stage": relative},
		"stage, other": {"berth.stage": "../pods"},
		"hold":         {"berth.hold": relative, "io.kubernetes.docker.type": "idle"},
		"hold, valid":  {"berth.hold": "ABCDEFGHIJKLMNOP"},
		"look":         {"berth.look": "x"},
		"look, empty":  {"berth.look": "", "io.kubernetes.docker.type": "idle"},
		"log path":     {"io.kubernetes.container.logpath": target + "/log"},
		"proof": {
			"io.kubernetes.docker.type": "container", "io.kubernetes.sandbox.id": "none", "io.kubernetes.container.logpath": target + "/log",
			"berth.config": "{}", "berth.labels": "[]", "berth.annotations": "[]",
		},
		"broken": {"io.kubernetes.docker.type": "container", "berth.config": "{", "berth.labels": "{", "berth.annotations": "\x00", "berth.user": "["},
	}
}

// Tree lists a directory: paths, with the contents of files.
func Tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			found[path] = "a directory"
			return err
		}
		text, err := os.ReadFile(path)
		found[path] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
