package shorten

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

func TestTextKeepsBothEnds(t *testing.T) {
	for _, filler := range []string{"x", "é", "\U0001f433", "\xff"} {
		for n := range 8 {
			text := strings.Repeat("a", n) + "begin " + strings.Repeat(filler, 10_000) + " end" + strings.Repeat("z", n)
			got := Text(text)
			if len(got) > maxText || !utf8.ValidString(got) || !strings.HasPrefix(got, text[:n+6]) || !strings.HasSuffix(got, text[len(text)-n-4:]) || !strings.Contains(got, "bytes left out") {
				t.Errorf("%d bytes of %q: %q", len(text), filler, got)
			}
		}
	}
	if short := strings.Repeat("x", maxText); Text(short) != short {
		t.Error("a text that fits is changed")
	}
}

func TestErrorKeepsTheKind(t *testing.T) {
	long := fmt.Errorf("%s: %w", strings.Repeat("x", 1<<20), errdefs.ErrNotFound)
	if got := Error(long); len(got.Error()) > maxText || !errdefs.IsNotFound(got) {
		t.Errorf("%d bytes, NotFound %v", len(got.Error()), errdefs.IsNotFound(got))
	}
	if got := Error(errdefs.ErrNotFound); got != errdefs.ErrNotFound { //nolint:errorlint // the same one
		t.Errorf("%v", got)
	}
	if got := Error(nil); got != nil {
		t.Errorf("%v", got)
	}
}
