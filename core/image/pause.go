package image

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/pkg/jsonmessage"

	"berth/core/engine"
	"berth/core/pause"
)

const (
	// pausePullLimit is how long a pod waits for the pause image to be pulled
	// before the built-in one serves.
	pausePullLimit = 20 * time.Second
	// pausePullAgain is how long after a failed pull another is not tried: on a
	// node without a registry every pod would wait for it.
	pausePullAgain = 10 * time.Minute
)

// A pauseImage is the pause image as last found.
type pauseImage struct {
	mu     sync.Mutex // guards following, and held while the image is got
	conn   *engine.Conn
	id     string
	failed time.Time // when a pull last failed

	read sync.Mutex // guards known
	know string     // id, for those who must not wait
}

// Pause returns the ID of the image that sandboxes run: the configured one if
// it is there or can be pulled, else the one built in.
func (s *Service) Pause(ctx context.Context) (string, error) {
	docker, err := s.docker.Use()
	if err != nil {
		return "", err
	}
	p := &s.pause
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == docker && p.id != "" {
		return p.id, nil
	}
	id, err := s.getPause(ctx, docker)
	if err != nil {
		return "", err
	}
	p.conn, p.id = docker, id
	p.remember(id)
	return id, nil
}

func (p *pauseImage) remember(id string) {
	p.read.Lock()
	defer p.read.Unlock()
	p.know = id
}

// ForgetPause has the next Pause look for the image again.
func (s *Service) ForgetPause() {
	s.pause.mu.Lock()
	defer s.pause.mu.Unlock()
	s.pause.id = ""
}

// getPause finds, pulls or loads the pause image.
func (s *Service) getPause(ctx context.Context, docker *engine.Conn) (string, error) {
	found, err := s.find(ctx, docker, s.PauseImage)
	if err == nil {
		return found.ID, nil
	}
	if !errdefs.IsNotFound(err) {
		return "", err
	}
	if time.Since(s.pause.failed) > pausePullAgain {
		short, cancel := context.WithTimeout(ctx, pausePullLimit)
		id, err := s.pullWith(short, s.PauseImage, "", nil, true)
		cancel()
		if err == nil {
			return id, nil
		}
		if ctx.Err() != nil || engine.Away(err) {
			return "", err // which says nothing of the registry
		}
		s.pause.failed = time.Now()
		s.log.Info("the pause image cannot be pulled, the built-in one serves",
			slog.String("image", s.PauseImage), slog.String("built-in", pause.Ref), slog.Any("err", err))
	}
	if found, err = s.find(ctx, docker, pause.Ref); err == nil {
		return found.ID, nil
	}
	return s.loadPause(ctx, docker)
}

// loadPause gives the Engine the built-in image.
func (s *Service) loadPause(ctx context.Context, docker *engine.Conn) (string, error) {
	archive, err := pause.Archive(runtime.GOARCH)
	if err != nil {
		return "", fmt.Errorf("pause image %s is not here and cannot be pulled: %w", s.PauseImage, err)
	}
	resp, err := docker.ImageLoad(ctx, bytes.NewReader(archive))
	if err != nil {
		return "", fmt.Errorf("load the built-in pause image: %w", err)
	}
	defer resp.Body.Close()
	if err := follow(resp.Body, func(jsonmessage.JSONMessage) {}); err != nil {
		return "", fmt.Errorf("load the built-in pause image: %w", err)
	}
	found, err := s.find(ctx, docker, pause.Ref)
	return found.ID, err
}

// pinned reports whether an image must never be collected: sandboxes run it.
func (s *Service) pinned(id string, tags, digests []string) bool {
	s.pause.read.Lock()
	known := s.pause.know
	s.pause.read.Unlock()
	if id == known || isID(s.PauseImage) && strings.TrimPrefix(id, "sha256:") == strings.TrimPrefix(s.PauseImage, "sha256:") {
		return true
	}
	return slices.ContainsFunc(slices.Concat(tags, digests), func(name string) bool {
		return sameName(name, s.PauseImage) || sameName(name, pause.Ref)
	})
}

// sameName reports whether two names of images mean the same: one may be short for
// the other, and what has a digest needs no tag.
func sameName(a, b string) bool {
	one, err := reference.ParseDockerRef(a)
	if err != nil {
		return false
	}
	other, err := reference.ParseDockerRef(b)
	return err == nil && one.String() == other.String()
}
