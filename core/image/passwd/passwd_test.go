package passwd

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	"berth/core/engine"
	"berth/core/engine/enginetest"
)

// prune removes all containers that do not run, as docker container prune does.
func prune(t *testing.T, e *enginetest.Engine) func() {
	docker := e.Client(t)
	return func() {
		list, err := docker.ContainerList(context.WithoutCancel(t.Context()), container.ListOptions{All: true})
		for _, row := range list {
			if err == nil {
				err = docker.ContainerRemove(context.WithoutCancel(t.Context()), row.ID, container.RemoveOptions{})
			}
		}
		if err != nil {
			t.Error(err)
		}
	}
}

func TestPasswdFilesSurviveAPruneOfTheHelper(t *testing.T) {
	t.Parallel()
	const users, groups = "root:x:0:0::/:\napp:x:7:8::/:\n", "root:x:0:\napp:x:8:\n"
	whole := map[string]string{"/etc/passwd": users, "/etc/group": groups}
	for name, tt := range map[string]struct {
		disturb func(e *enginetest.Engine, prune func())
		fails   func(error) bool // the first try
		made    int
	}{
		"undisturbed": {func(*enginetest.Engine, func()) {}, nil, 1},
		"pruned": {func(e *enginetest.Engine, prune func()) {
			e.On("GET /containers/{id}/archive", func() {
				e.ClearFaults("GET /containers/{id}/archive")
				prune()
			})
		}, nil, 2},
		"pruned between the files": {func(e *enginetest.Engine, prune func()) {
			read := 0
			e.On("GET /containers/{id}/archive", func() {
				if read++; read == 2 {
					prune()
				}
			})
		}, nil, 2},
		"pruned again and again": {func(e *enginetest.Engine, prune func()) {
			e.On("GET /containers/{id}/archive", prune)
		}, errdefs.IsNotFound, 3},
		"unknown what was not found": {func(e *enginetest.Engine, _ func()) {
			e.FailOnce("GET /containers/{id}/archive", 404, 1)
			e.FailOnce("GET /containers/{id}/json", 500, 1)
		}, errdefs.IsInternal, 2},
	} {
		t.Run(name, func(t *testing.T) {
			e := enginetest.New(t)
			r := New(e.Connect(t), slog.New(slog.DiscardHandler))
			id := e.AddImage(enginetest.Image{Files: whole}, "app")
			tt.disturb(e, prune(t, e))
			got, err := r.Files(t.Context(), id)
			if tt.fails != nil {
				if !tt.fails(err) {
					t.Errorf("%v", err)
				}
				e.ClearFaults("GET /containers/{id}/archive")
				got, err = r.Files(t.Context(), id)
			}
			if err != nil || string(got.Passwd) != users || string(got.Group) != groups {
				t.Errorf("users %q, groups %q, %v", got.Passwd, got.Group, err)
			}
			if n := e.Calls("POST /containers/create"); n != tt.made {
				t.Errorf("%d helpers created, want %d", n, tt.made)
			}
			if left := e.Len(); left > 0 {
				t.Errorf("%d containers left behind", left)
			}
		})
	}
}

func TestImageWithoutPasswdFilesIsReadOnce(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	r := New(e.Connect(t), slog.New(slog.DiscardHandler))
	id := e.AddImage(enginetest.Image{}, "scratch")
	e.Fail("GET /containers/{id}/archive", 404)
	for range 2 {
		got, err := r.Files(t.Context(), id)
		if err != nil || len(got.Passwd)+len(got.Group) > 0 {
			t.Errorf("users %q, groups %q, %v; want none", got.Passwd, got.Group, err)
		}
	}
	if n := e.Calls("POST /containers/create"); n != 1 {
		t.Errorf("%d helpers, want one", n)
	}
}

// links returns a chain of n symbolic links from first to last.
func links(n int, first, last string) map[string]string {
	all := map[string]string{}
	for i := range n - 1 {
		next := fmt.Sprintf("/etc/link%d", i)
		all[first], first = next, next
	}
	all[first] = last
	return all
}

// When a container starts, Docker reads the file that the symbolic links of the image lead to.
func TestPasswdFilesFollowLinksAsDockerDoes(t *testing.T) {
	t.Parallel()
	const right, wrong = "app:x:7:8::/:\n", "app:x:1:1::/:\n"
	for name, img := range map[string]enginetest.Image{
		"one":            {Links: links(1, "/etc/passwd", "/usr/passwd"), Files: map[string]string{"/usr/passwd": right}},
		"a relative one": {Links: links(1, "/etc/passwd", "../usr/passwd"), Files: map[string]string{"/usr/passwd": right}},
		"six":            {Links: links(6, "/etc/passwd", "/usr/passwd"), Files: map[string]string{"/usr/passwd": right}},
		"255":            {Links: links(255, "/etc/passwd", "/usr/passwd"), Files: map[string]string{"/usr/passwd": right}},
		"the directory":  {Links: map[string]string{"/etc": "usr/etc"}, Files: map[string]string{"/usr/etc/passwd": right}},
		"back out of a linked directory": {
			Links: map[string]string{"/etc": "/usr/etc", "/usr/etc/passwd": "../passwd"},
			Files: map[string]string{"/usr/passwd": right, "/passwd": wrong},
		},
		"out of the root": {Links: links(1, "/etc/passwd", "../../../usr/passwd"), Files: map[string]string{"/usr/passwd": right}},
	} {
		t.Run(name, func(t *testing.T) {
			e := enginetest.New(t)
			r := New(e.Connect(t), slog.New(slog.DiscardHandler))
			got, err := r.Files(t.Context(), e.AddImage(img, "app"))
			if err != nil || string(got.Passwd) != right {
				t.Errorf("%q, %v; want %q", got.Passwd, err, right)
			}
		})
	}
	t.Run("to a missing file", func(t *testing.T) {
		e := enginetest.New(t)
		r := New(e.Connect(t), slog.New(slog.DiscardHandler))
		got, err := r.Files(t.Context(), e.AddImage(enginetest.Image{Links: links(2, "/etc/passwd", "/none")}, "app"))
		if err != nil || len(got.Passwd) > 0 {
			t.Errorf("%q, %v; want no users", got.Passwd, err)
		}
	})
}

// A file that cannot be read must not be treated as empty: Docker would add groups from it.
func TestUnreadablePasswdFilesAreAnError(t *testing.T) {
	t.Parallel()
	for name, img := range map[string]enginetest.Image{
		"too large":      {Files: map[string]string{"/etc/group": strings.Repeat("#", maxFile) + "\napp:x:6:app\n"}},
		"a directory":    {Links: links(1, "/etc/passwd", "/dir"), Files: map[string]string{"/dir/file": ""}},
		"too many links": {Links: links(256, "/etc/passwd", "/usr/passwd"), Files: map[string]string{"/usr/passwd": "app:x:7:8::/:\n"}},
		"a loop":         {Links: map[string]string{"/etc/passwd": "passwd"}},
	} {
		t.Run(name, func(t *testing.T) {
			e := enginetest.New(t)
			r := New(e.Connect(t), slog.New(slog.DiscardHandler))
			got, err := r.Files(t.Context(), e.AddImage(img, "app"))
			if err == nil {
				t.Errorf("%d and %d bytes, want an error", len(got.Passwd), len(got.Group))
			}
			// Docker opens a file to archive it, and would hang on a FIFO.
			if opened := e.Calls("GET /containers/{id}/archive"); name == "a directory" && opened > 0 {
				t.Error("opened, although it is not a regular file")
			}
			if left := e.Len(); left > 0 {
				t.Errorf("%d containers left behind", left)
			}
		})
	}
}

func TestPasswdCacheIsBoundedAndEvictsTheLeastRecentlyUsed(t *testing.T) {
	e := enginetest.New(t)
	r := New(e.Connect(t), slog.New(slog.DiscardHandler))
	id := func(i, size int) string {
		return e.AddImage(enginetest.Image{Files: map[string]string{"/etc/passwd": strings.Repeat("#", size)}}, fmt.Sprintf("app:%d", i))
	}
	helpersFor := func(id string) (created int) {
		t.Helper()
		before := e.Calls("POST /containers/create")
		if _, err := r.Files(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		return e.Calls("POST /containers/create") - before
	}
	small, large := id(0, 100), id(1, maxFile)
	if helpersFor(small) != 1 || helpersFor(small) != 0 {
		t.Error("a small entry is not cached")
	}
	for range 2 {
		if helpersFor(large) != 1 {
			t.Error("a large entry is cached")
		}
	}
	const images = 2 * maxCache / (200 << 10)
	for i := range images {
		helpersFor(id(2+i, 200<<10))
		if helpersFor(small) != 0 {
			t.Fatalf("the most recently used entry was evicted after %d others", i)
		}
	}
	if r.cached.size > maxCache || r.cached.size < maxCache/2 {
		t.Errorf("%d bytes cached, want at most %d and at least half of that", r.cached.size, maxCache)
	}
	// Entries of removed images are removed.
	r.Retain(map[string]bool{large: true})
	if _, ok := r.cached.get(small); ok {
		t.Error("cached for a removed image")
	}
	sum := 0
	for _, element := range r.cached.entries {
		sum += element.Value.(*entry).size()
	}
	if sum != r.cached.size || len(r.cached.entries) != r.cached.recent.Len() {
		t.Errorf("%d bytes and %d entries, counted as %d and %d", sum, len(r.cached.entries), r.cached.size, r.cached.recent.Len())
	}
}

func TestGCKeepsHelpersInUse(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	r := New(e.Connect(t), slog.New(slog.DiscardHandler))
	docker, err := r.docker.WaitConn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const images = 40
	ids := make([]string, images)
	for i := range ids {
		ids[i] = e.AddImage(enginetest.Image{}, fmt.Sprintf("app:%d", i))
	}
	if _, err := docker.CreateHelper(t.Context(), ids[0], engine.ReadHelper, rand.Text()); err != nil {
		t.Fatal(err)
	}
	// Collects all the time while the helpers are in use.
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := r.collectHelpers(ctx, docker); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	}()
	for _, id := range ids {
		if got, err := r.Files(t.Context(), id); err != nil || !strings.Contains(string(got.Passwd), "root") {
			t.Errorf("%q, %v", got.Passwd, err)
		}
	}
	stop()
	<-done
	if n := e.Calls("POST /containers/create"); n != 1+images {
		t.Errorf("%d helpers created, want %d", n, 1+images)
	}
	if left := e.Len(); left > 0 {
		t.Errorf("%d containers left behind", left)
	}
}
