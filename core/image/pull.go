package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/registry"
	"github.com/docker/docker/pkg/jsonmessage"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/changes"
	"berth/core/engine"
	"berth/core/image/pullerror"
	"berth/core/image/pullprogress"
	"berth/core/image/verify"
	"berth/core/shorten"
	"berth/core/tracing"
)

// Pull pulls the image ref and returns its ID. handler must be a runtime handler that Docker
// has; images are the same for all handlers. Calls for the same image with the same
// credentials share one pull, which is cancelled once all of their contexts are done.
//
// The policy says from where it is pulled, and who must agree; pod is the pod that it is for, if
// that is known.
//
// An error whose text begins with RegistryUnavailable means that a retry may succeed, one with
// SignatureValidationFailed that the image was not allowed. An error of kind NotFound means that
// the registry has no such image.
func (s *Service) Pull(ctx context.Context, ref, handler string, auth *runtimeapi.AuthConfig, pod verify.Pod) (string, error) {
	return s.pullWith(ctx, ref, handler, auth, pod, s.NodeCredentials)
}

// pullWith is Pull; nodeCredentials overrides Config.NodeCredentials.
func (s *Service) pullWith(ctx context.Context, ref, handler string, given *runtimeapi.AuthConfig, pod verify.Pod, nodeCredentials bool) (_ string, err error) {
	if ref == "" {
		return "", fmt.Errorf("image reference must be set: %w", errdefs.ErrInvalidArgument)
	}
	if isID(ref) {
		return "", fmt.Errorf("image %q: an image ID cannot be pulled: %w", ref, errdefs.ErrInvalidArgument)
	}
	ctx, span := tracing.Start(ctx, "pull image", tracing.Image(ref))
	defer func() { span.End(err) }()
	docker, err := s.docker.Conn()
	if err != nil {
		return "", err
	}
	if _, err := s.Policy.Runtime(handler, docker.Features); err != nil {
		return "", err
	}
	auth, err := s.credentials.Credentials(ctx, ref, given, nodeCredentials)
	if err != nil {
		return "", err
	}
	header, err := registry.EncodeAuthConfig(auth)
	if err != nil {
		return "", err
	}
	ctx, pull := s.Progress.Join(ctx, ref+"\x00"+header, ref)
	id, err := s.pullFromSources(ctx, docker, &pullRequest{ref: ref, header: header, pod: pod, nodeCredentials: nodeCredentials, policy: *s.pullPolicy.Load()})
	progress := pull.Status()
	pull.Leave(pullResult(ctx, err))
	if err != nil && ctx.Err() != nil {
		return "", fmt.Errorf("pull image %q: %w: %v", ref, ctx.Err(), progress)
	}
	if err == nil {
		s.pins.origins.Record(ctx, id, ref)
	}
	return id, err
}

// upToDateStatus begins the last message of a pull that has changed nothing.
const upToDateStatus = "Status: Image is up to date"

// pullResult returns how a pull ended for a caller with that context.
func pullResult(ctx context.Context, err error) pullprogress.Result {
	switch {
	case err == nil:
		return pullprogress.Success
	case ctx.Err() != nil:
		return pullprogress.Canceled
	case pullerror.IsCausedBy(err, errStalled):
		return pullprogress.Stalled
	default:
		return pullprogress.Failure
	}
}

// errStalled is the cause of a pull that was cancelled for lack of progress.
var errStalled = errors.New("no progress")

// pull makes the Engine pull ref, and cancels that when the registry sends nothing for
// Config.PullProgressTimeout, the option image-pull-progress-deadline.
func (s *Service) pull(ctx context.Context, docker *engine.Conn, ref, header string) (string, error) {
	start, upToDate := time.Now(), false
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(s.PullProgressTimeout, func() { cancel(errStalled) })
	defer watchdog.Stop()

	defer s.cache.Invalidate(ref)
	attempt := pullprogress.FromContext(ctx).Begin(ref)
	body, err := docker.ImagePull(ctx, ref, image.PullOptions{RegistryAuth: header})
	if err == nil {
		err = readMessages(body, func(m jsonmessage.JSONMessage) {
			upToDate = upToDate || strings.HasPrefix(m.Status, upToDateStatus)
			switch changed, awaitingRegistry := attempt.Update(m); {
			case !changed:
			case awaitingRegistry:
				watchdog.Reset(s.PullProgressTimeout)
			default:
				watchdog.Stop()
			}
		})
		err = errors.Join(err, body.Close())
	}
	if err != nil {
		return "", s.pullFailure(ctx, ref, err)
	}
	watchdog.Stop() // what follows does not depend on the registry
	ctx, done := docker.WithRequestTimeout(ctx)
	defer done()
	// By the reference, because an image pulled by digest may have no tag.
	found, err := s.find(ctx, docker, ref, byHexPrefix)
	if err == nil && !upToDate { // else nothing has changed
		s.log.Info("image pulled", changes.Image(ref, found.ID), slog.Int64("bytes", found.Size), changes.Took(start))
	}
	return found.ID, err
}

// pullFailure returns the error of a pull or of a request to the registry, with its kind. ctx is that of
// the request.
func (s *Service) pullFailure(ctx context.Context, ref string, err error) error {
	switch {
	case errors.Is(context.Cause(ctx), errStalled):
		return pullerror.Unavailable(ref, fmt.Errorf("%w for %v: %v", errStalled, s.PullProgressTimeout, pullprogress.FromContext(ctx).Status()))
	case ctx.Err() != nil:
		return fmt.Errorf("pull image %q: %w", ref, ctx.Err())
	case engine.IsUnavailable(err) && !errdefs.IsUnavailable(err):
		// errdefs.IsUnavailable is about the registry: the Engine passes its status on.
		return fmt.Errorf("pull image %q: %w", ref, err)
	default:
		return pullerror.Classify(ref, err)
	}
}

const (
	// maxMessage bounds a progress message of a pull or a load, in bytes. Docker's own have
	// some hundred bytes, but an error quotes the response of the registry.
	maxMessage = 64 << 10
	// maxQuoted is how much of a longer message is quoted.
	maxQuoted = 2 << 10
)

// readMessages reads the Engine's progress messages and passes each to handle. It returns
// the error in them, if there is one: the HTTP status was sent before it occurred.
func readMessages(messages io.Reader, handle func(jsonmessage.JSONMessage)) error {
	limited := &io.LimitedReader{R: messages}
	for dec := json.NewDecoder(limited); ; {
		limited.N = maxMessage // besides what dec has buffered, which is less
		var m jsonmessage.JSONMessage
		switch err := dec.Decode(&m); {
		case err != nil && limited.N <= 0:
			start, err := io.ReadAll(io.LimitReader(dec.Buffered(), maxQuoted))
			if err != nil {
				return err
			}
			return fmt.Errorf("docker sent a message of more than %d bytes, which begins with %q", maxMessage, start)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case m.Error != nil && engine.ContainerdLost(m.Error.Message):
			// Docker is shutting down, or its containerd has died.
			return fmt.Errorf("%s: %w", shorten.Text(m.Error.Message), io.ErrUnexpectedEOF)
		case m.Error != nil:
			return shorten.Error(m.Error)
		}
		handle(m)
	}
}
