package systemd

import (
	"slices"
	"testing"
)

func TestSplitCommandAsSystemdDoes(t *testing.T) {
	for text, want := range map[string][]string{
		"":                            nil,
		"/bin/a --b c":                {"/bin/a", "--b", "c"},
		"/bin/a \\\n  --b":            {"/bin/a", "--b"},
		`/bin/a "--b=c, d" '' x"y z"`: {"/bin/a", "--b=c, d", "", "xy z"},
	} {
		if got := SplitCommand(text); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
