package origin_test

import (
	"io"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/system"

	"berth/core/engine/enginetest"
	"berth/core/image/origin"
	"berth/core/state"
	"berth/core/testmain"
)

func TestMain(m *testing.M) { testmain.M{M: m}.Run() }

const first, second = "sha256:1", "sha256:2"

func open(t *testing.T, dir string) *origin.Tracker {
	t.Helper()
	store, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	bucket, err := origin.OpenPulled(store)
	if err != nil {
		t.Fatal(err)
	}
	return origin.New(bucket, slog.New(slog.DiscardHandler))
}

func wantRepositories(t *testing.T, o *origin.Tracker, id string, want ...string) {
	t.Helper()
	if got := o.Repositories(id); !slices.Equal(got, want) {
		t.Errorf("%s is in %q, want %q", id, got, want)
	}
}

func TestRecordsOfPullsOutliveTheProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := open(t, dir)
	for _, ref := range []string{"busybox:1", "busybox:2", "r.test:5000/a@sha256:0000000000000000000000000000000000000000000000000000000000000000"} {
		o.Record(t.Context(), first, ref)
	}
	for _, o := range []*origin.Tracker{o, open(t, dir)} {
		wantRepositories(t, o, first, "docker.io/library/busybox", "r.test:5000/a")
		wantRepositories(t, o, second)
	}
}

func TestRecordsAreDeletedWithTheirImages(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open(t, dir).Record(t.Context(), first, "r.test/a:1")
	o := open(t, dir)
	listed := time.Now()
	o.Record(t.Context(), second, "r.test/b:1") // pulled after the list was requested
	o.Retain(t.Context(), map[string]bool{}, listed)
	for _, o := range []*origin.Tracker{o, open(t, dir)} {
		wantRepositories(t, o, first)
		wantRepositories(t, o, second, "r.test/b")
	}
}

func containerdStore(i *system.Info) {
	i.DriverStatus = append(i.DriverStatus, [2]string{"driver-type", "io.containerd.snapshotter.v1"})
}

func TestOriginOfImagesIsReadFromTheEngine(t *testing.T) {
	t.Parallel()
	for api, known := range map[string]bool{"1.51": false, "1.54": true} {
		e := enginetest.New(t, enginetest.API(api), enginetest.Info(containerdStore))
		e.Registry("r.test/a:1", enginetest.Remote{})
		docker := e.Client(t)
		body, err := docker.ImagePull(t.Context(), "r.test/a:1", image.PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, body); err != nil { // the Engine cancels the pull of a client that leaves
			t.Fatal(err)
		}
		body.Close()
		found, err := docker.ImageInspect(t.Context(), "r.test/a:1")
		if err != nil {
			t.Fatal(err)
		}
		conn, err := e.Connect(t).Conn()
		if err != nil {
			t.Fatal(err)
		}
		o := origin.New(nil, slog.New(slog.DiscardHandler))
		e.ResetCalls()
		for range 3 {
			o.Refresh(t.Context(), conn, []string{found.ID})
		}
		if n := e.Calls("GET /images/json"); known && n != 1 || n > 1 {
			t.Errorf("API %s: the Engine was asked %d times", api, n)
		}
		if known {
			wantRepositories(t, o, found.ID, "r.test/a")
		} else {
			wantRepositories(t, o, found.ID)
		}
	}
}
