package image

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/pkg/jsonmessage"

	"berth/core/pause"
)

func TestMeasurementsAreATenthOfTheTime(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{time.Millisecond: time.Minute, time.Minute: 9 * time.Minute} {
		if got := measurePause(took); got != want {
			t.Errorf("after %v: %v, want %v", took, got, want)
		}
	}
}

func TestReadMessagesReturnsTheErrorInTheStream(t *testing.T) {
	for stream, want := range map[string]string{
		`{"status":"Pulling"}{"status":"Done"}`:                             "",
		`{"status":"Pulling"}{"errorDetail":{"message":"no"},"error":"no"}`: "no",
		`{"status":"Pul`: "unexpected EOF",
	} {
		err := readMessages(strings.NewReader(stream), func(jsonmessage.JSONMessage) {})
		if got := fmt.Sprint(err); want == "" && err != nil || want != "" && got != want {
			t.Errorf("%s: %v, want %q", stream, err, want)
		}
	}
}

func TestPauseImagesAreRecognised(t *testing.T) {
	id, digest := "sha256:"+strings.Repeat("1", 64), "sha256:"+strings.Repeat("d", 64)
	for name, tt := range map[string]struct {
		configured    string
		tags, digests []string
		want          bool
	}{
		"the same name":            {"r.io/pause:3", []string{"r.io/pause:3"}, nil, true},
		"full name of Docker Hub":  {"docker.io/x/pause:3", []string{"x/pause:3"}, nil, true},
		"without a tag":            {"x/pause", []string{"x/pause:latest"}, nil, true},
		"by digest":                {"docker.io/x/pause@" + digest, nil, []string{"x/pause@" + digest}, true},
		"by tag and digest":        {"x/pause:3@" + digest, nil, []string{"x/pause@" + digest}, true},
		"by ID":                    {id, nil, nil, true},
		"by ID, without algorithm": {strings.TrimPrefix(id, "sha256:"), nil, nil, true},
		"the built-in image":       {"r.io/pause:3", []string{pause.Ref}, nil, true},
		"another tag":              {"r.io/pause:3", []string{"r.io/pause:2"}, []string{"r.io/pause@" + digest}, false},
		"another registry":         {"r.io/pause:3", []string{"pause:3"}, nil, false},
		"no names":                 {"r.io/pause:3", []string{"<none>:<none>"}, []string{"<none>@<none>"}, false},
	} {
		s := New(Config{PauseImage: func() string { return tt.configured }}, nil, slog.New(slog.DiscardHandler))
		if got := s.isPause(id, tt.tags, tt.digests); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

func TestRepoDigest(t *testing.T) {
	a, b := "a.io/x@sha256:"+strings.Repeat("1", 64), "b.io/x@sha256:"+strings.Repeat("1", 64)
	for _, tt := range []struct {
		digests []string
		user    string
		want    string
	}{
		{nil, "a.io/x:1", "sha256:id"},
		{[]string{a, b}, "b.io/x:1", b},
		{[]string{a, b}, "c.io/x:1", a},
		{[]string{"<none>@<none>"}, "c.io/x:1", "sha256:id"},
	} {
		if got := repoDigest(tt.digests, tt.user, "sha256:id"); got != tt.want {
			t.Errorf("%v of %s: %s, want %s", tt.digests, tt.user, got, tt.want)
		}
	}
}
