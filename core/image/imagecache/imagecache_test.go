package imagecache

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"berth/core/engine"
	"berth/core/engine/enginetest"
	"berth/core/testmain"
)

func TestMain(m *testing.M) { testmain.M{M: m}.Run() }

// A fixture is a Cache and its Engine.
type fixture struct {
	*testing.T
	*Cache
	fake *enginetest.Engine
}

// newFixture returns a Cache that does not run.
func newFixture(t *testing.T, edits ...func(*Config)) *fixture {
	t.Helper()
	cfg, e := Config{}, enginetest.New(t)
	for _, edit := range edits {
		edit(&cfg)
	}
	return &fixture{t, New(cfg, e.Connect(t), slog.New(slog.DiscardHandler)), e}
}

// run runs the cache and waits until it is valid.
func (f *fixture) run() {
	f.Helper()
	enginetest.Background(f, f.Cache.Run)
	f.untilValid()
}

func (f *fixture) untilValid() {
	f.Helper()
	enginetest.Until(f, "the cache does not become valid", func() bool { return f.current(f.conn()) != nil })
}

func (f *fixture) conn() *engine.Conn {
	f.Helper()
	conn, err := f.engine.WaitConn(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	return conn
}

// tags returns the tags of all images in the cache.
func (f *fixture) tags() (tags []string) {
	if images := f.current(f.conn()); images != nil {
		for _, row := range images.Rows {
			tags = append(tags, row.Listed.Tags...)
		}
	}
	return tags
}

// calls counts the calls about images.
func (f *fixture) calls() int { return f.fake.Calls("GET /images/json", "GET /images/{name}/json") }

func TestAuditFindsChangesWithoutEvents(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.auditInterval = 20 * time.Millisecond
	f.run()
	f.fake.AddImage(enginetest.Image{}, "a:1") // without an event, like a build without a tag
	enginetest.Until(t, "not found", func() bool { return len(f.tags()) == 1 })
	f.fake.DropEvents(true)
	if err := f.fake.Client(t).ImageTag(t.Context(), "a:1", "b:1"); err != nil {
		t.Fatal(err)
	}
	enginetest.Until(t, "a tag whose event was lost is not found", func() bool {
		_, found := f.Find(f.conn(), "b:1")
		return found != nil && len(f.tags()) == 2
	})
	if _, err := f.fake.Client(t).ImageRemove(t.Context(), "a:1", image.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	enginetest.Until(t, "a name whose removal was lost is found", func() bool {
		images, found := f.Find(f.conn(), "a:1")
		return images != nil && found == nil
	})
}

// An audit that finds no change costs one call and has the last answers stay.
func TestAuditWithoutChangesKeepsTheImages(t *testing.T) {
	t.Parallel()
	lists := make(chan int, 100)
	f := newFixture(t, func(cfg *Config) {
		cfg.Observe = func() func(context.Context, []image.Summary) {
			return func(_ context.Context, rows []image.Summary) {
				select {
				case lists <- len(rows):
				default:
				}
			}
		}
	})
	f.auditInterval = 20 * time.Millisecond
	for i := range 5 {
		f.fake.AddImage(enginetest.Image{Created: time.Unix(int64(i), 0)}, fmt.Sprintf("a:%d", i))
	}
	f.run()
	before := f.current(f.conn())
	f.fake.ResetCalls()
	for len(lists) > 0 {
		<-lists
	}
	for range 5 {
		if n := <-lists; n != 5 {
			t.Errorf("%d images were observed, want 5", n)
		}
	}
	if n := f.fake.Calls("GET /images/{name}/json"); n != 0 {
		t.Errorf("%d inspects by audits, want none", n)
	}
	if f.current(f.conn()) != before {
		t.Error("an audit without changes has replaced the images")
	}
	// From time to time all are inspected again.
	enginetest.Until(t, "images are never inspected again", func() bool { return f.fake.Calls("GET /images/{name}/json") >= 5 })
}

// After an event only the images that it can be about are inspected again.
func TestChangeOfOneImageInspectsNoOther(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for i := range 5 {
		f.fake.AddImage(enginetest.Image{}, fmt.Sprintf("a:%d", i))
	}
	f.run()
	f.fake.ResetCalls()
	if err := f.fake.Client(t).ImageTag(t.Context(), "a:3", "b:1"); err != nil {
		t.Fatal(err)
	}
	enginetest.Until(t, "the tag is not found", func() bool { _, found := f.Find(f.conn(), "b:1"); return found != nil })
	if n := f.fake.Calls("GET /images/{name}/json"); n != 1 {
		t.Errorf("%d inspects, want one", n)
	}
	// By its name, too: an event of a pull has no ID.
	f.fake.ResetCalls()
	f.Invalidate("docker.io/library/a:2")
	f.untilValid()
	if list, inspects := f.fake.Calls("GET /images/json"), f.fake.Calls("GET /images/{name}/json"); list != 1 || inspects != 1 {
		t.Errorf("%d lists and %d inspects, want one each", list, inspects)
	}
	// With more names than the cache remembers, all are.
	for i := range maxNamed + 1 {
		f.Invalidate(fmt.Sprintf("c:%d", i))
	}
	f.untilValid()
	if len(f.named) > maxNamed {
		t.Errorf("%d names are remembered", len(f.named))
	}
}

// The list that is requested before a change and read after it does not count.
func TestReadThatBeganBeforeAChangeDoesNotMakeTheCacheValid(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.run()
	release := f.fake.Hang("GET /images/json")
	defer release()
	f.Invalidate("a:1")
	enginetest.Until(t, "no read", func() bool { return f.fake.Calls("GET /images/json") == 2 })
	f.Invalidate("b:1") // while that read is in progress
	conn, results := f.conn(), make(chan error, 2)
	for range 2 { // they share one read of their own
		go func() { _, err := f.List(t.Context(), conn); results <- err }()
	}
	enginetest.Until(t, "no second read", func() bool { return f.fake.Calls("GET /images/json") == 3 })
	if f.current(conn) != nil {
		t.Error("valid before the read")
	}
	release()
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	f.untilValid()
	if n := f.fake.Calls("GET /images/json"); n > 4 {
		t.Errorf("%d lists, want at most 4", n)
	}
}

// A read over the last event stream that ends late does not replace what is read over the new one.
func TestReadOverAnOldStreamIsNotUsed(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	conn := f.conn()
	f.attach(conn)
	old := f.startRead(conn, changes)
	f.detach()
	f.attach(conn)
	old.endRead(newImages(nil))
	if f.images != nil || f.current(conn) != nil {
		t.Error("the result of the old read is used")
	}
	newer, newest := f.startRead(conn, changes), f.startRead(conn, changes)
	images := newImages(nil)
	newest.endRead(images)
	newer.endRead(newImages(nil))
	if f.current(conn) != images {
		t.Error("the result of an older read has replaced that of a newer one")
	}
	if _, err := f.List(t.Context(), conn); err != nil || f.calls() != 0 {
		t.Errorf("%v, %d calls; want a list from memory", err, f.calls())
	}
}

func TestImagesThatCannotBeInspectedAreListed(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.auditInterval = 50 * time.Millisecond
	good := f.fake.AddImage(enginetest.Image{Config: container.Config{User: "1"}}, "good:1")
	bad := f.fake.AddImage(enginetest.Image{Config: container.Config{User: "2"}}, "bad:1")
	f.fake.Fail("GET /images/"+bad+"/json", http.StatusInternalServerError)
	f.run()
	users := func() string {
		images, err := f.List(t.Context(), f.conn())
		if err != nil || len(images.Rows) != 2 {
			t.Fatalf("%v, %v", images, err)
		}
		return images.byID[good].User + images.byID[bad].User
	}
	if got := users(); got != "1" {
		t.Errorf("users %q, want that of the good image", got)
	}
	if _, found := f.Find(f.conn(), "bad:1"); found != nil {
		t.Error("an image is found that cannot be inspected: the Engine must answer")
	}
	f.fake.ClearFaults("GET /images/" + bad + "/json")
	enginetest.Until(t, "it is not inspected again", func() bool { _, found := f.Find(f.conn(), "bad:1"); return found != nil })
	if got := users(); got != "12" {
		t.Errorf("users %q", got)
	}
	// What an ID stands for never changes: its user stays known.
	f.fake.Fail("GET /images/{name}/json", http.StatusInternalServerError)
	f.Invalidate(bad)
	if got := users(); got != "12" {
		t.Errorf("users %q", got)
	}
	// Without an Engine there is an error, and not a list without users.
	f.fake.ClearFaults("GET /images/{name}/json")
	f.fake.Fail("GET /images/{name}/json", enginetest.HangUp)
	f.Invalidate(good)
	if images, err := f.List(t.Context(), f.conn()); !engine.IsUnavailable(err) {
		t.Errorf("%v, %v; want Unavailable", images, err)
	}
}

// An image may be removed between a list and its inspect.
func TestImageThatIsRemovedDuringAReadHidesNoOther(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fake.AddImage(enginetest.Image{Config: container.Config{User: "1"}}, "a:1")
	gone := f.fake.AddImage(enginetest.Image{}, "gone:1")
	f.fake.On("GET /images/"+gone+"/json", func() {
		f.fake.ClearFaults("GET /images/" + gone + "/json")
		if _, err := f.fake.Client(t).ImageRemove(t.Context(), gone, image.RemoveOptions{}); err != nil {
			t.Error(err)
		}
	})
	images, err := f.List(t.Context(), f.conn())
	if err != nil || len(images.Rows) != 2 {
		t.Fatalf("%v, %v", images, err)
	}
	f.run()
	if images, found := f.Find(f.conn(), "a:1"); len(images.Rows) != 1 || found == nil || found.User != "1" {
		t.Errorf("%v, %v", images, found)
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	hex, digest := strings.Repeat("1a", 32), "sha256:"+strings.Repeat("d", 64)
	img := &Image{ID: "sha256:" + hex, Inspected: &Facts{Tags: []string{"a:1", "r.test:5000/b/c", "abcdef123456:latest"}, Digests: []string{"a@" + digest}}}
	images := newImages([]*Image{img, {ID: "sha256:" + strings.Repeat("3", 64), Listed: Facts{Tags: []string{"uninspected:1"}}}})
	for ref, want := range map[string]bool{
		"sha256:" + hex: true, hex: true, "a:1": true, "docker.io/library/a:1": true, "docker.io/a:1": true, "index.docker.io/library/a:1": true,
		"r.test:5000/b/c": true, "r.test:5000/b/c:latest": true, "abcdef123456": true,
		"a@" + digest: true, "a:2@" + digest: true, "docker.io/library/a:1@" + digest: true,
		"": false, "a": false, "a:2": false, "b@" + digest: false, digest: false, hex[:12]: false, "sha256:" + hex[:12]: false, hex + "1": false,
		"uninspected:1": false, "sha256:" + strings.Repeat("3", 64): false, "UPPER": false, strings.ToUpper(hex): false,
	} {
		if found := images.find(ref); (found != nil) != want || want && found != img {
			t.Errorf("%q: found %v, want %v", ref, found != nil, want)
		}
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	f := newFixture(t, func(cfg *Config) { cfg.Metrics = registry })
	expect := func(when, inSync, cache, docker, syncs string) {
		t.Helper()
		if err := testutil.GatherAndCompare(registry, strings.NewReader(`# HELP berthd_image_cache_in_sync Whether the cache of images follows Docker's events and CRI requests are answered from it.
# TYPE berthd_image_cache_in_sync gauge
berthd_image_cache_in_sync `+inSync+`
# HELP berthd_image_cache_requests_total Number of CRI requests for images, by whether they were answered from the cache or by a call of Docker.
# TYPE berthd_image_cache_requests_total counter
berthd_image_cache_requests_total{source="cache"} `+cache+`
berthd_image_cache_requests_total{source="docker"} `+docker+`
# HELP berthd_image_cache_syncs_total Number of lists of all images that were requested from Docker.
# TYPE berthd_image_cache_syncs_total counter
berthd_image_cache_syncs_total `+syncs+`
`), "berthd_image_cache_in_sync", "berthd_image_cache_requests_total", "berthd_image_cache_syncs_total"); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	list := func() {
		t.Helper()
		if _, err := f.List(t.Context(), f.conn()); err != nil {
			t.Fatal(err)
		}
	}
	list()
	expect("without an event stream", "0", "0", "1", "1")
	f.run()
	list()
	f.Find(f.conn(), "missing:1")
	expect("with one", "1", "1", "2", "2")
}
