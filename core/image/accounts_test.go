package image

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

func TestAccounts(t *testing.T) {
	t.Parallel()
	const users, groups = "root:x:0:0::/:\napp:x:7:8::/:\n", "root:x:0:\napp:x:8:\n"
	whole := map[string]string{"/etc/passwd": users, "/etc/group": groups}
	for name, tt := range map[string]struct {
		disturb func(e *enginetest.Engine, prune func())
		fails   func(error) bool // the first try
		made    int
	}{
		"nobody comes between": {func(*enginetest.Engine, func()) {}, nil, 1},
		"pruned": {func(e *enginetest.Engine, prune func()) {
			e.On("GET /containers/{id}/archive", func() {
				e.Heal("GET /containers/{id}/archive")
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
		"no telling": {func(e *enginetest.Engine, _ func()) {
			e.FailOnce("GET /containers/{id}/archive", 404, 1)
			e.FailOnce("GET /containers/{id}/json", 500, 1)
		}, errdefs.IsInternal, 2},
	} {
		t.Run(name, func(t *testing.T) {
			e := enginetest.New(t)
			s := New(Config{}, e.Connect(t), slog.New(slog.DiscardHandler))
			id := e.AddImage(enginetest.Image{Files: whole}, "app")
			tt.disturb(e, prune(t, e))
			got, err := s.Accounts(t.Context(), id)
			if tt.fails != nil {
				if !tt.fails(err) {
					t.Errorf("%v", err)
				}
				e.Heal("GET /containers/{id}/archive")
				got, err = s.Accounts(t.Context(), id)
			}
			if err != nil || string(got.Passwd) != users || string(got.Group) != groups {
				t.Errorf("users %q, groups %q, %v", got.Passwd, got.Group, err)
			}
			if n := e.Calls("POST /containers/create"); n != tt.made {
				t.Errorf("%d containers made, want %d", n, tt.made)
			}
			if left := e.Len(); left > 0 {
				t.Errorf("%d containers left behind", left)
			}
		})
	}
}

func TestAnImageWithoutAccounts(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	s := New(Config{}, e.Connect(t), slog.New(slog.DiscardHandler))
	id := e.AddImage(enginetest.Image{}, "scratch")
	e.Fail("GET /containers/{id}/archive", 404)
	for range 2 {
		got, err := s.Accounts(t.Context(), id)
		if err != nil || len(got.Passwd)+len(got.Group) > 0 {
			t.Errorf("users %q, groups %q, %v; want none", got.Passwd, got.Group, err)
		}
	}
	if n := e.Calls("POST /containers/create"); n != 1 {
		t.Errorf("looked into %d times, want once", n)
	}
}

// links are n symbolic links, the first of which is first and the last of which leads to last.
func links(n int, first, last string) map[string]string {
	all := map[string]string{}
	for i := range n - 1 {
		next := fmt.Sprintf("/etc/link%d", i)
		all[first], first = next, next
	}
	all[first] = last
	return all
}

// TestAccountsFollowLinksAsDockerDoes has images whose /etc/passwd is behind links: Docker
// reads the file that they lead to, so no other may count here.
func TestAccountsFollowLinksAsDockerDoes(t *testing.T) {
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
			s := New(Config{}, e.Connect(t), slog.New(slog.DiscardHandler))
			got, err := s.Accounts(t.Context(), e.AddImage(img, "app"))
			if err != nil || string(got.Passwd) != right {
				t.Errorf("%q, %v; want %q", got.Passwd, err, right)
			}
		})
	}
	t.Run("to nothing", func(t *testing.T) {
		e := enginetest.New(t)
		s := New(Config{}, e.Connect(t), slog.New(slog.DiscardHandler))
		got, err := s.Accounts(t.Context(), e.AddImage(enginetest.Image{Links: links(2, "/etc/passwd", "/none")}, "app"))
		if err != nil || len(got.Passwd) > 0 {
			t.Errorf("%q, %v; want no users", got.Passwd, err)
		}
	})
}

// TestAccountsThatCannotBeReadAreAnError has files that are there and beyond a limit: taken for
// empty ones they would hide groups that Docker adds.
func TestAccountsThatCannotBeReadAreAnError(t *testing.T) {
	t.Parallel()
	for name, img := range map[string]enginetest.Image{
		"too large":      {Files: map[string]string{"/etc/group": strings.Repeat("#", maxAccountsFile) + "\napp:x:6:app\n"}},
		"a directory":    {Links: links(1, "/etc/passwd", "/dir"), Files: map[string]string{"/dir/file": ""}},
		"too many links": {Links: links(256, "/etc/passwd", "/usr/passwd"), Files: map[string]string{"/usr/passwd": "app:x:7:8::/:\n"}},
		"a loop":         {Links: map[string]string{"/etc/passwd": "passwd"}},
	} {
		t.Run(name, func(t *testing.T) {
			e := enginetest.New(t)
			s := New(Config{}, e.Connect(t), slog.New(slog.DiscardHandler))
			got, err := s.Accounts(t.Context(), e.AddImage(img, "app"))
			if err == nil {
				t.Errorf("%d and %d bytes, want an error", len(got.Passwd), len(got.Group))
			}
			// Docker opens what it is to archive, and a FIFO would hang it.
			if opened := e.Calls("GET /containers/{id}/archive"); name == "a directory" && opened > 0 {
				t.Error("what is not a regular file was opened")
			}
			if left := e.Len(); left > 0 {
				t.Errorf("%d containers left behind", left)
			}
		})
	}
}

// TestAccountsInMemoryAreBounded has more and larger files of users than memory is for.
func TestAccountsInMemoryAreBounded(t *testing.T) {
	e := enginetest.New(t)
	s := New(Config{}, e.Connect(t), slog.New(slog.DiscardHandler))
	id := func(i, size int) string {
		return e.AddImage(enginetest.Image{Files: map[string]string{"/etc/passwd": strings.Repeat("#", size)}}, fmt.Sprintf("app:%d", i))
	}
	read := func(id string) (made int) {
		t.Helper()
		before := e.Calls("POST /containers/create")
		if _, err := s.Accounts(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		return e.Calls("POST /containers/create") - before
	}
	small, large := id(0, 100), id(1, maxAccountsFile)
	if read(small) != 1 || read(small) != 0 {
		t.Error("a small one is not kept")
	}
	for range 2 {
		if read(large) != 1 {
			t.Error("a large one is kept")
		}
	}
	const images = 2 * maxCachedAccounts / (200 << 10)
	for i := range images {
		read(id(2+i, 200<<10))
		if read(small) != 0 {
			t.Fatalf("what is used all the time was evicted, after %d others", i)
		}
	}
	if s.accounts.size > maxCachedAccounts || s.accounts.size < maxCachedAccounts/2 {
		t.Errorf("%d bytes kept, want at most %d and no few", s.accounts.size, maxCachedAccounts)
	}
	// Gone with their images.
	if err := s.Remove(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.accounts.get(small); ok {
		t.Error("kept for an image that is gone")
	}
	sum := 0
	for _, entry := range s.accounts.entries {
		sum += entry.Value.(*cachedAccounts).size()
	}
	if sum != s.accounts.size || len(s.accounts.entries) != s.accounts.recent.Len() {
		t.Errorf("%d bytes and %d entries, counted as %d and %d", sum, len(s.accounts.entries), s.accounts.size, s.accounts.recent.Len())
	}
}

func TestTidy(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	s := New(Config{}, e.Connect(t), slog.New(slog.DiscardHandler))
	docker, err := s.docker.WaitConn(t.Context())
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
	// However often it tidies, what is being looked into stays.
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := s.tidy(ctx, docker); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	}()
	for _, id := range ids {
		if got, err := s.Accounts(t.Context(), id); err != nil || !strings.Contains(string(got.Passwd), "root") {
			t.Errorf("%q, %v", got.Passwd, err)
		}
	}
	stop()
	<-done
	if n := e.Calls("POST /containers/create"); n != 1+images {
		t.Errorf("%d containers made, want %d", n, 1+images)
	}
	if left := e.Len(); left > 0 {
		t.Errorf("%d containers left behind", left)
	}
}
