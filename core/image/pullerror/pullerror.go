// Package pullerror has the errors of pulls, with the kinds and words that the kubelet knows. It finds
// them in the texts that registries send.
package pullerror

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"berth/core/shorten"
)

// A failure is an error of a pull for which the registry, not the Engine, is the reason. It has no kind of
// its own: code Unknown, for which the kubelet shows the text alone and berthd logs it.
type failure struct {
	ref         string
	err         error
	unavailable bool
}

// New returns the error of a pull of ref that a retry will not remove.
func New(ref string, err error) error { return &failure{ref, err, false} }

// Unavailable returns the error of a pull of ref whose registry could not be reached, or had a temporary
// error.
func Unavailable(ref string, err error) error { return &failure{ref, err, true} }

// IsCausedBy reports whether err is of New or Unavailable, with that cause.
func IsCausedBy(err, cause error) bool {
	var f *failure
	return errors.As(err, &f) && errors.Is(f.err, cause)
}

// Error begins with the word that the kubelet uses as the reason (ErrRegistryUnavailable in
// k8s.io/cri-api/pkg/errors).
func (e *failure) Error() string {
	text := fmt.Sprintf("pull image %q: %v", e.ref, e.err)
	if e.unavailable {
		return "RegistryUnavailable: " + text
	}
	return text
}

// A refusal is the error of a pull that the image verifiers do not allow.
type refusal struct {
	ref, digest string
	err         error
}

// Refused returns the error of a pull of ref that the image verifiers do not allow.
func Refused(ref, digest string, err error) error { return &refusal{ref, digest, err} }

// IsRefused reports whether err is of Refused.
func IsRefused(err error) bool { return errors.As(err, new(*refusal)) }

// Error begins with the word that the kubelet uses as the reason (ErrSignatureValidationFailed in
// k8s.io/cri-api/pkg/errors).
func (e *refusal) Error() string {
	return fmt.Sprintf("SignatureValidationFailed: image %q with digest %s: %s", e.ref, e.digest, shorten.Text(e.err.Error()))
}

// Texts in errors of a pull. Docker reports the responses of registries as text only.
var (
	deniedTexts = []string{"denied", "unauthorized", "authentication required", "no basic auth credentials"}

	notFoundTexts = []string{"manifest unknown", "not found", "name unknown", "does not exist"}

	unavailableTexts = []string{
		"toomanyrequests", "too many requests", "Too Many Requests", "rate limit",
		"502 Bad Gateway", "503 Service", "504 Gateway", "500 Internal Server Error", "received unexpected HTTP status: 5",
		"dial tcp", "lookup ", "i/o timeout", "TLS handshake", "connection re", "Client.Timeout", "context deadline exceeded",
		"server gave HTTP response", "x509:", "EOF",
	}
)

// Classify gives the error of a pull its kind.
func Classify(ref string, err error) error {
	err = shorten.Error(err)
	text := err.Error()
	contains := func(substrings []string) bool {
		for _, s := range substrings {
			if strings.Contains(text, s) {
				return true
			}
		}
		return false
	}
	switch {
	case contains(deniedTexts):
		// Docker returns status 404 for some of these.
		return New(ref, err)
	case errdefs.IsNotFound(err), errdefs.IsInvalidArgument(err):
		return fmt.Errorf("pull image %q: %w", ref, err)
	case contains(notFoundTexts):
		return fmt.Errorf("pull image %q: %w: %w", ref, err, errdefs.ErrNotFound)
	case errdefs.IsUnavailable(err), contains(unavailableTexts):
		return Unavailable(ref, err)
	default:
		return New(ref, err)
	}
}
