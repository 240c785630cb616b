package labels_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/core/labels"
)

// FuzzRoundTrip holds the promise the whole daemon rests on: what is written
// on a container is what is read back from it.
func FuzzRoundTrip(f *testing.F) {
	f.Add("app", "web", "example.org/note", "hello")
	f.Add("annotation.x", "a label, not an annotation", "annotation.x", "")
	f.Add("io.kubernetes.docker.type", "a liar", "", "")
	f.Add("io.kubernetes.container.name", "mine", "berth.config", "mine too")
	f.Add("berth.label.annotation.x", "deeper", "berth.labels", "")
	f.Fuzz(func(t *testing.T, key, value, note, text string) {
		for _, kind := range []labels.Kind{labels.Container, labels.Sandbox} {
			want := labels.Set{
				Kind:        kind,
				SandboxID:   "5fa3",
				Config:      "{}",
				Handler:     "runc",
				Image:       "busybox",
				ImageRef:    "busybox@sha256:12",
				Labels:      map[string]string{key: value},
				Annotations: map[string]string{note: text},
			}
			// JSON carries text; Kubernetes sends no other.
			if !utf8(key, note) {
				t.Skip("not UTF-8")
			}
			written := want.Encode()
			written["maintainer"] = "of the image"
			if diff := cmp.Diff(want, labels.Decode(written)); diff != "" {
				t.Errorf("round trip (-want +got):\n%s", diff)
			}
		}
	})
}

func utf8(words ...string) bool {
	for _, w := range words {
		if string([]rune(w)) != w {
			return false
		}
	}
	return true
}

func TestDecodeReadsWhatCriDockerdWrote(t *testing.T) {
	got := labels.Decode(map[string]string{
		"io.kubernetes.docker.type":               "podsandbox",
		"io.kubernetes.container.name":            "POD",
		"io.kubernetes.pod.name":                  "web",
		"annotation.kubernetes.io/config.source":  "api",
		"annotation.io.kubernetes.container.hash": "12",
	})
	want := labels.Set{
		Kind:   labels.Sandbox,
		Labels: map[string]string{"io.kubernetes.pod.name": "web"},
		Annotations: map[string]string{
			"kubernetes.io/config.source":  "api",
			"io.kubernetes.container.hash": "12",
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What holds or looks into an image is spared by those who spare pods, and is no pod's.
func TestIdle(t *testing.T) {
	got := labels.Idle(labels.HoldKey, "x")
	if _, ok := got[labels.Set{}.Filter()[0]]; !ok || got[labels.HoldKey] != "x" {
		t.Errorf("labels %v", got)
	}
	if kind := labels.Decode(got).Kind; kind == labels.Sandbox || kind == labels.Container {
		t.Errorf("its kind is %s", kind)
	}
}
