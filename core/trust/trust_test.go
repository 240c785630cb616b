package trust_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"berth/core/trust"
)

func TestCheckRefusesWhatOthersCanReplace(t *testing.T) {
	for name, tt := range map[string]struct {
		build func(dir string) error // makes dir/path
		want  string                 // part of the error, "" for none
	}{
		"a file": {build: func(dir string) error { return file(dir, "path", 0o644) }},
		"a sticky parent": {build: func(dir string) error {
			return errors.Join(file(dir, "path", 0o600), os.Chmod(dir, 0o777|os.ModeSticky))
		}}, //nolint:gosec // what is tested
		"a link": {build: func(dir string) error {
			return errors.Join(file(dir, "b", 0o600), os.Symlink("b", filepath.Join(dir, "path")))
		}},
		"writable by all":   {build: func(dir string) error { return file(dir, "path", 0o606) }, want: "path can be changed by others than root (mode 0606): run chmod go-w"},
		"writable by group": {build: func(dir string) error { return file(dir, "path", 0o664) }, want: "mode 0664"},
		"a writable parent": {build: func(dir string) error { return errors.Join(file(dir, "path", 0o600), os.Chmod(dir, 0o777)) }, want: "mode 0777"}, //nolint:gosec // what is tested
		"a sticky directory itself": {build: func(dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "path"), 0o700), os.Chmod(filepath.Join(dir, "path"), 0o777|os.ModeSticky)) //nolint:gosec // what is tested
		}, want: "can be changed by others"},
		"a link through a writable directory": {build: func(dir string) error {
			w := filepath.Join(dir, "w")
			return errors.Join(os.Mkdir(w, 0o700), file(w, "b", 0o600), os.Symlink("w/../w/b", filepath.Join(dir, "path")), os.Chmod(w, 0o707)) //nolint:gosec // what is tested
		}, want: "w can be changed by others"},
		"a link of another user": {build: func(dir string) error {
			return errors.Join(file(dir, "b", 0o600), os.Symlink("b", filepath.Join(dir, "path")), os.Lchown(filepath.Join(dir, "path"), 1234, -1))
		}, want: "belongs to the user 1234"},
		"a file of another user": {build: func(dir string) error {
			return errors.Join(file(dir, "path", 0o600), os.Chown(filepath.Join(dir, "path"), 1234, -1))
		}, want: "belongs to the user 1234: it must belong to root"},
		"a link to itself": {build: func(dir string) error { return os.Symlink("path", filepath.Join(dir, "path")) }, want: "too many levels"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // others may read
				t.Fatal(err)
			}
			if err := tt.build(dir); errors.Is(err, syscall.EPERM) {
				t.Skip(err)
			} else if err != nil {
				t.Fatal(err)
			}
			err := trust.Check(filepath.Join(dir, "path"))
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestCheckOfWhatDoesNotExist(t *testing.T) {
	dir := t.TempDir()
	if err := trust.Check(filepath.Join(dir, "none", "below")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
	if err := os.Chmod(dir, 0o777); err != nil { //nolint:gosec // what is tested
		t.Fatal(err)
	}
	if err := trust.Check(filepath.Join(dir, "none")); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("below a directory that all can write to: %v, want a refusal", err)
	}
}

// file writes a file with exactly that mode.
func file(dir, name string, mode os.FileMode) error {
	path := filepath.Join(dir, name)
	return errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, mode))
}
