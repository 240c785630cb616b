package logs_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"berth/core/logs"
)

func TestALinkComesAndGoes(t *testing.T) {
	dir := t.TempDir()
	source, path := filepath.Join(dir, "c1-json.log"), filepath.Join(dir, "pods", "web", "0.log")
	s := logs.New()
	for range 2 { // after a restart everything is opened again
		if err := s.Open("c1", source, path); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(source, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "hello" {
		t.Errorf("read %q, %v through the link", text, err)
	}
	if err := s.Reopen("c1"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("reopen: %v, want a failed precondition", err)
	}
	for range 2 {
		if err := s.Close("c1"); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the link is still there: %v", err)
	}
}

func TestAStaleFileIsReplaced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0.log")
	if err := os.WriteFile(path, []byte("of an earlier attempt"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := logs.New()
	if err := s.Open("c1", filepath.Join(dir, "json"), path); err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(path); err != nil || target != filepath.Join(dir, "json") {
		t.Errorf("link to %q, %v", target, err)
	}
}
