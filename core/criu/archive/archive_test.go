package archive_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"berth/core/criu/archive"
)

func TestLocationMustBeAFile(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Symlink("/etc/passwd", filepath.Join(dir, "link")), os.Mkdir(filepath.Join(dir, "dir"), 0o700), os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for location, ok := range map[string]bool{
		"": false, "c.tar": false, "/": false, dir + "/a/../c": false, dir + "/": false, "/dev/null": false,
		dir + "/link": false, dir + "/dir": false, dir + "/none/c": false, dir + "/file/c": false, dir + "/file": true, dir + "/new": true,
	} {
		d, err := archive.Open(location)
		if ok != (err == nil) || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, want valid: %v", location, err, ok)
		}
		if err == nil {
			d.Close()
		}
	}
}

func TestDirMustBeEmpty(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"empty", "full", "full/x"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("empty", filepath.Join(dir, "link")), os.Symlink(dir, filepath.Join(dir, "full", "parent")), os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for path, ok := range map[string]bool{
		"": false, "empty": false, "/": false, dir + "/empty/": false, dir + "/./empty": false, dir + "/empty\x00": false, "/dev/null": false,
		dir + "/link": false, dir + "/file": false, dir + "/none": false, dir + "/file/x": false, dir + "/full": false,
		dir + "/empty": true, dir + "/full/parent/empty": true,
	} {
		d, err := archive.OpenDir(path)
		if ok != (err == nil) || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, want valid: %v", path, err, ok)
		}
		if err == nil {
			if d.Place.Path != filepath.Join(dir, "empty") {
				t.Errorf("%q is recorded as %q", path, d.Place.Path)
			}
			d.Close()
		}
	}
}

func TestClearRemovesOnlyWhatWasWritten(t *testing.T) {
	dir := t.TempDir()
	d, err := archive.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	d.Place.Files = []string{"a", "b", "../c", "/etc/passwd"}
	outside := filepath.Join(filepath.Dir(dir), "c")
	for _, path := range []string{filepath.Join(dir, "a"), filepath.Join(dir, "other"), d.File("b").TempPath(), outside} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	clears := map[string]func() error{"by its descriptor": d.Clear, "by its place": d.Place.Clear}
	for how, clearDir := range clears {
		if err := clearDir(); err != nil {
			t.Error(how, err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 || entries[0].Name() != "other" {
			t.Errorf("%s: %v, %v", how, entries, err)
		}
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
	gone := d.Place
	gone.Path += "/none"
	if err := gone.Clear(); err != nil {
		t.Error(err)
	}
}
