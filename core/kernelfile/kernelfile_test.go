package kernelfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestFilesThatAreLargerThanTheBufferAreReadWhole(t *testing.T) {
	for _, size := range []int{0, 1, 15, 16, 17, 1000} {
		name, want := filepath.Join(t.TempDir(), "file"), bytes.Repeat([]byte("x"), size)
		if err := os.WriteFile(name, want, 0o600); err != nil {
			t.Fatal(err)
		}
		for how, read := range map[string]func(string, []byte) ([]byte, error){"Read": Read, "ReadOnce": ReadOnce} {
			if got, err := read(name, make([]byte, 16)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes, %v, want %d", how, len(got), err, size)
			}
		}
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none"), make([]byte, 16)); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
