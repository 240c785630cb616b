// Package tartest reads tar archives in tests.
package tartest

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"testing"
)

// Entries returns the text of each file in an archive, and of links "TYPE TARGET", by their names. It ends the test on an error.
func Entries(t testing.TB, r io.Reader) map[string]string {
	t.Helper()
	found := map[string]string{}
	for archive := tar.NewReader(r); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		found[header.Name] = string(text)
		if header.Linkname != "" {
			found[header.Name] = fmt.Sprintf("%c %s", header.Typeflag, header.Linkname)
		}
	}
}
