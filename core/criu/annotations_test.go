package criu

import (
	"strings"
	"testing"
)

func TestFullName(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0a", 32)
	for ref, want := range map[string]string{
		"busybox":                "docker.io/library/busybox:latest",
		"busybox:1":              "docker.io/library/busybox:1",
		"busybox@" + digest:      "docker.io/library/busybox@" + digest,
		"me/app:1@" + digest:     "docker.io/me/app:1@" + digest,
		"registry.test:5000/a:1": "registry.test:5000/a:1",
		digest:                   digest,
		digest[7:]:               digest[7:],
		"Not a name":             "Not a name",
		"":                       "",
	} {
		if got := FullName(ref); got != want {
			t.Errorf("%s: %s, want %s", ref, got, want)
		}
	}
}
