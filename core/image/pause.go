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
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/pkg/jsonmessage"

	"berth/core/engine"
	"berth/core/image/verify"
	"berth/core/pause"
	"berth/core/singleflight"
)

const (
	// pausePullTimeout is how long a pod waits for the pull of the pause image before the
	// built-in one is used: the kubelet's own timeout is 2 minutes by default.
	pausePullTimeout = 20 * time.Second
	// pausePullRetryInterval is how long no pull is tried after one has failed: on a node
	// without a registry every pod would wait for its timeout.
	pausePullRetryInterval = 10 * time.Minute
)

// A pauseImage is what is known of the pause image.
type pauseImage struct {
	lookups singleflight.Group[string] // by connection and configured image; the value is an image ID

	mu         sync.Mutex // guards following
	conn       *engine.Conn
	ref        string    // the configured image that id was looked up for
	id         string    // the image on conn; "" if it must be looked up
	lastID     string    // the last id that was set
	failedRef  string    // the configured image whose pull has failed
	pullFailed time.Time // when that was
}

// Pause returns the ID of the image that pause containers run: the configured image if it is
// on the node or can be pulled, otherwise the built-in one.
func (s *Service) Pause(ctx context.Context) (string, error) {
	docker, err := s.docker.Conn()
	if err != nil {
		return "", err
	}
	p, ref := &s.pause, s.PauseImage()
	p.mu.Lock()
	current, id := p.conn == docker && p.ref == ref, p.id
	p.mu.Unlock()
	if current && id != "" {
		return id, nil
	}
	return p.lookups.Do(ctx, fmt.Sprintf("%p %s", docker, ref), func(ctx context.Context) (string, error) {
		id, err := s.ensurePause(ctx, docker, ref)
		if err != nil {
			return "", err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.conn, p.ref, p.id, p.lastID = docker, ref, id, id
		return id, nil
	})
}

// ForgetPause makes the next call of Pause look up the image again.
func (s *Service) ForgetPause() {
	s.pause.mu.Lock()
	defer s.pause.mu.Unlock()
	s.pause.id = ""
}

// ensurePause finds, pulls or loads the pause image ref and returns its ID.
func (s *Service) ensurePause(ctx context.Context, docker *engine.Conn, ref string) (string, error) {
	if !sameName(ref, pause.Ref) {
		found, err := s.findPause(ctx, docker, ref)
		if err == nil {
			return found.ID, nil
		}
		if !errdefs.IsNotFound(err) {
			return "", err
		}
		id, err := s.pullPause(ctx, ref)
		if id != "" || err != nil {
			return id, err
		}
	}
	switch found, err := s.findPause(ctx, docker, pause.Ref); {
	case errdefs.IsNotFound(err):
	case err != nil:
		return "", err
	case pause.IsBuiltin(found, runtime.GOARCH):
		return found.ID, nil
	default:
		s.log.Warn("another image has the name of the built-in pause image, loading the built-in one again",
			slog.String("image", pause.Ref), slog.String("id", found.ID))
	}
	return s.loadPause(ctx, docker, ref)
}

// findPause is find for a pause image, with a timeout.
func (s *Service) findPause(ctx context.Context, docker *engine.Conn, ref string) (image.InspectResponse, error) {
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	return s.find(ctx, docker, ref, byDigestPrefix)
}

// pullPause pulls the configured pause image ref. It returns "" if the image cannot be pulled,
// and an error if the pull failed for a reason other than the registry.
func (s *Service) pullPause(ctx context.Context, ref string) (string, error) {
	s.pause.mu.Lock()
	failed, at := s.pause.failedRef == ref, s.pause.pullFailed
	s.pause.mu.Unlock()
	if failed && time.Since(at) <= pausePullRetryInterval {
		return "", nil
	}
	bounded, cancel := context.WithTimeout(ctx, pausePullTimeout)
	defer cancel()
	id, err := s.pullWith(bounded, ref, "", nil, verify.Pod{}, true)
	if err == nil {
		return id, nil
	}
	if ctx.Err() != nil || engine.OutcomeUnknown(err) {
		return "", err
	}
	s.pause.mu.Lock()
	s.pause.failedRef, s.pause.pullFailed = ref, time.Now()
	s.pause.mu.Unlock()
	s.log.Info("pause image cannot be pulled, using the built-in one",
		slog.String("image", ref), slog.String("built-in", pause.Ref), slog.Any("err", err))
	return "", nil
}

// loadPause loads the built-in image into the Engine in place of ref. If another image has its
// name, that image loses it.
func (s *Service) loadPause(ctx context.Context, docker *engine.Conn, ref string) (string, error) {
	archive, err := pause.Archive(runtime.GOARCH)
	if err != nil {
		return "", fmt.Errorf("pause image %s is not on the node and cannot be pulled: %w", ref, err)
	}
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	defer s.cache.Invalidate(pause.Ref)
	resp, err := docker.ImageLoad(ctx, bytes.NewReader(archive))
	if err != nil {
		return "", fmt.Errorf("load the built-in pause image: %w", err)
	}
	defer resp.Body.Close()
	if err := readMessages(resp.Body, func(jsonmessage.JSONMessage) {}); err != nil {
		return "", fmt.Errorf("load the built-in pause image: %w", err)
	}
	found, err := s.find(ctx, docker, pause.Ref, byHexPrefix)
	if err != nil {
		return "", err
	}
	if !pause.IsBuiltin(found, runtime.GOARCH) {
		return "", fmt.Errorf("image %s was loaded and is not the built-in pause image: %w", found.ID, errdefs.ErrFailedPrecondition)
	}
	return found.ID, nil
}

// last returns the ID that Pause returned last.
func (p *pauseImage) last() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastID
}

// isPause reports whether pause containers run an image.
func (s *Service) isPause(id string, tags, digests []string) bool {
	lastID, ref := s.pause.last(), s.PauseImage()
	if id == lastID || isID(ref) && strings.TrimPrefix(id, algorithm) == strings.TrimPrefix(ref, algorithm) {
		return true
	}
	return slices.ContainsFunc(slices.Concat(tags, digests), func(name string) bool {
		return sameName(name, ref) || sameName(name, pause.Ref)
	})
}
