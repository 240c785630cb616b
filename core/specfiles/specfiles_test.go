package specfiles

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/ociedit"
)

// newDirs writes files by DIR/FILE, with the directories spec, low and high.
func newDirs(t *testing.T, files map[string]string) (root string, cfg Config) {
	t.Helper()
	root = t.TempDir()
	for _, dir := range []string{filepath.Dir(root), root} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cfg = Config{SpecDir: filepath.Join(root, "spec"), HooksDirs: []string{filepath.Join(root, "low"), filepath.Join(root, "high")}}
	for _, dir := range append(cfg.HooksDirs, cfg.SpecDir) {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, text := range files {
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root, cfg
}

func TestPatchIsThatOfTheHandler(t *testing.T) {
	_, cfg := newDirs(t, map[string]string{"spec/default.json": `{"process": {"noNewPrivileges": true}}`, "spec/crun.json": `{"linux": {"seccomp": null}}`})
	for handler, want := range map[string]string{"": `{"process":{"noNewPrivileges":true}}`, "docker": `{"process":{"noNewPrivileges":true}}`, "crun": `{"linux":{"seccomp":null}}`, "runc": "", "../spec/crun": "", ".crun": ""} {
		files, err := cfg.Sandbox(handler)
		got := ""
		for _, p := range files.Patches {
			got += string(p)
		}
		if err != nil || got != want || files.Hooks != nil {
			t.Errorf("%q: %s, %v; want %s", handler, got, err, want)
		}
		if files, err := cfg.Container(handler, Container{}); err != nil || len(files.Patches) != len(want)/max(len(want), 1) {
			t.Errorf("%q, container: %s, %v", handler, files.Patches, err)
		}
	}
	for _, cfg := range []Config{{}, {SpecDir: filepath.Join(cfg.SpecDir, "absent")}} {
		if files, err := cfg.Container("", Container{}); err != nil || files.Patches != nil || files.Hooks != nil || len(cfg.Problems()) > 0 {
			t.Errorf("%+v: %v, %v", cfg, files, err)
		}
	}
}

func TestPatchesThatAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		`[]`: "must be a JSON object", `null`: "must be a JSON object", `{`: "must be a JSON object",
		`{"root":{"readonly":true}}`: "changes root, which no patch may change", `{"linux":{"namespaces":[]}}`: "changes linux.namespaces", `{"linux":null}`: "changes linux.namespaces",
		`{"linux":7}`: "changes linux.namespaces", `{"mounts":[]}`: "changes mounts", `{"hooks":{}}`: "changes hooks", `{"process":{"args":["sh"]}}`: "changes process.args", `{"process":[]}`: "changes process.args",
		`{"a":"` + strings.Repeat("x", maxPatch) + `"}`: "has more than 262144 bytes",
	} {
		root, cfg := newDirs(t, map[string]string{"spec/default.json": text})
		_, err := cfg.Sandbox("")
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "spec-dir: "+filepath.Join(root, "spec", "default.json")) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.40s: %v, want %q", text, err, want)
		}
		if problems := cfg.Problems(); len(problems) != 1 || problems[0].Option != SpecDirOption {
			t.Errorf("%.40s: problems %v", text, problems)
		}
		if _, err := cfg.Sandbox("crun"); err != nil {
			t.Errorf("%.40s, another handler: %v", text, err)
		}
	}
}

// hook returns a file with a hook.
func hook(path, when, stages string) string {
	return fmt.Sprintf(`{"version": "1.0.0", "hook": {"path": %q, "args": ["x"]}, "when": %s, "stages": %s}`, path, when, stages)
}

func TestHooksAreThoseWhoseConditionsMatch(t *testing.T) {
	const stages = `["prestart"]`
	root, cfg := newDirs(t, map[string]string{
		"low/10-all.json": hook("/bin/sh", `{"always": true}`, `["createRuntime", "poststop"]`), "low/B.json": hook("/bin/echo", `{"always": true}`, stages),
		"high/B.json": hook("/bin/ls", `{"always": true}`, stages), "low/never.json": hook("/bin/cat", `{"always": false, "commands": [".*"]}`, stages),
		"low/a.json":      hook("/bin/rm", `{"annotations": {"^dev\\.example/.*$": "^yes$", "pod": "1"}}`, stages),
		"low/c.json":      hook("/bin/mv", `{"commands": ["/init$", "^systemd$"]}`, stages),
		"high/d.json":     hook("/bin/cp", `{"hasBindMounts": true}`, stages),
		"high/e.json":     hook("/bin/ln", `{"hasBindMounts": true, "annotations": {"pod": "."}}`, `["startContainer"]`),
		"high/README":     "not a hook",
		"high/.edit.json": "not one yet",
	})
	// paths returns the programs of the stage prestart, and of all others.
	paths := func(c Container) (prestart, others string) {
		files, err := cfg.Container("", c)
		if err != nil {
			t.Fatal(err)
		}
		list := func(stages ...[]ociedit.Hook) (text string) {
			for _, hooks := range stages {
				for _, h := range hooks {
					text += strings.TrimPrefix(h.Path, "/bin/") + " "
				}
			}
			return text
		}
		h := files.Hooks
		return list(h.Prestart), list(h.CreateRuntime, h.CreateContainer, h.StartContainer, h.Poststart, h.Poststop)
	}
	bind, image := []*runtimeapi.Mount{{HostPath: "/a", ContainerPath: "/a"}}, []*runtimeapi.Mount{{ContainerPath: "/a", Image: &runtimeapi.ImageSpec{Image: "a"}}}
	for name, tt := range map[string]struct {
		c                Container
		prestart, others string
	}{
		"a plain container":        {Container{Program: "/bin/sh", Config: &runtimeapi.ContainerConfig{Mounts: image}}, "ls ", "sh sh "},
		"a command":                {Container{Program: "/sbin/init", Config: &runtimeapi.ContainerConfig{}}, "ls mv ", "sh sh "},
		"a command with another":   {Container{Program: "/sbin/initd", Config: &runtimeapi.ContainerConfig{}}, "ls ", "sh sh "},
		"one of two annotations":   {Container{Config: &runtimeapi.ContainerConfig{Annotations: map[string]string{"dev.example/a": "yes"}}}, "ls ", "sh sh "},
		"both, of pod and its own": {Container{PodAnnotations: map[string]string{"pod": "1", "dev.example/a": "no"}, Config: &runtimeapi.ContainerConfig{Annotations: map[string]string{"dev.example/a": "yes"}}}, "rm ls ", "sh sh "},
		"a bind mount":             {Container{Config: &runtimeapi.ContainerConfig{Mounts: bind}}, "ls cp ", "sh sh "},
		"all conditions of a file": {Container{PodAnnotations: map[string]string{"pod": "x"}, Config: &runtimeapi.ContainerConfig{Mounts: bind}}, "ls cp ", "sh ln sh "},
	} {
		if prestart, others := paths(tt.c); prestart != tt.prestart || others != tt.others {
			t.Errorf("%s: %q and %q, want %q and %q", name, prestart, others, tt.prestart, tt.others)
		}
	}
	if usable, problems := cfg.Check(); len(problems) > 0 || usable[HooksDirsOption] != 7 {
		t.Errorf("%v usable in %s, problems %v", usable, root, problems)
	}
	cfg.HooksDirs = nil
	if files, err := cfg.Container("", Container{}); err != nil || files.Hooks != nil {
		t.Errorf("without directories: %v, %v", files.Hooks, err)
	}
}

func TestHooksThatAreRefused(t *testing.T) {
	const always = `{"always": true}`
	for text, want := range map[string]string{
		`{`: "unexpected EOF", `{"version": "0.1.0"}`: `version "0.1.0": must be 1.0.0`, `{"hook": "/bin/sh", "stages": ["prestart"]}`: "cannot unmarshal",
		hook("/bin/sh", `{"allways": true}`, `["prestart"]`): `unknown field "allways"`, hook("/bin/sh", `{}`, `["prestart"]`): "when: must have",
		hook("sh", always, `["prestart"]`): `hook.path "sh": must be absolute`, hook("/bin/berth-none", always, `["prestart"]`): "no such file",
		hook("/bin/sh", always, `[]`): "stages: must not be empty", hook("/bin/sh", always, `["stop"]`): `stage "stop": must be`,
		hook("/bin/sh", `{"commands": ["("]}`, `["prestart"]`): "when.commands: error parsing regexp", hook("/bin/sh", `{"annotations": {"a": "["}}`, `["prestart"]`): "when.annotations: error parsing regexp",
		strings.Repeat(" ", maxHook+1): "has more than 65536 bytes",
	} {
		root, cfg := newDirs(t, map[string]string{"low/a.json": text})
		_, err := cfg.Container("", Container{Config: &runtimeapi.ContainerConfig{}})
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "hooks-dirs: "+filepath.Join(root, "low", "a.json")) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.60s: %v, want %q", text, err, want)
		}
		if problems := cfg.Problems(); len(problems) != 1 || problems[0].Option != HooksDirsOption {
			t.Errorf("%.60s: problems %v", text, problems)
		}
	}
	_, cfg := newDirs(t, nil)
	cfg.HooksDirs = append(cfg.HooksDirs, "/berth-none")
	if _, err := cfg.Container("", Container{}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "hooks-dirs: /berth-none") {
		t.Errorf("a directory that does not exist: %v", err)
	}
}

func TestFilesThatOthersCanChangeAreRefused(t *testing.T) {
	for name, change := range map[string]func(root string) error{
		"the file":      func(root string) error { return os.Chmod(filepath.Join(root, "spec", "default.json"), 0o666) },
		"the directory": func(root string) error { return os.Chmod(filepath.Join(root, "spec"), 0o777) },
		"a pipe": func(root string) error {
			path := filepath.Join(root, "spec", "default.json")
			if err := os.Remove(path); err != nil {
				return err
			}
			return unix.Mkfifo(path, 0o644)
		},
	} {
		root, cfg := newDirs(t, map[string]string{"spec/default.json": `{}`, "low/a.json": hook("/bin/sh", `{"always": true}`, `["prestart"]`)})
		if _, err := cfg.Container("", Container{}); err != nil {
			t.Error(err)
		}
		if err := change(root); err != nil {
			t.Fatal(err)
		}
		if files, err := cfg.Container("", Container{}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %s, %v", name, files.Patches, err)
		}
	}
	root, cfg := newDirs(t, map[string]string{"low/a.json": hook("/bin/sh", `{"always": true}`, `["prestart"]`)})
	if err := os.Chmod(filepath.Join(root, "low", "a.json"), 0o622); err != nil {
		t.Fatal(err)
	}
	if _, err := cfg.Container("", Container{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a hook: %v", err)
	}
	program := filepath.Join(root, "program")
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "low", "b.json"), []byte(hook(program, `{"always": true}`, `["prestart"]`)), 0o644); err != nil {
		t.Fatal(err)
	}
	cfg.HooksDirs = cfg.HooksDirs[:1]
	if err := os.Remove(filepath.Join(root, "low", "a.json")); err != nil {
		t.Fatal(err)
	}
	if files, err := cfg.Container("", Container{}); err != nil || cmp.Diff(files.Hooks, &ociedit.Hooks{Prestart: []ociedit.Hook{{Path: program, Args: []string{"x"}}}}) != "" {
		t.Errorf("a program of root: %+v, %v", files.Hooks, err)
	}
	if err := os.Chmod(program, 0o757); err != nil {
		t.Fatal(err)
	}
	if _, err := cfg.Container("", Container{}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "hook.path") {
		t.Errorf("a program that others can write: %v", err)
	}
}
