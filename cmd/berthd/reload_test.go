package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/cmd/berthd/internal/config"
)

// An option is applied by a reload if it is marked in the table of package config, has a function that applies it,
// and is documented as such.
func TestReloadableOptionsAreAppliedAndDocumented(t *testing.T) {
	options, err := config.New(filepath.Join(t.TempDir(), "none.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	marked := slices.Sorted(slices.Values(options.Reloadable()))
	if diff := cmp.Diff(marked, slices.Sorted(maps.Keys(appliers))); diff != "" {
		t.Errorf("marked as reloadable (-) and with an applier (+):\n%s", diff)
	}
	values := options.Values()
	for _, name := range marked {
		if _, ok := values[name]; !ok {
			t.Errorf("%s has no effect and is marked as reloadable", name)
		}
	}
	text, err := os.ReadFile("../../contrib/docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "| reloadable option |")
	if !ok {
		t.Fatal("operating.md has no table of reloadable options")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	var documented []string
	for row := range strings.Lines(table) {
		if names, ok := strings.CutPrefix(row, "| `"); ok {
			names, _, _ = strings.Cut(names, "` |")
			documented = append(documented, strings.Split(names, "`, `")...)
		}
	}
	slices.Sort(documented)
	if diff := cmp.Diff(marked, documented); diff != "" {
		t.Errorf("marked as reloadable (-) and documented (+):\n%s", diff)
	}
}
