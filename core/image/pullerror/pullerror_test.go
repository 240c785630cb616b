package pullerror

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestClassify(t *testing.T) {
	for text, tt := range map[string]struct {
		prefix string
		kind   func(error) bool
	}{
		"manifest for a:1 not found: manifest unknown":                                                                           {"pull image", errdefs.IsNotFound},
		"pull access denied for a, repository does not exist":                                                                    {"pull image", func(err error) bool { return !errdefs.IsNotFound(err) }},
		"error from registry: You have reached your unauthenticated pull rate limit. https://www.docker.com/increase-rate-limit": {"RegistryUnavailable: ", nil},
		"error from registry: too many requests":                                                                                 {"RegistryUnavailable: ", nil},
		"toomanyrequests: You have reached your pull rate limit":                                                                 {"RegistryUnavailable: ", nil},
		"received unexpected HTTP status: 503 Service Unavailable":                                                               {"RegistryUnavailable: ", nil},
		"Get \"https://r.io/v2/\": dial tcp: lookup r.io: no such host":                                                          {"RegistryUnavailable: ", nil},
		"something else": {"pull image", nil},
	} {
		err := Classify("a:1", errors.New(text))
		if !strings.HasPrefix(err.Error(), tt.prefix) || tt.kind != nil && !tt.kind(err) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
