package pinning_test

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"berth/core/image/pinning"
)

func TestReasonOfAnImage(t *testing.T) {
	t.Parallel()
	patterns, err := pinning.ParsePatterns([]string{"registry.test/tools/*"})
	if err != nil {
		t.Fatal(err)
	}
	keep := pinning.Policy{KeepLocal: true, Labels: pinning.LabelsOfBuilt, Patterns: patterns}
	drop := pinning.Policy{Labels: pinning.LabelsOfBuilt, Patterns: patterns}
	label := map[string]string{"berth.pin": "true"}
	const pulled = "registry.test/app"
	for name, tt := range map[string]struct {
		policy pinning.Policy
		image  pinning.Image
		want   pinning.Reason
	}{
		"built":                          {keep, pinning.Image{Tags: []string{"app:1"}}, pinning.Local},
		"built, not kept":                {drop, pinning.Image{Tags: []string{"app:1"}}, pinning.None},
		"pulled":                         {keep, pinning.Image{Tags: []string{pulled + ":1"}, Digests: []string{pulled + "@sha256:0"}, Repositories: []string{pulled}}, pinning.None},
		"pulled, with a name of ours":    {keep, pinning.Image{Tags: []string{pulled + ":1", "mine:1"}, Repositories: []string{pulled}}, pinning.Local},
		"pulled, and tagged again there": {keep, pinning.Image{Tags: []string{pulled + ":1", pulled + ":2"}, Repositories: []string{pulled}}, pinning.None},
		"pulled by its digest":           {keep, pinning.Image{Digests: []string{pulled + "@sha256:0"}, Repositories: []string{pulled}}, pinning.None},
		"a digest among the tags":        {keep, pinning.Image{Tags: []string{pulled + "@sha256:0"}}, pinning.None},
		"pulled from Docker Hub":         {keep, pinning.Image{Tags: []string{"busybox:1"}, Repositories: []string{"docker.io/library/busybox"}}, pinning.None},
		"a registry with a port":         {keep, pinning.Image{Tags: []string{"registry.test:5000/app:1"}, Repositories: []string{pulled}}, pinning.None},
		"replaced by a newer build":      {keep, pinning.Image{}, pinning.None},
		"the same, of Docker 20.10":      {keep, pinning.Image{Tags: []string{"<none>:<none>"}, Digests: []string{"<none>@<none>"}}, pinning.None},
		"replaced, with the label":       {keep, pinning.Image{Tags: []string{"<none>:<none>"}, Labels: label}, pinning.None},
		"replaced, and in use":           {keep, pinning.Image{InUse: true}, pinning.Container},
		"pulled, and in use":             {keep, pinning.Image{Tags: []string{pulled + ":1"}, Repositories: []string{pulled}, InUse: true}, pinning.Container},
		"in use, not kept":               {drop, pinning.Image{InUse: true}, pinning.None},
		"the pause image":                {drop, pinning.Image{IsPause: true}, pinning.Pause},
		"a pattern":                      {drop, pinning.Image{Tags: []string{"registry.test/tools/a/b:1"}}, pinning.Pattern},
		"a pattern, by digest":           {drop, pinning.Image{Digests: []string{"registry.test/tools/a@sha256:0"}}, pinning.Pattern},
		"the label, built":               {drop, pinning.Image{Tags: []string{"app:1"}, Labels: label}, pinning.Label},
		"the label, false":               {drop, pinning.Image{Tags: []string{"app:1"}, Labels: map[string]string{"berth.pin": "false"}}, pinning.None},
		"the label, no bool":             {drop, pinning.Image{Tags: []string{"app:1"}, Labels: map[string]string{"berth.pin": "please"}}, pinning.None},
		"the label, pulled":              {drop, pinning.Image{Tags: []string{pulled + ":1"}, Repositories: []string{pulled}, Labels: label}, pinning.None},
		"the label, pulled, all": {
			pinning.Policy{Labels: pinning.LabelsOfAll},
			pinning.Image{Tags: []string{pulled + ":1"}, Repositories: []string{pulled}, Labels: label}, pinning.Label,
		},
		"the label, no name, all": {pinning.Policy{Labels: pinning.LabelsOfAll}, pinning.Image{Labels: label}, pinning.None},
		"the label, built, none":  {pinning.Policy{Labels: pinning.LabelsOfNone}, pinning.Image{Tags: []string{"app:1"}, Labels: label}, pinning.None},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := tt.policy.Reason(tt.image); got != tt.want {
				t.Errorf("reason %q, want %q", got, tt.want)
			}
		})
	}
}

func TestPatternsMatchFullAndShortNames(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		glob, ref string
		want      bool
	}{
		{"busybox", "busybox:1", true},
		{"busybox:1", "busybox:1", true},
		{"busybox:2", "busybox:1", false},
		{"docker.io/library/busybox", "busybox:1", true},
		{"docker.io/library/*", "busybox:1", true},
		{"library/busybox", "busybox:1", false},
		{"docker.io/me/app:1", "me/app:1", true},
		{"me/*", "me/app:1", true},
		{"busy*", "busybox:1", true},
		{"busybox:?", "busybox:1", true},
		{"busybox:?", "busybox:10", false},
		{"*", "registry.test/a/b:1", true},
		{"registry.test/*", "registry.test/a/b:1", true},
		{"registry.test/*", "registry.tests/a:1", false},
		{"registryxtest/*", "registry.test/a:1", false},
		{"registry.test/a", "registry.test/a@sha256:" + strings.Repeat("0", 64), true},
		{"*", "<none>:<none>", false},
	} {
		p, err := pinning.ParsePatterns([]string{tt.glob})
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Match(tt.ref); got != tt.want {
			t.Errorf("%s matches %s: %v, want %v", tt.glob, tt.ref, got, tt.want)
		}
	}
	if (*pinning.Patterns)(nil).Match("busybox:1") {
		t.Error("no patterns match an image")
	}
}

func TestInvalidPatternsAreRefused(t *testing.T) {
	t.Parallel()
	for _, globs := range [][]string{{""}, {"a b"}, {"a,b"}, {"[a]"}, {"a\n"}, {"(a"}, {strings.Repeat("a", 513)}, make([]string, 257)} {
		if _, err := pinning.ParsePatterns(globs); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%.30q: %v, want InvalidArgument", globs, err)
		}
	}
}
