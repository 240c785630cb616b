package image_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/registry"
	"github.com/docker/docker/api/types/system"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/engine/enginetest"
	"berth/core/image"
	"berth/core/image/verify"
	"berth/core/pause"
	"berth/core/testmain"
)

const (
	// stall is the progress deadline of the tests' pulls.
	stall = time.Second
	// slowStall is that of pulls that make progress: on a busy machine their steps can be late.
	slowStall = 4 * time.Second
)

// TestMain gives the tests a configuration directory of their own: the docker/cli package reads
// DOCKER_CONFIG only once.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "docker")
	if err == nil {
		err = os.Setenv("DOCKER_CONFIG", dir)
	}
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	testmain.M{M: m}.Run() // most tests wait for an Engine that hangs, or for time to pass
}

// newServiceAndEngine returns a Service and its Engine. edits change the result of docker info.
func newServiceAndEngine(t *testing.T, pauseImage string, edits ...func(*system.Info)) (*image.Service, *enginetest.Engine) {
	t.Helper()
	e := enginetest.New(t)
	for _, edit := range edits {
		e.SetInfo(edit)
	}
	return newService(t, e, image.Config{PauseImage: func() string { return pauseImage }}), e
}

// newService returns a Service on e.
func newService(t testing.TB, e *enginetest.Engine, cfg image.Config) *image.Service {
	t.Helper()
	cfg.PullProgressTimeout = cmp.Or(cfg.PullProgressTimeout, stall)
	if cfg.PauseImage == nil {
		cfg.PauseImage = func() string { return "" }
	}
	cfg.ContainerUsage = func() (bytes, inodes, layers uint64) { return 70, 7, 60 }
	return image.New(cfg, e.Connect(t), slog.New(slog.DiscardHandler))
}

// dockerConfig writes Docker's configuration of the node, for one test.
func dockerConfig(t *testing.T, text string) {
	t.Helper()
	file := filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(file) })
}

// credentialHelper adds a script as a program called docker-credential-test, for one test. In it,
// $DIR is the directory that is returned.
func credentialHelper(t *testing.T, script string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte("#!/bin/sh\nDIR="+dir+"\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return dir
}

func TestConcurrentPullsAreShared(t *testing.T) {
	t.Parallel()
	images, e := newServiceAndEngine(t, "")
	e.Registry("r.test/a:1", enginetest.Remote{Steps: 5, Pace: 100 * time.Millisecond})
	var all errgroup.Group
	expired, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	all.Go(func() error {
		if _, err := images.Pull(expired, "r.test/a:1", "", nil, verify.Pod{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a caller whose deadline has expired: %v, want DeadlineExceeded", err)
		}
		return nil
	})
	for range 4 {
		all.Go(func() error { _, err := images.Pull(t.Context(), "r.test/a:1", "", nil, verify.Pod{}); return err })
	}
	// Other credentials need a pull of their own.
	all.Go(func() error {
		_, err := images.Pull(t.Context(), "r.test/a:1", "", &runtimeapi.AuthConfig{Username: "u", Password: "p"}, verify.Pod{})
		return err
	})
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
	if n := len(e.Pulls()); n != 2 {
		t.Errorf("%d pulls, want one for each credentials", n)
	}
}

func TestPullIsCancelledWithItsLastCaller(t *testing.T) {
	t.Parallel()
	images, e := newServiceAndEngine(t, "")
	e.Registry("r.test/a:1", enginetest.Remote{Steps: 10, Pace: 100 * time.Millisecond})
	var all errgroup.Group
	ctx, cancel := context.WithCancel(t.Context())
	for range 3 {
		all.Go(func() error { _, err := images.Pull(ctx, "r.test/a:1", "", nil, verify.Pod{}); return err })
	}
	enginetest.Until(t, "no pull", func() bool { return len(e.Pulls()) == 1 })
	cancel()
	if err := all.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
	time.Sleep(1500 * time.Millisecond) // longer than the pull takes
	if e.HasImage("r.test/a:1") {
		t.Error("pulled without a caller")
	}
	if _, err := images.Pull(t.Context(), "r.test/a:1", "", nil, verify.Pod{}); err != nil || len(e.Pulls()) != 2 {
		t.Errorf("the next try: %v, %d pulls", err, len(e.Pulls()))
	}
}

func TestPullFailsWithoutProgressOfTheRegistry(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		remote enginetest.Remote
		stalls bool
	}{
		"slow":                              {enginetest.Remote{Steps: 8, Pace: slowStall / 5}, false},
		"no manifest":                       {enginetest.Remote{Stall: "Pulling from"}, true},
		"no first byte":                     {enginetest.Remote{Stall: "Pulling fs layer"}, true},
		"download stalls":                   {enginetest.Remote{Stall: "Downloading"}, true},
		"download stalls, with messages":    {enginetest.Remote{Stall: "Downloading", Repeats: true}, true},
		"waits for other downloads":         {enginetest.Remote{Stall: "Waiting", StallFor: 3 * slowStall / 2}, false},
		"unpacking without messages":        {enginetest.Remote{Stall: "Download complete", StallFor: 3 * slowStall / 2}, false},
		"unpacking takes long":              {enginetest.Remote{Stall: "Extracting", StallFor: 3 * slowStall / 2}, false},
		"slow disk":                         {enginetest.Remote{Steps: 1, Stall: "Downloading", StallFor: 3 * slowStall / 2, Repeats: true}, false},
		"no configuration after the layers": {enginetest.Remote{Stall: "Pull complete"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := enginetest.New(t)
			limit := slowStall
			if tt.stalls {
				limit = stall
			}
			images := newService(t, e, image.Config{PullProgressTimeout: limit})
			e.Registry("r.test/a:1", tt.remote)
			ctx, cancel := context.WithTimeout(t.Context(), 10*slowStall)
			defer cancel()
			began := time.Now()
			id, err := images.Pull(ctx, "r.test/a:1", "", nil, verify.Pod{})
			took := time.Since(began)
			if !tt.stalls {
				if id == "" || err != nil || took < limit {
					t.Errorf("%q, %v after %v; want success", id, err, took)
				}
				return
			}
			if id != "" || err == nil || !strings.HasPrefix(err.Error(), "RegistryUnavailable: ") || !strings.Contains(err.Error(), "no progress") {
				t.Errorf("%q, %v after %v; want it to fail", id, err, took)
			}
		})
	}
	t.Run("no response", func(t *testing.T) {
		t.Parallel()
		images, e := newServiceAndEngine(t, "")
		t.Cleanup(e.Hang("POST /images/create"))
		if _, err := images.Pull(t.Context(), "r.test/a:1", "", nil, verify.Pod{}); err == nil || !strings.Contains(err.Error(), "no progress") {
			t.Errorf("%v", err)
		}
	})
}

func TestPullFails(t *testing.T) {
	t.Parallel()
	images, e := newServiceAndEngine(t, "")
	if _, err := images.Pull(t.Context(), "r.test/any:1", "kata", nil, verify.Pod{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown handler: %v", err)
	}
	e.Registry("r.test/torn:1", enginetest.Remote{Error: "unexpected EOF"})
	e.Registry("r.test/away:1", enginetest.Remote{Status: http.StatusInternalServerError, Error: "Get https://r.test/v2/: dial tcp: lookup r.test: no such host"})
	e.Registry("r.test/ill:1", enginetest.Remote{Status: http.StatusServiceUnavailable, Error: "error from registry: away for maintenance"})
	e.Registry("r.test/private:1", enginetest.Remote{Allow: func(a registry.AuthConfig) bool { return a.Password == "right" }})
	for name, tt := range map[string]struct {
		ref  string
		auth *runtimeapi.AuthConfig
		want string
		is   func(error) bool
	}{
		"no such image":        {"r.test/none:1", nil, "manifest unknown", errdefs.IsNotFound},
		"no name":              {"", nil, "image reference must be set", errdefs.IsInvalidArgument},
		"an invalid name":      {"UPPER:1", nil, "UPPER", errdefs.IsInvalidArgument},
		"connection lost":      {"r.test/torn:1", nil, "RegistryUnavailable: ", nil},
		"registry unreachable": {"r.test/away:1", nil, "RegistryUnavailable: ", nil},
		"registry returns 503": {"r.test/ill:1", nil, "RegistryUnavailable: ", func(err error) bool { return !engine.IsUnavailable(err) }},
		"wrong password":       {"r.test/private:1", &runtimeapi.AuthConfig{Username: "u", Password: "wrong-secret"}, "denied", func(err error) bool { return !errdefs.IsNotFound(err) }},
	} {
		t.Run(name, func(t *testing.T) {
			id, err := images.Pull(t.Context(), tt.ref, "", tt.auth, verify.Pod{})
			if id != "" || err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !tt.is(err) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%q, %v", id, err)
			}
		})
	}
}

func TestEngineUnavailableDuringPull(t *testing.T) {
	t.Parallel()
	const ref = "r.test/a:1"
	for name, disturb := range map[string]func(*enginetest.Engine){
		"at the request": func(e *enginetest.Engine) {
			e.Registry(ref, enginetest.Remote{})
			e.Fail("POST /images/create", enginetest.HangUp)
		},
		"in the middle": func(e *enginetest.Engine) {
			e.Registry(ref, enginetest.Remote{Stall: "Downloading"})
			time.AfterFunc(stall/5, e.Stop)
		},
		"shutting down": func(e *enginetest.Engine) {
			e.Registry(ref, enginetest.Remote{Error: "rpc error: code = Canceled desc = grpc: the client connection is closing"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			images, e := newServiceAndEngine(t, "")
			disturb(e)
			id, err := images.Pull(t.Context(), ref, "", nil, verify.Pod{})
			if id != "" || !engine.IsUnavailable(err) || strings.HasPrefix(err.Error(), "RegistryUnavailable") {
				t.Errorf("%q, %v; want Unavailable", id, err)
			}
		})
	}
}

func TestCredentials(t *testing.T) {
	e := enginetest.New(t)
	e.Registry("r.test/a:1", enginetest.Remote{})
	const login, other, helper = `{"auths":{"r.test":{"auth":"eDp5"}}}`, `{"auths":{"other.test":{"auth":"eDp5"}}}`, `{"credsStore":"test"}`
	ofNode := registry.AuthConfig{Username: "x", Password: "y", ServerAddress: "r.test"}
	for name, tt := range map[string]struct {
		node   bool // node-credentials
		given  *runtimeapi.AuthConfig
		file   string
		helper string
		want   registry.AuthConfig
	}{
		"none":                              {true, nil, `{}`, "", registry.AuthConfig{}},
		"the kubelet's":                     {true, &runtimeapi.AuthConfig{Username: "u", Password: "p"}, login, "", registry.AuthConfig{Username: "u", Password: "p", ServerAddress: "r.test"}},
		"the node's":                        {true, nil, login, "", ofNode},
		"the node's, not for pods":          {false, nil, login, "", registry.AuthConfig{}},
		"the node's, not for an empty auth": {false, &runtimeapi.AuthConfig{ServerAddress: "r.test"}, login, "", registry.AuthConfig{}},
		"for another registry":              {true, nil, other, "", registry.AuthConfig{}},
		"unreadable":                        {true, nil, `{"auths":`, "", registry.AuthConfig{}},
		"a helper's":                        {true, nil, helper, `[ "$1 $(cat)" = "get r.test" ] && echo '{"Username":"x","Secret":"y"}'`, ofNode},
		"a helper's for this registry":      {true, nil, `{"credHelpers":{"r.test":"test"},"credsStore":"none"}`, `echo '{"Username":"x","Secret":"y"}'`, ofNode},
		"a helper's token":                  {true, nil, helper, `echo '{"Username":"<token>","Secret":"t"}'`, registry.AuthConfig{IdentityToken: "t", ServerAddress: "r.test"}},
		"a helper's, not for pods":          {false, nil, helper, `echo '{"Username":"x","Secret":"y"}'`, registry.AuthConfig{}},
		"a helper without credentials":      {true, nil, helper, `echo "credentials not found in native keychain"; exit 1`, registry.AuthConfig{}},
		"a helper that fails":               {true, nil, helper, `exit 1`, registry.AuthConfig{}},
		"a missing helper":                  {true, nil, `{"credsStore":"none"}`, "", registry.AuthConfig{}},
	} {
		t.Run(name, func(t *testing.T) {
			dockerConfig(t, tt.file)
			credentialHelper(t, tt.helper)
			images := newService(t, e, image.Config{NodeCredentials: tt.node})
			if _, err := images.Pull(t.Context(), "r.test/a:1", "", tt.given, verify.Pod{}); err != nil {
				t.Fatal(err)
			}
			pulls := e.Pulls()
			got := pulls[len(pulls)-1].Auth
			got.Auth = ""
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
	t.Run("the node's for the pause image", func(t *testing.T) {
		dockerConfig(t, login)
		e.Registry("r.test/pause:1", enginetest.Remote{Allow: func(a registry.AuthConfig) bool { return a.Password == "y" }})
		images := newService(t, e, image.Config{PauseImage: func() string { return "r.test/pause:1" }})
		if _, err := images.Pull(t.Context(), "r.test/pause:1", "", nil, verify.Pod{}); err == nil {
			t.Error("pulled for a pod")
		}
		if _, err := images.Pause(t.Context()); err != nil || !e.HasImage("r.test/pause:1") {
			t.Errorf("not pulled for sandboxes: %v", err)
		}
	})
}

// Several pulls need the same helper, and it hangs.
func TestCredentialHelperRunsOnceAndEndsWithItsCaller(t *testing.T) {
	for name, script := range map[string]string{
		"one process":     `echo $$ >>$DIR/started; exec sleep 1000`,
		"with a child":    `sleep 1000 & echo $! >>$DIR/started; wait`,
		"ignores SIGTERM": `trap '' TERM; echo $$ >>$DIR/started; while :; do sleep 1; done`,
	} {
		t.Run(name, func(t *testing.T) {
			dockerConfig(t, `{"credsStore":"test"}`)
			dir := credentialHelper(t, script)
			e := enginetest.New(t)
			e.Registry("r.test/a:1", enginetest.Remote{})
			images := newService(t, e, image.Config{NodeCredentials: true})
			started := func() []string {
				text, _ := os.ReadFile(filepath.Join(dir, "started"))
				return strings.Fields(string(text))
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var all errgroup.Group
			for range 5 {
				all.Go(func() error {
					if _, err := images.Pull(ctx, "r.test/a:1", "", nil, verify.Pod{}); !errors.Is(err, context.Canceled) {
						return fmt.Errorf("%w, want Canceled", err)
					}
					return nil
				})
			}
			enginetest.Until(t, "the helper was not started", func() bool { return len(started()) > 0 })
			cancel()
			if err := all.Wait(); err != nil {
				t.Error(err)
			}
			for _, text := range started() {
				pid, err := strconv.Atoi(text)
				if err != nil {
					t.Fatal(err)
				}
				enginetest.Until(t, "a helper is still running", func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || zombie(pid) })
			}
			if n := len(started()); n != 1 || len(e.Pulls()) > 0 {
				t.Errorf("%d helpers and %d pulls were started, want one and none", n, len(e.Pulls()))
			}
		})
	}
}

// zombie reports whether a process has exited and was not reaped.
func zombie(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(text), ") Z ")
}

func TestImageHasTheSameIDInAllResponses(t *testing.T) {
	t.Parallel()
	images, e := newServiceAndEngine(t, "")
	digest := "sha256:" + strings.Repeat("d", 64)
	e.Registry("r.test/a:1", enginetest.Remote{Digest: digest, Image: enginetest.Image{Config: container.Config{User: "7:8"}, Size: 5000}})
	id, err := images.Pull(t.Context(), "r.test/a:1", "", nil, verify.Pod{})
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"r.test/a:1", "r.test/a@" + digest, "r.test/a:1@" + digest, id, strings.TrimPrefix(id, "sha256:")} {
		found, info, err := images.Status(t.Context(), ref, true)
		if err != nil || found.GetId() != id || found.GetUid().GetValue() != 7 || found.GetSize() != 5000 || len(info) == 0 {
			t.Errorf("status of %s: %v, %v", ref, found, err)
		}
		list, err := images.List(t.Context(), &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: ref}})
		if err != nil || len(list) != 1 || list[0].GetId() != id {
			t.Errorf("list of %s: %v, %v", ref, list, err)
		}
	}
	for range 2 {
		list, err := images.List(t.Context(), nil)
		if err != nil || len(list) != 1 || list[0].GetId() != id || list[0].GetUid().GetValue() != 7 ||
			len(list[0].GetRepoTags()) != 1 || list[0].GetRepoDigests()[0] != "r.test/a@"+digest {
			t.Errorf("list: %v, %v", list, err)
		}
	}
	found, err := images.Resolve(t.Context(), id, "r.test/a:1")
	if err != nil || found.ID != id || found.Ref != "r.test/a@"+digest || !found.HasCommand {
		t.Errorf("resolved to %+v, %v", found, err)
	}
	// A short prefix of an ID is not a reference.
	hex := strings.TrimPrefix(id, "sha256:")[:8]
	for _, ref := range []string{hex, "r.test/b:1", ""} {
		if found, _, err := images.Status(t.Context(), ref, false); found != nil || err != nil {
			t.Errorf("status of %q: %v, %v; want none", ref, found, err)
		}
	}
	if err := images.Remove(t.Context(), "r.test/b:1"); err != nil || !e.HasImage(id) {
		t.Errorf("removal of a missing image: %v", err)
	}
}

// An abbreviated ID finds its image where an operator may have typed it, and not where it may come
// from a pod.
func TestAbbreviatedIDs(t *testing.T) {
	t.Parallel()
	const digits = "8a762036a7b2"
	id := "sha256:" + digits + strings.Repeat("0", 52)
	for _, tt := range []struct {
		ref           string
		found, remove bool
		refused       func(error) bool // by Remove
	}{
		{id, true, true, nil},
		{strings.TrimPrefix(id, "sha256:"), true, true, nil},
		{digits, true, true, nil},       // docker
		{digits + "0", true, true, nil}, // crictl
		{digits + strings.Repeat("0", 51), true, true, nil},
		{digits[:11], false, false, errdefs.IsInvalidArgument},
		{digits[:1], false, false, errdefs.IsInvalidArgument},
		{"sha256:" + digits, false, true, nil},
		{"sha256:" + digits + "0", false, true, nil},
		{"sha256:" + digits[:11], false, false, errdefs.IsInvalidArgument},
		{"sha256:" + digits[:1], false, false, errdefs.IsInvalidArgument},
		{digits + ":latest", false, false, nil}, // of a pod, as the kubelet completes it
		{"docker.io/library/" + digits, false, false, nil},
		{"", false, false, errdefs.IsInvalidArgument},
	} {
		t.Run(tt.ref, func(t *testing.T) {
			images, e := newServiceAndEngine(t, "")
			e.AddImage(enginetest.Image{ID: id}, "registry.corp/private:1")
			found, _, err := images.Status(t.Context(), tt.ref, false)
			if err != nil || (found != nil) != tt.found {
				t.Errorf("status: %v, %v; want found: %v", found, err, tt.found)
			}
			if list, err := images.List(t.Context(), &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: tt.ref}}); tt.ref != "" && (err != nil || (len(list) == 1) != tt.found) {
				t.Errorf("list: %v, %v; want found: %v", list, err, tt.found)
			}
			if got, err := images.Resolve(t.Context(), tt.ref, tt.ref); (err == nil) != tt.found || tt.found && got.ID != id {
				t.Errorf("for a container: %v, %v; want found: %v", got, err, tt.found)
			}
			err = images.Remove(t.Context(), tt.ref)
			if tt.refused == nil && err != nil || tt.refused != nil && !tt.refused(err) {
				t.Errorf("removal: %v", err)
			}
			if e.HasImage(id) == tt.remove {
				t.Errorf("exists after the removal: %v", !tt.remove)
			}
		})
	}
	t.Run("two images", func(t *testing.T) {
		images, e := newServiceAndEngine(t, "")
		other := "sha256:" + digits + strings.Repeat("1", 52)
		e.AddImage(enginetest.Image{ID: id}, "a:1")
		e.AddImage(enginetest.Image{ID: other}, "b:1")
		if found, _, err := images.Status(t.Context(), digits, false); found != nil || err != nil {
			t.Errorf("status: %v, %v", found, err)
		}
		_ = images.Remove(t.Context(), digits)
		if !e.HasImage(id) || !e.HasImage(other) {
			t.Error("one of two images with these digits was removed")
		}
	})
	t.Run("a name has precedence", func(t *testing.T) {
		images, e := newServiceAndEngine(t, "")
		e.AddImage(enginetest.Image{ID: id}, "a:1")
		named := e.AddImage(enginetest.Image{}, digits, "abcd")
		for _, ref := range []string{digits, "abcd"} {
			if found, _, err := images.Status(t.Context(), ref, false); found.GetId() != named || err != nil {
				t.Errorf("status: %v, %v", found, err)
			}
		}
		if err := images.Remove(t.Context(), digits); err != nil || e.HasImage(named) || !e.HasImage(id) {
			t.Errorf("removal: %v", err)
		}
	})
}

// If the removal of a parent image failed, the kubelet's garbage collection would fail for ever.
func TestRemoveOfAParentImageRemovesItsNames(t *testing.T) {
	t.Parallel()
	const digits = "8a762036a7b2"
	id, digest := "sha256:"+digits+strings.Repeat("0", 52), "sha256:"+strings.Repeat("d", 64)
	for _, ref := range []string{"base:1", "docker.io/library/base:1", "other/base:2", "base@" + digest, id, strings.TrimPrefix(id, "sha256:"), digits, digits + "0", "sha256:" + digits} {
		t.Run(ref, func(t *testing.T) {
			images, e := newServiceAndEngine(t, "")
			e.AddImage(enginetest.Image{ID: id}, "base:1", "other/base:2", "base@"+digest)
			child := e.AddImage(enginetest.Image{Parent: id}, "child:1")
			running := run(t, e, "child:1")
			for range 2 { // the second time it has no names
				if err := images.Remove(t.Context(), ref); err != nil {
					t.Fatal(err)
				}
			}
			list, err := images.List(t.Context(), nil)
			if err != nil || len(list) != 1 || list[0].GetId() != child {
				t.Errorf("listed %v, %v; want the child alone", list, err)
			}
			if e.HasImage("base:1") || e.HasImage("other/base:2") || e.HasImage("base@"+digest) {
				t.Error("names were not removed")
			}
			if err := e.Client(t).ContainerRemove(t.Context(), running, container.RemoveOptions{Force: true}); err != nil {
				t.Fatal(err)
			}
			if err := images.Remove(t.Context(), "child:1"); err != nil || e.HasImage(id) || e.HasImage(child) {
				t.Errorf("removal of the child: %v; base left: %v, child left: %v", err, e.HasImage(id), e.HasImage(child))
			}
		})
	}
	t.Run("a running container uses it", func(t *testing.T) {
		images, e := newServiceAndEngine(t, "")
		id := e.AddImage(enginetest.Image{}, "base:1")
		e.AddImage(enginetest.Image{Parent: id}, "child:1")
		run(t, e, "base:1")
		if err := images.Remove(t.Context(), "base:1"); !errdefs.IsConflict(err) || !e.HasImage("base:1") {
			t.Errorf("%v, want Conflict and the name kept", err)
		}
	})
}

// run starts a container and returns its ID.
func run(t *testing.T, e *enginetest.Engine, image string) string {
	t.Helper()
	docker := e.Client(t)
	made, err := docker.ContainerCreate(t.Context(), &container.Config{Image: image, Cmd: []string{"serve"}}, nil, nil, nil, "")
	if err == nil {
		err = docker.ContainerStart(t.Context(), made.ID, container.StartOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	return made.ID
}

// Docker repeats the labels of an image, and more, in each event and each list.
func TestImagesWithLargeConfigurationsAreRefused(t *testing.T) {
	t.Parallel()
	images, e := newServiceAndEngine(t, "")
	for name, tt := range map[string]struct {
		config container.Config
		ok     bool
	}{
		"some":            {container.Config{Labels: map[string]string{"a": strings.Repeat("x", 255<<10)}}, true},
		"a large label":   {container.Config{Labels: map[string]string{"a": strings.Repeat("x", 256<<10)}}, false},
		"a large name":    {container.Config{Labels: map[string]string{strings.Repeat("x", 256<<10): "a"}}, false},
		"an environment":  {container.Config{Env: []string{"A=" + strings.Repeat("x", 1<<20)}}, false},
		"a long command":  {container.Config{Cmd: []string{strings.Repeat("x", 1<<20)}}, false},
		"a long pathname": {container.Config{WorkingDir: "/" + strings.Repeat("x", 1<<20)}, false},
	} {
		e.AddImage(enginetest.Image{Config: tt.config}, "large:1")
		switch got, err := images.Resolve(t.Context(), "large:1", "large:1"); {
		case tt.ok && err != nil:
			t.Errorf("%s: %v", name, err)
		case !tt.ok && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "at most")):
			t.Errorf("%s: %v, %v; want FailedPrecondition and what is allowed", name, got, err)
		}
	}
}

func TestLongErrorsOfRegistriesAreTruncated(t *testing.T) {
	const page = "error parsing HTTP 500 Internal Server Error response body: "
	for name, remote := range map[string]enginetest.Remote{
		"a message of 200 MB":   {Error: page, Flood: 200 << 20},
		"a message of 60 kB":    {Error: page + strings.Repeat("x", 60_000)},
		"a response of some MB": {Status: http.StatusInternalServerError, Error: page + strings.Repeat("x", 3<<20)},
		"a response of some kB": {Status: http.StatusInternalServerError, Error: page + strings.Repeat("x", 30_000)},
		"characters of 3 bytes": {Error: page + strings.Repeat("\u20ac", 10_000)},
	} {
		t.Run(name, func(t *testing.T) {
			images, e := newServiceAndEngine(t, "r.test/a:1")
			e.Registry("r.test/a:1", remote)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := images.Pull(t.Context(), "r.test/a:1", "", nil, verify.Pod{})
			runtime.ReadMemStats(&after)
			if err == nil || len(err.Error()) > 8<<10 || !utf8.ValidString(err.Error()) {
				t.Fatalf("%d bytes, want an error of a few kB", len(fmt.Sprint(err)))
			}
			if engine.IsUnavailable(err) || !strings.Contains(err.Error(), "500 Internal Server Error") && remote.Status == 0 {
				t.Errorf("%.200s", err)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 40<<20 {
				t.Errorf("took %d MiB of memory", used>>20)
			}
			// As the pause image it is replaced by the built-in one.
			if _, err := images.Pause(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestListHasImagesThatCannotBeInspected(t *testing.T) {
	t.Parallel()
	images, e := newServiceAndEngine(t, "")
	bad, good := e.AddImage(enginetest.Image{Config: container.Config{User: "7"}}, "bad:1"), e.AddImage(enginetest.Image{Config: container.Config{User: "8"}}, "good:1")
	users := func() (map[string]int64, error) {
		list, err := images.List(t.Context(), nil)
		found := map[string]int64{}
		for _, img := range list {
			found[img.GetId()] = img.GetUid().GetValue()
		}
		return found, err
	}
	e.Fail("GET /images/"+bad+"/json", http.StatusInternalServerError)
	if got, err := users(); err != nil || len(got) != 2 || got[good] != 8 {
		t.Errorf("%v, %v; want both images, and the user of the good one", got, err)
	}
	e.ClearFaults("GET /images/" + bad + "/json")
	e.Fail("GET /images/{name}/json", enginetest.HangUp)
	if got, err := users(); !engine.IsUnavailable(err) {
		t.Errorf("%v, %v; want Unavailable", got, err)
	}
	e.ClearFaults("GET /images/{name}/json")
	enginetest.Until(t, "the image is not inspected again", func() bool {
		got, err := users()
		return err == nil && got[bad] == 7 && got[good] == 8
	})
}

func TestConcurrentRemovalsSucceed(t *testing.T) {
	t.Parallel()
	images, e := newServiceAndEngine(t, "")
	id := e.AddImage(enginetest.Image{}, "a:1", "b:1")
	e.Delay("DELETE /images/{name}", 50*time.Millisecond)
	var all errgroup.Group
	for _, ref := range []string{"a:1", "b:1", id, "a:1", "docker.io/library/a:1"} {
		all.Go(func() error { return images.Remove(t.Context(), ref) })
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
	if e.HasImage(id) {
		t.Error("the image still exists")
	}
}

func TestRemoveOfAnImageInUseIsAConflict(t *testing.T) {
	t.Parallel()
	images, e := newServiceAndEngine(t, "")
	e.AddImage(enginetest.Image{}, "a:1")
	run(t, e, "a:1")
	if err := images.Remove(t.Context(), "a:1"); !errdefs.IsConflict(err) {
		t.Errorf("%v, want Conflict", err)
	}
}

func TestPauseImage(t *testing.T) {
	t.Parallel()
	t.Run("on the node", func(t *testing.T) {
		images, e := newServiceAndEngine(t, "pause:3")
		id := e.AddImage(enginetest.Image{}, "pause:3")
		for range 3 {
			if got, err := images.Pause(t.Context()); got != id || err != nil {
				t.Errorf("%s, %v; want %s", got, err, id)
			}
		}
		if n := e.Calls("GET /images/{name}/json"); n != 1 {
			t.Errorf("%d inspects, want one", n)
		}
		if found, _, err := images.Status(t.Context(), id, false); err != nil || !found.GetPinned() {
			t.Errorf("not pinned: %v, %v", found, err)
		}
	})
	t.Run("pulled", func(t *testing.T) {
		images, e := newServiceAndEngine(t, "r.test/pause:3")
		e.Registry("r.test/pause:3", enginetest.Remote{})
		if got, err := images.Pause(t.Context()); err != nil || !e.HasImage("r.test/pause:3") {
			t.Errorf("%s, %v", got, err)
		}
	})
	t.Run("without a registry", func(t *testing.T) {
		images, e := newServiceAndEngine(t, "r.test/pause:3")
		id, err := images.Pause(t.Context())
		if err != nil || !e.HasImage(pause.Ref) {
			t.Fatalf("%s, %v; want the built-in image", id, err)
		}
		// After its removal it is loaded again, without another pull.
		if err := images.Remove(t.Context(), pause.Ref); err != nil {
			t.Fatal(err)
		}
		images.ForgetPause()
		if again, err := images.Pause(t.Context()); again != id || err != nil || len(e.Pulls()) != 1 {
			t.Errorf("%s, %v, %d pulls; want %s and one", again, err, len(e.Pulls()), id)
		}
		if found, _, err := images.Status(t.Context(), id, false); err != nil || !found.GetPinned() {
			t.Errorf("not pinned: %v, %v", found, err)
		}
	})
	t.Run("changed", func(t *testing.T) {
		ref := "r.test/missing:1"
		e := enginetest.New(t)
		images := newService(t, e, image.Config{PauseImage: func() string { return ref }})
		builtin, err := images.Pause(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// A failed pull of the last image does not keep the new one from being pulled.
		ref = "r.test/pause:4"
		e.Registry(ref, enginetest.Remote{})
		id, err := images.Pause(t.Context())
		if err != nil || id == builtin || !e.HasImage(ref) {
			t.Fatalf("%s, %v; want the image that is configured now", id, err)
		}
		if found, _, err := images.Status(t.Context(), ref, false); err != nil || !found.GetPinned() {
			t.Errorf("not pinned: %v, %v", found, err)
		}
		ref = "r.test/missing:1"
		if again, err := images.Pause(t.Context()); again != builtin || err != nil {
			t.Errorf("%s, %v; want %s", again, err, builtin)
		}
		if found, _, err := images.Status(t.Context(), id, false); err != nil || found.GetPinned() {
			t.Errorf("an image that no new pod uses is pinned: %v, %v", found, err)
		}
	})
	t.Run("another image has the name of the built-in image", func(t *testing.T) {
		for name, edit := range map[string]func(*enginetest.Image){
			"other layers":     func(i *enginetest.Image) { i.Layers = []string{"sha256:" + strings.Repeat("b", 64)} },
			"one layer more":   func(i *enginetest.Image) { i.Layers = append(i.Layers, "sha256:"+strings.Repeat("b", 64)) },
			"other entrypoint": func(i *enginetest.Image) { i.Config.Entrypoint = []string{"/bin/sh"} },
			"a command":        func(i *enginetest.Image) { i.Config.Cmd = []string{"-v"} },
			"an environment":   func(i *enginetest.Image) { i.Config.Env = []string{"A=b"} },
			"a volume":         func(i *enginetest.Image) { i.Config.Volumes = map[string]struct{}{"/v": {}} },
			"root":             func(i *enginetest.Image) { i.Config.User = "" },
			"labels":           func(i *enginetest.Image) { i.Config.Labels = map[string]string{"a": "b"} },
			"architecture":     func(i *enginetest.Image) { i.Arch = "vax" },
		} {
			for _, configured := range []string{"r.test/pause:3", pause.Ref} {
				images, e := newServiceAndEngine(t, configured)
				genuine, err := images.Pause(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				found, err := e.Client(t).ImageInspect(t.Context(), genuine)
				if err != nil {
					t.Fatal(err)
				}
				img := enginetest.Image{Layers: found.RootFS.Layers, Arch: found.Architecture, Config: container.Config{
					Entrypoint: found.Config.Entrypoint, User: found.Config.User, WorkingDir: found.Config.WorkingDir, Labels: found.Config.Labels,
				}}
				edit(&img)
				other := e.AddImage(img, pause.Ref)
				images.ForgetPause()
				if got, err := images.Pause(t.Context()); got != genuine || err != nil {
					t.Errorf("%s, configured %s: %s, %v; want %s and not %s", name, configured, got, err, genuine, other)
				}
				if e.Calls("POST /images/load") != 2 {
					t.Errorf("%s: loaded %d times, want twice", name, e.Calls("POST /images/load"))
				}
			}
		}
	})
	t.Run("the Engine hangs", func(t *testing.T) {
		images, e := newServiceAndEngine(t, "pause:3")
		release := e.Hang("GET /images/{name}/json")
		t.Cleanup(release)
		first, cancelFirst := context.WithCancel(t.Context())
		var waiting errgroup.Group
		waiting.Go(func() error { _, err := images.Pause(first); return err })
		enginetest.Until(t, "no lookup", func() bool { return e.Calls("GET /images/{name}/json") > 0 })
		// A later caller waits no longer than its own deadline.
		ctx, cancel := context.WithTimeout(t.Context(), stall/10)
		defer cancel()
		if id, err := images.Pause(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s, %v; want DeadlineExceeded", id, err)
		}
		images.ForgetPause() // does not block
		cancelFirst()
		if err := waiting.Wait(); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want Canceled", err)
		}
	})
	t.Run("the Engine becomes unavailable", func(t *testing.T) {
		images, e := newServiceAndEngine(t, "r.test/pause:3")
		e.Registry("r.test/pause:3", enginetest.Remote{})
		e.FailOnce("POST /images/create", enginetest.HangUp, 1)
		if id, err := images.Pause(t.Context()); !engine.IsUnavailable(err) {
			t.Errorf("%s, %v; want Unavailable", id, err)
		}
		// That must not delay the next pull.
		enginetest.Until(t, "not pulled", func() bool {
			_, err := images.Pause(t.Context())
			return err == nil
		})
		if !e.HasImage("r.test/pause:3") || e.HasImage(pause.Ref) {
			t.Error("the built-in image is used")
		}
	})
	t.Run("the caller's deadline expires", func(t *testing.T) {
		images, e := newServiceAndEngine(t, "r.test/pause:3")
		e.Registry("r.test/pause:3", enginetest.Remote{Stall: "Pulling from", StallFor: stall / 2})
		ctx, cancel := context.WithTimeout(t.Context(), stall/10)
		defer cancel()
		if id, err := images.Pause(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s, %v; want DeadlineExceeded", id, err)
		}
		if id, err := images.Pause(t.Context()); err != nil || !e.HasImage("r.test/pause:3") {
			t.Errorf("the next: %s, %v; want success", id, err)
		}
	})
	t.Run("without an Engine", func(t *testing.T) {
		images, e := newServiceAndEngine(t, "r.test/pause:3")
		e.Fail("POST /images/create", enginetest.HangUp)
		e.Fail("POST /images/load", enginetest.HangUp)
		if id, err := images.Pause(t.Context()); err == nil {
			t.Errorf("%s, no error", id)
		}
	})
}

func TestFsInfoReturnsTheLastMeasurement(t *testing.T) {
	t.Parallel()
	service, e := newServiceAndEngine(t, "")
	e.AddImage(enginetest.Image{Size: 1000}, "a:1")
	e.AddImage(enginetest.Image{Size: 234}, "b:1")
	enginetest.Background(t, service.MeasureDiskUsage)
	var images, containers []*runtimeapi.FilesystemUsage
	enginetest.Until(t, "not measured", func() bool {
		var err error
		images, containers, err = service.FsInfo(t.Context())
		return err == nil && images[0].GetUsedBytes().GetValue() > 0
	})
	if got := images[0]; got.GetUsedBytes().GetValue() != 1234 || got.GetFsId().GetMountpoint() == "" || got.GetTimestamp() == 0 {
		t.Errorf("images %v", got)
	}
	if got := containers[0]; got.GetUsedBytes().GetValue() != 70 || got.GetInodesUsed().GetValue() != 7 ||
		got.GetFsId().GetMountpoint() != images[0].GetFsId().GetMountpoint() {
		t.Errorf("containers %v", got)
	}
	if n := e.Calls("GET /system/df"); n != 0 {
		t.Errorf("%d calls of system df, which is slow", n)
	}
	e.Stop()
	before := time.Now().UnixNano()
	again, written, err := service.FsInfo(t.Context())
	if err != nil || again[0].GetUsedBytes().GetValue() != 1234 {
		t.Fatalf("while the Engine is unavailable: %v, %v", again, err)
	}
	if again[0].GetTimestamp() < before || written[0].GetTimestamp() < before {
		t.Errorf("old timestamps: %v, %v", again, written)
	}
}

// With the containerd image store, Docker's number includes what containers have written.
func TestFsInfoOfTheContainerdStoreExcludesContainers(t *testing.T) {
	t.Parallel()
	service, e := newServiceAndEngine(t, "", func(info *system.Info) {
		info.DriverStatus = [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}}
	})
	e.AddImage(enginetest.Image{Size: 1000}, "a:1")
	enginetest.Background(t, service.MeasureDiskUsage)
	enginetest.Until(t, "containers are included", func() bool {
		images, _, err := service.FsInfo(t.Context())
		return err == nil && images[0].GetUsedBytes().GetValue() == 940
	})
}

func TestImageIDsCannotBePulled(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	s := image.New(image.Config{}, e.Connect(t), slog.New(slog.DiscardHandler))
	for _, ref := range []string{strings.Repeat("a", 64), "sha256:" + strings.Repeat("a", 64)} {
		if _, err := s.Pull(t.Context(), ref, "", nil, verify.Pod{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want an invalid argument", ref, err)
		}
	}
	if n := e.Calls("POST /images/create"); n > 0 {
		t.Errorf("%d pulls, want none", n)
	}
}
