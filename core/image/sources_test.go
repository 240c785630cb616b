package image_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	dockerimage "github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/registry"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine/enginetest"
	"berth/core/image"
	"berth/core/image/mirror"
	"berth/core/image/verify"
	"berth/core/state"
)

// newMirrored returns a Service with mirrors, and its Engine.
func newMirrored(t *testing.T, verifier *verify.Verifier, mirrors ...string) (*image.Service, *enginetest.Engine, string) {
	t.Helper()
	return newMirroredWithin(t, time.Minute, verifier, mirrors...)
}

// newMirroredWithin is newMirrored with a progress deadline.
func newMirroredWithin(t *testing.T, deadline time.Duration, verifier *verify.Verifier, mirrors ...string) (*image.Service, *enginetest.Engine, string) {
	t.Helper()
	table, err := mirror.Parse(mirrors)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	store, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	aliases, err := mirror.OpenAliases(store)
	if err != nil {
		t.Fatal(err)
	}
	e := enginetest.New(t)
	cfg := image.Config{PullProgressTimeout: deadline, PullPolicy: image.PullPolicy{Mirrors: table, Verifier: verifier}, Aliases: aliases}
	return newService(t, e, cfg), e, filepath.Join(dir, "v1", "mirrored-images")
}

// newVerifier returns a Verifier whose only program is a script.
func newVerifier(t *testing.T, script string) *verify.Verifier {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(dir, "check")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"+script), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(program, 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	return verify.New(verify.Config{Dir: dir, Timeout: time.Minute, Max: 10}, slog.New(slog.DiscardHandler))
}

// refs returns what was requested of registries.
func refs(requests []enginetest.Pull) (refs []string) {
	for _, r := range requests {
		refs = append(refs, r.Ref)
	}
	return refs
}

const manifest = "sha256:1234123412341234123412341234123412341234123412341234123412341234"

func TestMirroredImageHasTheRequestedName(t *testing.T) {
	t.Parallel()
	images, e, _ := newMirrored(t, nil, "quay.io=https://m.test/quay")
	e.Registry("m.test/quay/app:1", enginetest.Remote{Digest: manifest})
	id, err := images.Pull(t.Context(), "quay.io/app:1", "", &runtimeapi.AuthConfig{Username: "u", Password: "p"}, verify.Pod{})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(refs(e.Resolves()), refs(e.Pulls())); got != "[m.test/quay/app:1] [m.test/quay/app@"+manifest+"]" {
		t.Errorf("requests %s", got)
	}
	for _, r := range slices.Concat(e.Resolves(), e.Pulls()) {
		if r.Auth != (registry.AuthConfig{}) {
			t.Errorf("%s: the mirror got the credentials for the registry", r.Ref)
		}
	}
	for _, ref := range []string{"quay.io/app:1", "quay.io/app@" + manifest, "quay.io/app:1@" + manifest, id} {
		got, _, err := images.Status(t.Context(), ref, false)
		if err != nil || got.GetId() != id || fmt.Sprint(got.GetRepoTags(), got.GetRepoDigests()) != "[quay.io/app:1] [quay.io/app@"+manifest+"]" {
			t.Errorf("status of %s: %v, %v", ref, got, err)
		}
	}
	list, err := images.List(t.Context(), nil)
	if err != nil || len(list) != 1 || fmt.Sprint(list[0].GetRepoDigests()) != "[quay.io/app@"+manifest+"]" {
		t.Errorf("list %v, %v", list, err)
	}
	if got, err := images.Resolve(t.Context(), id, "quay.io/app:1"); err != nil || got.Ref != "quay.io/app@"+manifest {
		t.Errorf("a container's image_ref %q, %v", got.Ref, err)
	}
}

func TestMirrorFallsBackToTheRegistry(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		remote *enginetest.Remote // at the first mirror
		want   string             // what is pulled
	}{
		"no such image":     {nil, "m2.test/app@" + manifest},
		"denied":            {&enginetest.Remote{Allow: func(registry.AuthConfig) bool { return false }}, "m2.test/app@" + manifest},
		"unavailable":       {&enginetest.Remote{Status: 500, Error: "dial tcp: connection refused"}, "m2.test/app@" + manifest},
		"hangs":             {&enginetest.Remote{Stall: enginetest.Resolving}, "m2.test/app@" + manifest},
		"breaks off":        {&enginetest.Remote{Error: "unexpected EOF"}, "m2.test/app@" + manifest},
		"an invalid digest": {&enginetest.Remote{Claim: "sha256:../x"}, "m2.test/app@" + manifest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			images, e, _ := newMirroredWithin(t, deadlineOf(name), nil, "quay.io=m1.test", "quay.io=m2.test")
			if tt.remote != nil {
				e.Registry("m1.test/app:1", *tt.remote)
			}
			e.Registry("m2.test/app:1", enginetest.Remote{Digest: manifest})
			if _, err := images.Pull(t.Context(), "quay.io/app:1", "", nil, verify.Pod{}); err != nil {
				t.Fatal(err)
			}
			pulls := refs(e.Pulls())
			if got := pulls[len(pulls)-1]; got != tt.want {
				t.Errorf("pulled %q, want %s last", pulls, tt.want)
			}
		})
	}
	t.Run("all mirrors", func(t *testing.T) {
		t.Parallel()
		images, e, _ := newMirrored(t, nil, "quay.io=m1.test")
		e.Registry("m1.test/app:1", enginetest.Remote{Status: 500, Error: "x509: certificate signed by unknown authority"})
		e.Registry("quay.io/app:1", enginetest.Remote{Allow: func(a registry.AuthConfig) bool { return a.Username == "u" }})
		auth := &runtimeapi.AuthConfig{Username: "u", Password: "p"}
		if _, err := images.Pull(t.Context(), "quay.io/app:1", "", auth, verify.Pod{}); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(refs(e.Pulls())); got != "[quay.io/app:1]" {
			t.Errorf("pulled %s", got)
		}
		_, err := images.Pull(t.Context(), "quay.io/none:1", "", auth, verify.Pod{})
		if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "before that, mirror m1.test: ") {
			t.Errorf("nobody has it: %v, want NotFound and what the mirror said", err)
		}
		_, err = images.Pull(t.Context(), "quay.io/app:1", "", nil, verify.Pod{})
		if err == nil || !strings.Contains(err.Error(), "add m1.test to insecure-registries") {
			t.Errorf("a mirror with an unknown certificate: %v", err)
		}
	})
}

func TestMirroredImageIsPulledByItsDigest(t *testing.T) {
	t.Parallel()
	images, e, records := newMirrored(t, nil, "quay.io=m.test")
	e.Registry("m.test/app@"+manifest, enginetest.Remote{})
	id, err := images.Pull(t.Context(), "quay.io/app:7@"+manifest, "", nil, verify.Pod{})
	if err != nil {
		t.Fatal(err)
	}
	if len(e.Resolves()) != 0 {
		t.Errorf("the mirror was requested a digest that is known: %q", refs(e.Resolves()))
	}
	got, _, err := images.Status(t.Context(), "quay.io/app@"+manifest, false)
	if err != nil || got.GetId() != id || len(got.GetRepoTags()) != 0 || fmt.Sprint(got.GetRepoDigests()) != "[quay.io/app@"+manifest+"]" {
		t.Errorf("%v, %v", got, err)
	}
	if err := images.Remove(t.Context(), "quay.io/app@"+manifest); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(records); err != nil || len(entries) != 0 {
		t.Errorf("names of the removed image: %v, %v", entries, err)
	}
	if got, _, err := images.Status(t.Context(), "quay.io/app@"+manifest, false); err != nil || got != nil {
		t.Errorf("removed: %v, %v", got, err)
	}
}

func TestNamesOfImagesThatDockerRemovedAreForgotten(t *testing.T) {
	t.Parallel()
	images, e, records := newMirrored(t, nil, "quay.io=m.test")
	e.Registry("m.test/app:1", enginetest.Remote{Digest: manifest})
	id, err := images.Pull(t.Context(), "quay.io/app:1", "", nil, verify.Pod{})
	if err != nil {
		t.Fatal(err)
	}
	docker, err := e.Connect(t).Conn()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := docker.ImageRemove(t.Context(), id, dockerimage.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := images.List(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(records); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestPullIsVerified(t *testing.T) {
	t.Parallel()
	const script = `[ $BERTH_POD_NAMESPACE = good ] || { echo "$4 is not signed"; exit 1; }`
	images, e, _ := newMirrored(t, newVerifier(t, script), "quay.io=m.test")
	e.Registry("r.test/app:1", enginetest.Remote{Digest: manifest, Steps: 5, Pace: 100 * time.Millisecond})
	e.Registry("m.test/app:1", enginetest.Remote{Digest: manifest})
	for _, ref := range []string{"r.test/app:1", "r.test/app@" + manifest, "quay.io/app:1"} {
		// The good pod's pull must not serve the bad pod.
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				if _, err := images.Pull(t.Context(), ref, "", nil, verify.Pod{Namespace: "good"}); err != nil {
					t.Errorf("%s: %v", ref, err)
				}
			})
			all.Go(func() {
				_, err := images.Pull(t.Context(), ref, "", nil, verify.Pod{Namespace: "bad"})
				if err == nil || !strings.HasPrefix(err.Error(), "SignatureValidationFailed: ") || !strings.Contains(err.Error(), manifest+" is not signed") {
					t.Errorf("%s: %v, want SignatureValidationFailed", ref, err)
				}
			})
		}
		all.Wait()
		if !e.HasImage(ref) && !strings.HasPrefix(ref, "quay.io") {
			t.Errorf("%s is not on the node", ref)
		}
	}
	for _, ref := range refs(e.Pulls()) {
		if !strings.Contains(ref, "@"+manifest) {
			t.Errorf("pulled %s, want only what was verified", ref)
		}
	}
	if _, err := images.Pull(t.Context(), "r.test/none:1", "", nil, verify.Pod{Namespace: "good"}); !errdefs.IsNotFound(err) {
		t.Errorf("no such image: %v, want NotFound", err)
	}
}

// TestRefusedImageIsNotPulledFromElsewhere: a mirror that has another image than the registry is an error.
func TestRefusedImageIsNotPulledFromElsewhere(t *testing.T) {
	t.Parallel()
	images, e, _ := newMirrored(t, newVerifier(t, "exit 1"), "quay.io=m1.test", "quay.io=m2.test")
	for _, name := range []string{"m1.test/app:1", "m2.test/app:1", "quay.io/app:1"} {
		e.Registry(name, enginetest.Remote{})
	}
	_, err := images.Pull(t.Context(), "quay.io/app:1", "", nil, verify.Pod{})
	if err == nil || !strings.HasPrefix(err.Error(), "SignatureValidationFailed: ") || len(e.Pulls()) != 0 || len(e.Resolves()) != 1 {
		t.Errorf("%v; pulls %q, requests %q", err, refs(e.Pulls()), refs(e.Resolves()))
	}
}

func TestRegistryFailsBeforeVerification(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		remote enginetest.Remote
		ref    string
		check  func(error) bool
	}{
		"denied": {enginetest.Remote{Allow: func(registry.AuthConfig) bool { return false }}, "r.test/a:1", func(err error) bool {
			return !errdefs.IsNotFound(err) && !strings.HasPrefix(err.Error(), "RegistryUnavailable")
		}},
		"unavailable": {enginetest.Remote{Status: 500, Error: "Get https://r.test/v2/: dial tcp: lookup r.test: no such host"}, "r.test/a:1", isRegistryUnavailable},
		"hangs":       {enginetest.Remote{Stall: enginetest.Resolving}, "r.test/a:1", isRegistryUnavailable},
		"another digest": {enginetest.Remote{Claim: "sha256:" + strings.Repeat("9", 64), Digest: manifest}, "r.test/a@" + manifest, func(err error) bool {
			return strings.Contains(err.Error(), "under this digest")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			images, e, _ := newMirroredWithin(t, deadlineOf(name), newVerifier(t, "exit 0"))
			e.Registry("r.test/a:1", tt.remote)
			if _, err := images.Pull(t.Context(), tt.ref, "", nil, verify.Pod{}); err == nil || !tt.check(err) {
				t.Errorf("%v", err)
			}
			if len(e.Pulls()) != 0 {
				t.Errorf("pulled %q", refs(e.Pulls()))
			}
		})
	}
}

// deadlineOf returns the progress deadline for a test: that of others must not pass on a busy machine.
func deadlineOf(name string) time.Duration {
	if name == "hangs" {
		return slowStall
	}
	return time.Minute
}

func isRegistryUnavailable(err error) bool {
	return strings.HasPrefix(err.Error(), "RegistryUnavailable: ")
}

func TestCallerCanGiveUpDuringVerification(t *testing.T) {
	t.Parallel()
	images, e, _ := newMirrored(t, newVerifier(t, "sleep 600"))
	e.Registry("r.test/a:1", enginetest.Remote{})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := images.Pull(ctx, "r.test/a:1", "", nil, verify.Pod{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want DeadlineExceeded", err)
	}
}

// TestPauseImageIsVerified: one that is refused is replaced by the built-in image.
func TestPauseImageIsVerified(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	e.Registry("r.test/pause:1", enginetest.Remote{})
	images := newService(t, e, image.Config{PauseImage: func() string { return "r.test/pause:1" }, PullProgressTimeout: time.Minute, PullPolicy: image.PullPolicy{Verifier: newVerifier(t, "exit 1")}})
	if id, err := images.Pause(t.Context()); err != nil || id == "" || len(e.Pulls()) != 0 || len(e.Resolves()) != 1 {
		t.Errorf("%s, %v; pulls %q", id, err, refs(e.Pulls()))
	}
}

func TestSetPullPolicyReplacesMirrorsAndVerifier(t *testing.T) {
	t.Parallel()
	images, e, _ := newMirrored(t, newVerifier(t, "exit 1"), "quay.io=m.test")
	e.Registry("m.test/a:1", enginetest.Remote{})
	e.Registry("quay.io/a:1", enginetest.Remote{})
	if _, err := images.Pull(t.Context(), "quay.io/a:1", "", nil, verify.Pod{}); err == nil {
		t.Error("pulled")
	}
	images.SetPullPolicy(image.PullPolicy{})
	if _, err := images.Pull(t.Context(), "quay.io/a:1", "", nil, verify.Pod{}); err != nil || fmt.Sprint(refs(e.Pulls())) != "[quay.io/a:1]" {
		t.Errorf("%v; pulls %q", err, refs(e.Pulls()))
	}
}
