package passwd

import (
	"archive/tar"
	"io"
	"log/slog"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"berth/core/engine/enginetest"
)

func TestWalkVisitsFilesAndDirectories(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	r := New(e.Connect(t), slog.New(slog.DiscardHandler))
	id := e.AddImage(enginetest.Image{Files: map[string]string{"/config.dump": "c", "/checkpoint/a.img": "a", "/checkpoint/b.img": "b", "/other": "o", "/checkpoints/x": "x"}}, "app")
	got := map[string]string{}
	err := r.Walk(t.Context(), id, []string{"config.dump", "none", "checkpoint"}, func(header *tar.Header, content io.Reader) error {
		text, err := io.ReadAll(content)
		if header.Typeflag == tar.TypeReg {
			got[header.Name] = string(text)
		}
		return err
	})
	want := map[string]string{"config.dump": "c", "checkpoint/a.img": "a", "checkpoint/b.img": "b"}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if err := r.Walk(t.Context(), id, []string{"config.dump"}, func(*tar.Header, io.Reader) error { return errdefs.ErrDataLoss }); !errdefs.IsDataLoss(err) {
		t.Errorf("the error of the visitor: %v", err)
	}
	if err := r.Walk(t.Context(), "sha256:none", []string{"config.dump"}, nil); err == nil {
		t.Error("an image that does not exist")
	}
	if left := e.Leftovers(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
