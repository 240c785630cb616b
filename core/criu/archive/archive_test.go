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
