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
	"github.com/docker/docker/api/types/image"
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
	flights flights // by connection

	mu     sync.Mutex // guards following
	conn   *engine.Conn
	id     string    // on conn; "" if it is to be looked for
	last   string    // the last id that was not ""
	failed time.Time // when a pull last failed
}

// Pause returns the ID of the image that sandboxes run: the configured one if
// it is there or can be pulled, else the one built in.
func (s *Service) Pause(ctx context.Context) (string, error) {
	docker, err := s.docker.Conn()
	if err != nil {
		return "", err
	}
	p := &s.pause
	p.mu.Lock()
	conn, id := p.conn, p.id
	p.mu.Unlock()
	if conn == docker && id != "" {
		return id, nil
	}
	// Shared, so that many pods at once make one pull.
	return p.flights.do(ctx, fmt.Sprintf("%p", docker), func(ctx context.Context) (string, error) {
		id, err := s.getPause(ctx, docker)
		if err != nil {
			return "", err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.conn, p.id, p.last = docker, id, id
		return id, nil
	})
}

// ForgetPause has the next Pause look for the image again.
func (s *Service) ForgetPause() {
	s.pause.mu.Lock()
	defer s.pause.mu.Unlock()
	s.pause.id = ""
}

// getPause finds, pulls or loads the pause image.
func (s *Service) getPause(ctx context.Context, docker *engine.Conn) (string, error) {
	if !sameName(s.PauseImage, pause.Ref) {
		found, err := s.findShort(ctx, docker, s.PauseImage)
		if err == nil {
			return found.ID, nil
		}
		if !errdefs.IsNotFound(err) {
			return "", err
		}
		id, err := s.pullPause(ctx)
		if id != "" || err != nil {
			return id, err
		}
	}
	switch found, err := s.findShort(ctx, docker, pause.Ref); {
	case errdefs.IsNotFound(err):
	case err != nil:
		return "", err
	case pause.Is(found, runtime.GOARCH):
		return found.ID, nil
	default:
		s.log.Warn("another image has the name of the built-in pause image, which is loaded again",
			slog.String("image", pause.Ref), slog.String("id", found.ID))
	}
	return s.loadPause(ctx, docker)
}

// findShort is find for a pause image, with a deadline.
func (s *Service) findShort(ctx context.Context, docker *engine.Conn, ref string) (image.InspectResponse, error) {
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	return s.find(ctx, docker, ref, byDigest)
}

// pullPause pulls the configured pause image. It returns "" if that cannot be had, and an
// error if it is unknown whether it can.
func (s *Service) pullPause(ctx context.Context) (string, error) {
	s.pause.mu.Lock()
	failed := s.pause.failed
	s.pause.mu.Unlock()
	if time.Since(failed) <= pausePullAgain {
		return "", nil
	}
	short, cancel := context.WithTimeout(ctx, pausePullLimit)
	defer cancel()
	id, err := s.pullWith(short, s.PauseImage, "", nil, true)
	if err == nil {
		return id, nil
	}
	if ctx.Err() != nil || engine.OutcomeUnknown(err) {
		return "", err // which says nothing of the registry
	}
	s.pause.mu.Lock()
	s.pause.failed = time.Now()
	s.pause.mu.Unlock()
	s.log.Info("the pause image cannot be pulled, the built-in one serves",
		slog.String("image", s.PauseImage), slog.String("built-in", pause.Ref), slog.Any("err", err))
	return "", nil
}

// loadPause gives the Engine the built-in image. Another image that has its name loses it.
func (s *Service) loadPause(ctx context.Context, docker *engine.Conn) (string, error) {
	archive, err := pause.Archive(runtime.GOARCH)
	if err != nil {
		return "", fmt.Errorf("pause image %s is not here and cannot be pulled: %w", s.PauseImage, err)
	}
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	resp, err := docker.ImageLoad(ctx, bytes.NewReader(archive))
	if err != nil {
		return "", fmt.Errorf("load the built-in pause image: %w", err)
	}
	defer resp.Body.Close()
	if err := follow(resp.Body, func(jsonmessage.JSONMessage) {}); err != nil {
		return "", fmt.Errorf("load the built-in pause image: %w", err)
	}
	found, err := s.find(ctx, docker, pause.Ref, byDigits)
	if err != nil {
		return "", err
	}
	if !pause.Is(found, runtime.GOARCH) {
		return "", fmt.Errorf("image %s, just loaded, is not the built-in pause image: %w", found.ID, errdefs.ErrFailedPrecondition)
	}
	return found.ID, nil
}

// pinned reports whether an image must never be collected: sandboxes run it.
func (s *Service) pinned(id string, tags, digests []string) bool {
	s.pause.mu.Lock()
	known := s.pause.last
	s.pause.mu.Unlock()
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
