package image_test

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	dockerimage "github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/client"
	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/engine/enginetest"
	"berth/core/image"
	"berth/core/image/verify"
)

// untilFromMemory waits until lists need no call of the Engine.
func untilFromMemory(t testing.TB, images *image.Service, e *enginetest.Engine) {
	t.Helper()
	enginetest.Until(t, "images are not listed from memory", func() bool {
		before := e.Calls("GET /images/json", "GET /images/{name}/json")
		_, err := images.List(t.Context(), nil)
		return err == nil && e.Calls("GET /images/json", "GET /images/{name}/json") == before
	})
}

// A pair are two services on one Engine: one with a cache, and one that calls the Engine each time.
type pair struct {
	*testing.T
	engine         *enginetest.Engine
	docker         *engine.Engine // of cached
	client         *client.Client
	cached, direct *image.Service
}

// stores are the kinds of Engines with another idea of what an image is.
var stores = map[string]struct {
	api        string
	containerd bool
}{"own store, docker 20.10": {"1.41", false}, "own store": {"1.51", false}, "containerd": {"1.51", true}}

func newPair(t *testing.T, api string, containerd bool) *pair {
	t.Helper()
	e := enginetest.New(t, enginetest.API(api))
	if containerd {
		e.SetInfo(func(i *system.Info) {
			i.DriverStatus = append(i.DriverStatus, [2]string{"driver-type", "io.containerd.snapshotter.v1"})
		})
	}
	p := &pair{T: t, engine: e, docker: e.Connect(t), client: e.Client(t), direct: newService(t, e, image.Config{})}
	p.cached = image.New(image.Config{PullProgressTimeout: stall, PauseImage: func() string { return "" }}, p.docker, slog.New(slog.DiscardHandler))
	enginetest.Background(t, p.cached.RunCache)
	untilFromMemory(t, p.cached, e)
	return p
}

// refsOf returns all names and IDs of images, in several forms. Of digests that the Engine has made of
// IDs there are none: the fake Engine, unlike docker with the containerd image store, does not find them.
func refsOf(list []*runtimeapi.Image) (refs []string) {
	for _, i := range list {
		hex := strings.TrimPrefix(i.GetId(), "sha256:")
		refs = append(refs, i.GetId(), hex, hex[:13], hex[:11], "sha256:"+hex[:12])
		for _, tag := range i.GetRepoTags() {
			refs = append(refs, tag, "docker.io/library/"+tag)
		}
		for _, digest := range i.GetRepoDigests() {
			if name, bare, _ := strings.Cut(digest, "@"); bare != i.GetId() {
				refs = append(refs, digest, name+":any@"+bare)
			}
		}
	}
	return append(refs, "missing:1", "")
}

// diff returns how the services differ in their lists, in those references, and in a sample of all: each takes several
// calls of the Engine.
func (p *pair) diff(always ...string) string {
	want, err := p.direct.List(p.Context(), nil)
	if err != nil {
		return err.Error()
	}
	got, err := p.cached.List(p.Context(), nil)
	if err != nil {
		return err.Error()
	}
	byID := func(list []*runtimeapi.Image) []*runtimeapi.Image {
		return slices.SortedFunc(slices.Values(list), func(a, b *runtimeapi.Image) int { return cmp.Compare(a.GetId(), b.GetId()) })
	}
	a, b := byID(want), byID(got)
	if !slices.EqualFunc(a, b, func(x, y *runtimeapi.Image) bool { return proto.Equal(x, y) }) {
		return "list (-docker +cache):\n" + gocmp.Diff(a, b, protocmp.Transform())
	}
	refs := refsOf(want)
	rand.Shuffle(len(refs), func(i, j int) { refs[i], refs[j] = refs[j], refs[i] })
	for _, ref := range append(always, refs[:min(len(refs), 10)]...) {
		want, _, wantErr := p.direct.Status(p.Context(), ref, false)
		got, _, err := p.cached.Status(p.Context(), ref, false)
		if !proto.Equal(want, got) || (err != nil) != (wantErr != nil) {
			return fmt.Sprintf("status of %s: %v, %v (-docker +cache):\n%s", ref, wantErr, err, gocmp.Diff(want, got, protocmp.Transform()))
		}
		resolved, wantErr := p.direct.Resolve(p.Context(), ref, ref)
		for range 2 { // what the first one has kept is in the second
			got, err := p.cached.Resolve(p.Context(), ref, ref)
			if !reflect.DeepEqual(resolved, got) || (err != nil) != (wantErr != nil) {
				return fmt.Sprintf("%s for a container: %v, %v (-docker +cache):\n%s", ref, wantErr, err, gocmp.Diff(resolved, got))
			}
		}
	}
	return ""
}

// untilEqual waits until the services agree.
func (p *pair) untilEqual(after string, always ...string) {
	p.Helper()
	d := ""
	for limit := time.Now().Add(enginetest.WaitTimeout); time.Now().Before(limit); time.Sleep(10 * time.Millisecond) {
		if d = p.diff(always...); d == "" {
			return
		}
	}
	p.Fatalf("%s: %s", after, d)
}

// reconnect breaks the connection to the Engine, as core/cache does after the end of its event stream.
func (p *pair) reconnect() {
	p.Helper()
	conn, err := p.docker.WaitConn(p.Context())
	if err != nil {
		p.Fatal(err)
	}
	p.docker.MarkBroken(conn, errors.New("the event stream ended"))
	p.wait()
}

// wait waits for a connection.
func (p *pair) wait() {
	p.Helper()
	if _, err := p.docker.WaitConn(p.Context()); err != nil {
		p.Fatal(err)
	}
}

// dockerPull pulls with Docker's own client.
func (p *pair) dockerPull(ref string) {
	p.Helper()
	body, err := p.client.ImagePull(p.Context(), ref, dockerimage.PullOptions{})
	if err == nil {
		_, err = io.Copy(io.Discard, body)
		err = errors.Join(err, body.Close())
	}
	if err != nil {
		p.Fatal(err)
	}
}

// build adds an image as docker build does, with a tag or, if that is "", without one and without an event.
func (p *pair) build(img enginetest.Image, tag string) {
	p.Helper()
	if tag == "" {
		p.engine.AddImage(img)
		return
	}
	id := p.engine.AddImage(img, tag)
	p.engine.Event(events.Message{Type: events.ImageEventType, Action: events.ActionTag, Actor: events.Actor{ID: id, Attributes: map[string]string{"name": tag}}})
}

func TestImageOfAContainerIsResolvedFromMemory(t *testing.T) {
	t.Parallel()
	p := newPair(t, "1.51", false)
	const ref = "r.test/app:1"
	p.engine.Registry(ref, enginetest.Remote{Image: enginetest.Image{Config: container.Config{User: "7"}}})
	inspects := func() int {
		t.Helper()
		before := p.engine.Calls("GET /images/{name}/json")
		found, err := p.cached.Resolve(t.Context(), ref, ref)
		if err != nil || found.User != "7" || len(found.Layers) == 0 || found.Names[0] != ref {
			t.Fatalf("resolved to %+v, %v", found, err)
		}
		return p.engine.Calls("GET /images/{name}/json") - before
	}
	p.dockerPull(ref)
	p.untilEqual("pull")
	inspects()
	if n := inspects(); n != 0 {
		t.Errorf("image was inspected %d times, want it from memory", n)
	}
	// The same image has other directories once it was removed and pulled again.
	if _, err := p.client.ImageRemove(t.Context(), ref, dockerimage.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	p.untilEqual("removal")
	p.dockerPull(ref)
	p.untilListed(ref)
	untilFromMemory(t, p.cached, p.engine)
	if n := inspects(); n != 1 {
		t.Errorf("image that was pulled again was inspected %d times, want 1", n)
	}
}

// untilListed waits until the cache has an image.
func (p *pair) untilListed(ref string) {
	p.Helper()
	enginetest.Until(p, ref+" is not listed", func() bool {
		list, err := p.cached.List(p.Context(), nil)
		return err == nil && slices.ContainsFunc(list, func(i *runtimeapi.Image) bool { return slices.Contains(i.GetRepoTags(), ref) })
	})
}

var operations = flag.Int("operations", 30, "number of operations of TestImagesFromMemoryEqualThoseOfTheEngine")

// Random operations change the images of an Engine through the service, with Docker's client, and without
// any event that arrives. What the service has done is in its next answer; what others have done is soon.
func TestImagesFromMemoryEqualThoseOfTheEngine(t *testing.T) {
	t.Parallel()
	for name, store := range stores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			p := newPair(t, store.api, store.containerd)
			for i := range 6 {
				p.engine.Registry(fmt.Sprintf("r.test/app%d:1", i), enginetest.Remote{Steps: 1, Image: enginetest.Image{Size: int64(1000 + i), Config: container.Config{User: fmt.Sprint(i)}}})
			}
			for op := range *operations {
				p.operate(rng, op)
				if t.Failed() {
					t.Fatalf("seed %d, operation %d", seed, op)
				}
			}
		})
	}
}

// operate does one random operation and compares the services.
func (p *pair) operate(rng *rand.Rand, op int) {
	p.Helper()
	remote := fmt.Sprintf("r.test/app%d:1", rng.IntN(6))
	local := fmt.Sprintf("local%d:%d", rng.IntN(4), rng.IntN(2))
	list, err := p.direct.List(p.Context(), nil)
	if err != nil {
		p.Fatal(err)
	}
	refs := refsOf(list)
	any := refs[rng.IntN(len(refs))]
	own := func(what string, _ error) { // fails for some references, in both services
		p.Helper()
		if d := p.diff(any, remote, local); d != "" {
			p.Errorf("right after %s by the service: %s", what, d)
		}
	}
	other := func(what string, _ error) {
		p.Helper()
		p.untilEqual(what+" by another client", any, remote, local)
	}
	switch rng.IntN(12) {
	case 0:
		_, err := p.cached.Pull(p.Context(), remote, "", nil, verify.Pod{})
		own("pull of "+remote, err)
	case 1, 2:
		own("removal of "+any, p.cached.Remove(p.Context(), any))
	case 3:
		p.cached.ForgetPause()
		_, err := p.cached.Pause(p.Context())
		own("load of the pause image", err)
	case 4:
		p.dockerPull(remote)
		other("pull of "+remote, nil)
	case 5, 6:
		other("tag of "+any, p.client.ImageTag(p.Context(), any, local))
	case 7:
		_, err := p.client.ImageRemove(p.Context(), any, dockerimage.RemoveOptions{Force: rng.IntN(2) == 0, PruneChildren: true})
		other("removal of "+any, err)
	case 8:
		img := enginetest.Image{Size: int64(op + 1), Config: container.Config{User: fmt.Sprint(op)}}
		if len(list) > 0 {
			img.Parent = list[rng.IntN(len(list))].GetId()
		}
		p.build(img, local)
		other("build of "+local, nil)
	case 9: // events are lost, and the connection with them
		p.engine.DropEvents(true)
		_ = p.client.ImageTag(p.Context(), any, local)
		p.build(enginetest.Image{Size: int64(op + 1)}, "")
		p.engine.DropEvents(false)
		p.reconnect()
		other("changes without events", nil)
	case 10:
		p.engine.BreakEvents()
		other("tag of "+any+" after the end of the event stream", p.client.ImageTag(p.Context(), any, local))
		p.reconnect()
		untilFromMemory(p, p.cached, p.engine)
	case 11:
		p.engine.Stop()
		p.build(enginetest.Image{Size: int64(op + 1)}, local)
		p.engine.Restart()
		p.reconnect()
		other("build while the Engine was restarted", nil)
	}
}

func TestImagesAreNotAnsweredFromMemoryWithoutAnEventStream(t *testing.T) {
	t.Parallel()
	p := newPair(t, "1.41", false)
	id := p.engine.AddImage(enginetest.Image{}, "a:1")
	p.reconnect()
	untilFromMemory(t, p.cached, p.engine)
	t.Cleanup(p.engine.Hang("GET /events"))
	p.engine.BreakEvents()
	// From now on there are no events. What the service has been told before that may be answered.
	enginetest.Until(t, "the end of the event stream is not noticed", func() bool {
		before := p.engine.Calls("GET /images/json")
		list, err := p.cached.List(t.Context(), nil)
		return err == nil && len(list) == 1 && p.engine.Calls("GET /images/json") > before
	})
	for range 10 {
		if err := p.client.ImageTag(t.Context(), id, "b:1"); err != nil {
			t.Fatal(err)
		}
		if found, _, err := p.cached.Status(t.Context(), "b:1", false); err != nil || found == nil {
			t.Fatalf("status: %v, %v", found, err)
		}
		if list, err := p.cached.List(t.Context(), nil); err != nil || len(list[0].GetRepoTags()) != 2 {
			t.Fatalf("list: %v, %v", list, err)
		}
		if _, err := p.client.ImageRemove(t.Context(), "b:1", dockerimage.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	p.engine.Stop()
	enginetest.Until(t, "images of an Engine that is away are answered", func() bool {
		_, err := p.cached.List(t.Context(), nil)
		return engine.IsUnavailable(err)
	})
	if _, _, err := p.cached.Status(t.Context(), "a:1", false); !engine.IsUnavailable(err) {
		t.Errorf("%v, want Unavailable", err)
	}
}

// The kubelet pulls many images at a time, and lists and removes others.
func TestOwnChangesAreInTheNextAnswerOfConcurrentCallers(t *testing.T) {
	t.Parallel()
	p := newPair(t, "1.51", false)
	done := make(chan struct{})
	for i := range 8 {
		ref := fmt.Sprintf("r.test/app%d:1", i)
		p.engine.Registry(ref, enginetest.Remote{Steps: 1})
		go func() {
			defer func() { done <- struct{}{} }()
			for range 20 {
				id, err := p.cached.Pull(t.Context(), ref, "", nil, verify.Pod{})
				if err != nil {
					t.Error(err)
					return
				}
				if found, _, err := p.cached.Status(t.Context(), ref, false); err != nil || found.GetId() != id {
					t.Errorf("status after the pull of %s: %v, %v", ref, found, err)
				}
				if !p.listed(id) {
					t.Errorf("%s is not listed after its pull", ref)
				}
				if err := p.cached.Remove(t.Context(), id); err != nil {
					t.Error(err)
				}
				if found, _, err := p.cached.Status(t.Context(), ref, false); err != nil || found != nil {
					t.Errorf("status after the removal of %s: %v, %v", ref, found, err)
				}
				if p.listed(id) {
					t.Errorf("%s is listed after its removal", ref)
				}
			}
		}()
	}
	for range 8 {
		<-done
	}
	p.untilEqual("in the end")
}

// listed reports whether the cached service lists an image.
func (p *pair) listed(id string) bool {
	list, err := p.cached.List(context.WithoutCancel(p.Context()), nil)
	if err != nil {
		p.Error(err)
	}
	return slices.ContainsFunc(list, func(i *runtimeapi.Image) bool { return i.GetId() == id })
}

// What is pinned depends on more than the images, and is current in answers from memory, too.
func TestPinsInAnswersFromMemoryAreCurrent(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	pauseImage := "r.test/pause:1"
	images := newService(t, e, image.Config{Pin: keep, PauseImage: func() string { return pauseImage }})
	e.Registry("r.test/a:1", enginetest.Remote{})
	e.Registry("r.test/pause:1", enginetest.Remote{})
	var ids []string
	for _, ref := range []string{"r.test/a:1", "r.test/pause:1"} {
		id, err := images.Pull(t.Context(), ref, "", nil, verify.Pod{})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	enginetest.Background(t, images.RunCache)
	enginetest.Background(t, images.RunForeign)
	untilFromMemory(t, images, e)
	e.ResetCalls()
	pinned := func() string {
		list, err := images.List(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for _, i := range list {
			got[i.GetId()] = i.GetPinned()
			if status, _, err := images.Status(t.Context(), i.GetId(), false); err != nil || status.GetPinned() != i.GetPinned() {
				return fmt.Sprintf("status %v, %v; list %v", status, err, i) // or it has changed in between
			}
		}
		return fmt.Sprint(got[ids[0]], got[ids[1]])
	}
	if got := pinned(); got != "false true" {
		t.Errorf("pinned: %s, want the pause image", got)
	}
	pauseImage = "r.test/a:1"
	if got := pinned(); got != "true false" {
		t.Errorf("pinned: %s, want the new pause image", got)
	}
	pauseImage = "r.test/none:1"
	made, err := e.Client(t).ContainerCreate(t.Context(), &container.Config{Image: "r.test/a:1"}, nil, nil, nil, "by-hand")
	if err != nil {
		t.Fatal(err)
	}
	enginetest.Until(t, "the image of a container outside of pods is not pinned", func() bool { return pinned() == "true false" })
	if err := e.Client(t).ContainerRemove(t.Context(), made.ID, container.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	enginetest.Until(t, "it is pinned without the container", func() bool { return pinned() == "false false" })
	policy := keep.Policy
	policy.KeepLocal = false
	images.SetPinPolicy(policy)
	pauseImage = "r.test/a:1"
	if got := pinned(); got != "true false" {
		t.Errorf("pinned: %s", got)
	}
	if n := e.Calls("GET /images/json", "GET /images/{name}/json"); n != 0 {
		t.Errorf("%d calls about images, want none", n)
	}
}
