package mirror_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/distribution/reference"

	"berth/core/image/mirror"
	"berth/core/state"
)

const (
	digest1 = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	digest2 = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
)

func TestParseRefuses(t *testing.T) {
	for item, want := range map[string]string{
		"quay.io":                           "HOST=MIRROR",
		"quay=m.test":                       "host of a registry",
		"quay.io/x=m.test":                  "host of a registry",
		"=m.test":                           "host of a registry",
		"quay.io=":                          "must be HOST",
		"quay.io=http://m.test":             "insecure-registries",
		"quay.io=ftp://m.test":              "must be HOST",
		"quay.io=https://m.test/v2/quay":    "without /v2",
		"quay.io=https://m.test/Quay":       "must be HOST",
		"quay.io=https://u:p@m.test/quay":   "must be HOST",
		"quay.io=https://m.test/quay?ns=q":  "must be HOST",
		"quay.io=https://m.test/quay:1":     "must be HOST",
		"registry.test:5000=m.test:port/ok": "must be HOST",
	} {
		if _, err := mirror.Parse([]string{item}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", item, err, want)
		}
	}
}

func TestSources(t *testing.T) {
	table, err := mirror.Parse([]string{
		"quay.io=https://m.test:5000/quay", "quay.io=other.test/", "docker.io=hub", "localhost:5000=m.test/a/b", "index.docker.io=m.test/hub",
	})
	if err != nil {
		t.Fatal(err)
	}
	for requested, want := range map[string]string{
		"quay.io/org/app:1":                   "[m.test:5000/quay/org/app:1 other.test/org/app:1]",
		"quay.io/org/app@" + digest1:          "[m.test:5000/quay/org/app@" + digest1 + " other.test/org/app@" + digest1 + "]",
		"busybox":                             "[hub:443/library/busybox:latest m.test/hub/library/busybox:latest]",
		"localhost:5000/app:2":                "[m.test/a/b/app:2]",
		"ghcr.io/a:1":                         "[]",
		"quay.io/" + strings.Repeat("a", 251): "[other.test/" + strings.Repeat("a", 251) + ":latest]", // the path has 255 bytes at most
		"quay.io:443/a:1":                     "[]",
		"docker.io/org/app:1@" + digest2:      "[hub:443/org/app@" + digest2 + " m.test/hub/org/app@" + digest2 + "]",
	} {
		named, err := reference.ParseDockerRef(requested)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(table.Sources(named)); got != want {
			t.Errorf("%s: %s, want %s", requested, got, want)
		}
	}
}

// open opens the aliases in dir.
func open(t *testing.T, dir string) *mirror.Aliases {
	t.Helper()
	store, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	a, err := mirror.OpenAliases(store)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func canonical(t *testing.T, ref string) reference.Canonical {
	t.Helper()
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		t.Fatal(err)
	}
	return named.(reference.Canonical)
}

// records returns how many aliases are on disk in dir.
func records(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "v1", "mirrored-images"))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestAliasesReplaceDigestsAtMirrors(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	pulled := "m.test/library/app@" + digest1
	for _, requested := range []string{"docker.io/library/app@" + digest1, "quay.io/app@" + digest1, "quay.io/app@" + digest1} {
		if err := first.Add(t.Context(), canonical(t, pulled), canonical(t, requested)); err != nil {
			t.Fatal(err)
		}
	}
	for name, a := range map[string]*mirror.Aliases{"same run": first, "next run": open(t, dir)} {
		for _, tt := range []struct{ tags, digests, want []string }{
			{[]string{"app:1"}, []string{pulled}, []string{"app@" + digest1, "quay.io/app@" + digest1}},
			{[]string{"app:1"}, []string{"app@" + digest1, pulled}, []string{"app@" + digest1, "quay.io/app@" + digest1}},
			{[]string{"m.test/library/app:1"}, []string{pulled}, []string{pulled, "app@" + digest1, "quay.io/app@" + digest1}},
			{nil, []string{"m.test/library/app@" + digest2}, []string{"m.test/library/app@" + digest2}},
			{nil, []string{"<none>@<none>"}, []string{"<none>@<none>"}},
			{[]string{"app:1", pulled}, []string{pulled}, []string{"app@" + digest1, "quay.io/app@" + digest1}}, // docker 28.5, containerd image store
			{nil, nil, nil},
		} {
			if got := a.Digests(tt.tags, tt.digests); !slices.Equal(got, tt.want) {
				t.Errorf("%s: tags %q, digests %q: %q, want %q", name, tt.tags, tt.digests, got, tt.want)
			}
		}
		for ref, want := range map[string]string{
			"app@" + digest1: pulled, "docker.io/library/app:3@" + digest1: pulled, "quay.io/app@" + digest1: pulled,
			"app@" + digest2: "", "app:1": "", "ghcr.io/app@" + digest1: "", digest1: "", "": "",
		} {
			if got := strings.Join(a.Pulled(ref), " "); got != want {
				t.Errorf("%s: %s is %q, want %q", name, ref, got, want)
			}
		}
	}
}

func TestAliasesOfRemovedImagesAreForgotten(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	add := func(pulled string) {
		t.Helper()
		if err := a.Add(t.Context(), canonical(t, pulled), canonical(t, "quay.io/app@"+digest1)); err != nil {
			t.Fatal(err)
		}
	}
	add("m.test/here@" + digest1)
	add("m.test/gone@" + digest1)
	add("m.test/store@" + digest2)
	add("m.test/pulled-again@" + digest1)
	known := a.Known()
	add("m.test/new@" + digest1)
	add("m.test/pulled-again@" + digest1)
	if err := a.Retain(t.Context(), known, map[string]bool{"m.test/here@" + digest1: true, "<none>@<none>": true, digest2: true}); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("m.test/here@%[1]s m.test/new@%[1]s m.test/pulled-again@%[1]s m.test/store@%[2]s", digest1, digest2)
	if got := strings.Join(a.Pulled("quay.io/app@"+digest1), " "); got != want || records(t, dir) != 4 {
		t.Errorf("after a list: %s and %d records, want %s", got, records(t, dir), want)
	}
	if err := a.Forget(t.Context(), strings.Fields(want)); err != nil || len(a.Known()) != 0 || records(t, dir) != 0 {
		t.Errorf("after removals: %v, %v, %d records", err, a.Known(), records(t, dir))
	}
}

func TestNilAliasesAreEmpty(t *testing.T) {
	var a *mirror.Aliases
	digests := []string{"m.test/app@" + digest1}
	if got := a.Digests(nil, digests); !slices.Equal(got, digests) || a.Pulled(digests[0]) != nil || a.Known() != nil {
		t.Errorf("%q", got)
	}
	if err := a.Forget(context.Background(), digests); err != nil {
		t.Error(err)
	}
}
