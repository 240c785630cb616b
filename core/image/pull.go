package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/registry"
	"github.com/docker/docker/pkg/jsonmessage"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/todocker"
)

// Pull brings the image ref to the node, for a runtime handler that Docker has,
// and returns its ID: images are the same for all handlers. Calls for the same
// image with the same credentials share one pull, which ends early only when
// all of them have hung up.
//
// An error that begins with RegistryUnavailable tells that another try may
// succeed; NotFound, that there is no such image.
func (s *Service) Pull(ctx context.Context, ref, handler string, given *runtimeapi.AuthConfig) (string, error) {
	return s.pullWith(ctx, ref, handler, given, s.NodeCredentials)
}

// pullWith is Pull, with the credentials of the node or without.
func (s *Service) pullWith(ctx context.Context, ref, handler string, given *runtimeapi.AuthConfig, node bool) (string, error) {
	if ref == "" {
		return "", fmt.Errorf("no image named: %w", errdefs.ErrInvalidArgument)
	}
	docker, err := s.docker.Conn()
	if err != nil {
		return "", err
	}
	if _, err := todocker.Runtime(handler, docker.Features); err != nil {
		return "", err
	}
	auth, err := s.credentials(ctx, ref, given, node)
	if err != nil {
		return "", err
	}
	header, err := registry.EncodeAuthConfig(auth)
	if err != nil {
		return "", err
	}
	id, err := s.pulls.do(ctx, ref+"\x00"+header, func(ctx context.Context) (string, error) {
		return s.pull(ctx, docker, ref, header)
	})
	if err != nil && ctx.Err() != nil {
		return "", fmt.Errorf("pull image %q: %w", ref, ctx.Err())
	}
	return id, err
}

// errStalled is the cause of a pull that was given up.
var errStalled = errors.New("no progress")

// pull has the Engine pull ref, and gives up when nothing comes from the registry
// any more.
func (s *Service) pull(ctx context.Context, docker *engine.Conn, ref, header string) (string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(s.PullProgress, func() { cancel(errStalled) })
	defer watchdog.Stop()

	answer, err := docker.ImagePull(ctx, ref, image.PullOptions{RegistryAuth: header})
	if err == nil {
		layers := progress{}
		err = follow(answer, func(m jsonmessage.JSONMessage) {
			switch {
			case !layers.note(m):
			case layers.owed():
				watchdog.Reset(s.PullProgress)
			default:
				watchdog.Stop()
			}
		})
		err = errors.Join(err, answer.Close())
	}
	if err != nil {
		if errors.Is(context.Cause(ctx), errStalled) {
			return "", &pullError{ref, fmt.Errorf("no progress for %v", s.PullProgress), true}
		}
		if ctx.Err() != nil {
			return "", fmt.Errorf("pull image %q: %w", ref, ctx.Err())
		}
		// A registry that is Unavailable is no Engine that is away.
		if engine.IsUnavailable(err) && !errdefs.IsUnavailable(err) {
			return "", fmt.Errorf("pull image %q: %w", ref, err)
		}
		return "", pullFailure(ref, err)
	}
	ctx, done := docker.WithRequestTimeout(ctx)
	defer done()
	// By what was pulled: the image of a digest may have no tag.
	found, err := s.find(ctx, docker, ref, byDigits)
	return found.ID, err
}

const (
	// maxMessage is the longest message about the progress of a pull or a load that is read.
	// Those of Docker have some hundred bytes, but one about an error quotes what the
	// registry has answered, whatever that is.
	maxMessage = 64 << 10
	// quoted is how much is told of a longer one.
	quoted = 2 << 10
)

// follow reads an Engine's progress messages to the end, hands on each, and
// returns the error that they tell of, for the answer itself began well.
func follow(messages io.Reader, told func(jsonmessage.JSONMessage)) error {
	limited := &io.LimitedReader{R: messages}
	for dec := json.NewDecoder(limited); ; {
		limited.N = maxMessage // what dec has read ahead is less than that
		var m jsonmessage.JSONMessage
		switch err := dec.Decode(&m); {
		case err != nil && limited.N <= 0:
			begin, err := io.ReadAll(io.LimitReader(dec.Buffered(), quoted))
			if err != nil {
				return err
			}
			return fmt.Errorf("docker sent a message of more than %d bytes, which begins with %q", maxMessage, begin)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case m.Error != nil && engine.ContainerdLost(m.Error.Message):
			// Docker shuts down, or its containerd has died: it broke the work off.
			return fmt.Errorf("%s: %w", engine.Shorten(m.Error.Message), io.ErrUnexpectedEOF)
		case m.Error != nil:
			return engine.ShortenError(m.Error)
		}
		told(m)
	}
}

// A pullError is a pull that the registry, not the Engine, made fail.
type pullError struct {
	ref  string
	err  error
	away bool // the registry could not be reached or is not well
}

// Error begins with the word that the kubelet shows as the reason.
func (e *pullError) Error() string {
	text := fmt.Sprintf("pull image %q: %v", e.ref, e.err)
	if e.away {
		return "RegistryUnavailable: " + text
	}
	return text
}

// pullFailure sorts the ways a pull can fail. The Engine tells of the registry's
// answers in words alone, so the kind is taken from the text.
func pullFailure(ref string, err error) error {
	err = engine.ShortenError(err)
	text := err.Error()
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(text, w) {
				return true
			}
		}
		return false
	}
	switch {
	case has("denied", "unauthorized", "authentication required", "no basic auth credentials"):
		// Engines answer 404 here, too. The kubelet shows the text alone if the code
		// is Unknown, and the log of berthd has it.
		return &pullError{ref, err, false}
	case errdefs.IsNotFound(err), errdefs.IsInvalidArgument(err):
		return fmt.Errorf("pull image %q: %w", ref, err)
	case has("manifest unknown", "not found", "name unknown", "does not exist"):
		return fmt.Errorf("pull image %q: %w: %w", ref, err, errdefs.ErrNotFound)
	case errdefs.IsUnavailable(err), has("toomanyrequests", "too many requests", "Too Many Requests", "rate limit",
		"502 Bad Gateway", "503 Service", "504 Gateway", "500 Internal Server Error", "received unexpected HTTP status: 5",
		"dial tcp", "lookup ", "i/o timeout", "TLS handshake", "connection re", "Client.Timeout", "context deadline exceeded", "server gave HTTP response", "x509:", "EOF"):
		return &pullError{ref, err, true}
	default:
		return &pullError{ref, err, false}
	}
}
