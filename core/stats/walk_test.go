package stats

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/engine/enginetest"
)

const mib = 1 << 20

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// complete runs a walk to its end, in slices so short that it is interrupted all the time.
func complete(t *testing.T, w *walk) (bytes, inodes uint64) {
	t.Helper()
	for range 100_000 {
		if w.run(time.Now().Add(20 * time.Microsecond)) {
			if len(w.fds) != 0 || len(w.levels) != 0 || w.held != 0 {
				t.Errorf("%d descriptors, %d levels and %d bytes of names are left", len(w.fds), len(w.levels), w.held)
			}
			return w.total()
		}
	}
	t.Fatal("no end")
	return 0, 0
}

func TestWalk(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "sub", "big")
	must(t, os.Mkdir(filepath.Dir(big), 0o755), os.WriteFile(big, make([]byte, mib), 0o600),
		os.Link(big, filepath.Join(dir, "again")), os.Link(big, filepath.Join(dir, "third")), os.Symlink("/", filepath.Join(dir, "link")))
	for name, run := range map[string]func(*walk) (uint64, uint64){
		"in slices": func(w *walk) (uint64, uint64) { return complete(t, w) },
		"at once": func(w *walk) (uint64, uint64) {
			if !w.run(time.Now().Add(time.Minute)) {
				t.Error("not complete")
			}
			return w.total()
		},
	} {
		w := newWalk(dir)
		bytes, inodes := run(w)
		// Two directories, a link, and a file of a megabyte that has three names.
		if inodes != 4 || bytes < mib || bytes > mib+64<<10 || w.missed != nil {
			t.Errorf("%s: %d bytes, %d inodes, missed %v", name, bytes, inodes, w.missed)
		}
	}
}

// Directories of any width and shape are counted once, however often the walk is interrupted.
func TestWalkResumes(t *testing.T) {
	dir := t.TempDir()
	want := uint64(1)
	for i := range 40 {
		sub := filepath.Join(dir, fmt.Sprintf("%02d-%s", i, strings.Repeat("x", 200)))
		must(t, os.MkdirAll(filepath.Join(sub, "a", "b"), 0o700))
		want += 3
		for j := range 60 {
			must(t, os.WriteFile(filepath.Join(sub, fmt.Sprint("file", j)), nil, 0o600), os.Mkdir(filepath.Join(sub, "a", fmt.Sprint("d", j)), 0o700))
			want += 2
		}
	}
	if _, inodes := complete(t, newWalk(dir)); inodes != want {
		t.Errorf("%d inodes, want %d", inodes, want)
	}
}

// Names of directories are not collected without end.
func TestWalkKeepsFewNames(t *testing.T) {
	dir := t.TempDir()
	// More than may be kept, spread over the levels of a path.
	at, want := dir, uint64(1)
	for range 30 {
		for i := range 100 {
			must(t, os.Mkdir(filepath.Join(at, fmt.Sprintf("%03d%s", i, strings.Repeat("n", 120))), 0o700))
			want++
		}
		at = filepath.Join(at, "050"+strings.Repeat("n", 120))
		if len(at) > 3800 {
			break
		}
	}
	w := newWalk(dir)
	most := 0
	for !w.run(time.Now().Add(50 * time.Microsecond)) {
		most = max(most, w.held)
	}
	if _, inodes := w.total(); inodes != want {
		t.Errorf("%d inodes, want %d", inodes, want)
	}
	if most > mostPending {
		t.Errorf("%d bytes of names were kept", most)
	}
}

// The memory of a walk does not grow with the names that a file has, nor with the width
// of a directory.
func TestWalkOfManyLinksNeedsNoMemory(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "one"), make([]byte, mib), 0o600))
	const links = 30_000
	for i := range links {
		if err := os.Link(filepath.Join(dir, "one"), filepath.Join(dir, fmt.Sprint(i))); err != nil {
			t.Skip(err)
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	w := newWalk(dir)
	for !w.run(time.Now().Add(time.Millisecond)) {
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > mib {
		t.Errorf("%d bytes are held", grown)
	}
	if bytes, inodes := w.total(); inodes != 2 || bytes < mib || bytes > 3*mib {
		t.Errorf("%d bytes, %d inodes", bytes, inodes)
	}
}

// Paths can get longer than the kernel takes at a time.
func TestWalkGoesDeep(t *testing.T) {
	dir := t.TempDir()
	name := strings.Repeat("d", 200)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	const levels = 60
	for range levels {
		below := -1
		if err = unix.Mkdirat(fd, name, 0o700); err == nil {
			below, err = unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		}
		unix.Close(fd)
		must(t, err)
		fd = below
	}
	deep, err := unix.Openat(fd, "deep", unix.O_CREAT|unix.O_WRONLY, 0o600)
	unix.Close(fd)
	must(t, err)
	_, err = unix.Write(deep, make([]byte, mib))
	unix.Close(deep)
	must(t, err)
	w := newWalk(dir)
	bytes, inodes := complete(t, w)
	if inodes != levels+2 || bytes < mib || w.missed != nil {
		t.Errorf("%d bytes, %d inodes, want a megabyte and %d; missed %v", bytes, inodes, levels+2, w.missed)
	}

	w = newWalk(filepath.Join(dir, "none"), dir)
	if _, inodes := complete(t, w); !errors.Is(w.absent, fs.ErrNotExist) || inodes != levels+2 {
		t.Errorf("where nothing is: %v; %d inodes", w.absent, inodes)
	}
}

// A directory that is replaced by a link while the walk is interrupted leads nowhere.
func TestWalkFollowsNoLinkThatReplacesADirectory(t *testing.T) {
	outside := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(outside, "inner", "more"), 0o700), os.WriteFile(filepath.Join(outside, "inner", "big"), make([]byte, mib), 0o600))
	for name, swap := range map[string]func(dir string) error{
		"the directory": func(dir string) error {
			return errors.Join(os.Rename(filepath.Join(dir, "a", "inner"), filepath.Join(dir, "b")), os.Symlink(filepath.Join(outside, "inner"), filepath.Join(dir, "a", "inner")))
		},
		"one on the way to it": func(dir string) error {
			return errors.Join(os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "b")), os.Symlink(outside, filepath.Join(dir, "a")))
		},
	} {
		dir := t.TempDir()
		must(t, os.MkdirAll(filepath.Join(dir, "a", "inner", "more"), 0o700))
		for i := range 3 {
			must(t, os.WriteFile(filepath.Join(dir, "a", "inner", fmt.Sprint(i)), nil, 0o600))
		}
		w := newWalk(dir)
		for len(w.levels) < 3 { // it is in a/inner
			if w.run(time.Now()) {
				t.Fatal("too quick")
			}
		}
		must(t, swap(dir))
		if bytes, _ := complete(t, w); bytes >= mib {
			t.Errorf("%s: %d bytes, those of other files", name, bytes)
		}
	}
}

// Other file systems are not the container's.
func TestWalkStaysOnItsMount(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "mounted")
	must(t, os.Mkdir(at, 0o700))
	if err := unix.Mount("none", at, "tmpfs", 0, ""); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(at, 0)) })
	must(t, os.WriteFile(filepath.Join(at, "big"), make([]byte, mib), 0o600))
	w := newWalk(dir)
	if bytes, _ := complete(t, w); bytes >= mib || w.missed != nil {
		t.Errorf("%d bytes, missed %v", bytes, w.missed)
	}
}

// measured is a Service on an Engine with one container, and that container.
func measured(t *testing.T) (*Service, *enginetest.Engine, *cache.Container, string) {
	t.Helper()
	e := enginetest.New(t)
	e.AddImage(enginetest.Image{}, "busybox:1")
	s := New(e.Connect(t), nil, slog.New(slog.DiscardHandler))
	c, upper := another(t, e, "one")
	return s, e, c, upper
}

func another(t *testing.T, e *enginetest.Engine, name string) (*cache.Container, string) {
	t.Helper()
	made, err := e.Client(t).ContainerCreate(t.Context(), &container.Config{Image: "busybox:1"}, nil, nil, nil, name)
	must(t, err)
	found, _ := e.Container(made.ID)
	upper := found.GraphDriver.Data["UpperDir"]
	must(t, os.MkdirAll(upper, 0o755), os.WriteFile(filepath.Join(upper, "big"), make([]byte, mib), 0o600))
	return &cache.Container{
		Row: &runtimeapi.Container{Id: made.ID, State: runtimeapi.ContainerState_CONTAINER_RUNNING}, Pid: 7, Running: true, Layer: upper,
	}, upper
}

func exited(c *cache.Container) *cache.Container {
	after := *c
	after.Row = &runtimeapi.Container{Id: c.ID(), State: runtimeapi.ContainerState_CONTAINER_EXITED}
	after.Pid, after.Running = 0, false
	return &after
}

// Before the first measurement nothing is told, which is not the same as 0.
func TestNoWritableLayerBeforeTheFirstMeasurement(t *testing.T) {
	s, _, c, _ := measured(t)
	if got := s.writable(c.ID()); got != nil {
		t.Errorf("before: %v", got)
	}
	must(t, s.measure(c))
	if got := s.writable(c.ID()); got.GetUsedBytes().GetValue() < mib || got.GetInodesUsed().GetValue() != 2 || got.GetTimestamp() == 0 {
		t.Errorf("after: %v", got)
	}
}

// What ended before it was measured, perhaps under an earlier daemon, is measured once.
func TestExitedContainerIsMeasuredOnce(t *testing.T) {
	s, e, running, upper := measured(t)
	created := exited(running)
	created.Row.State = runtimeapi.ContainerState_CONTAINER_CREATED
	measure := func(c *cache.Container, want uint64) {
		t.Helper()
		must(t, s.measure(c))
		if _, inodes, _ := s.Written(); inodes != want {
			t.Errorf("%d inodes written, want %d", inodes, want)
		}
	}
	measure(created, 0)
	measure(exited(running), 2)
	must(t, os.WriteFile(filepath.Join(upper, "more"), nil, 0o600))
	measure(exited(running), 2)
	// What was measured while it ran is not what it has left.
	s.written[running.ID()].of.pid = 7
	measure(exited(running), 3)
	if n := e.Calls("GET /containers/{id}/json"); n != 0 {
		t.Errorf("the Engine was asked %d times", n)
	}
}

// Where a layer is, is for the Engine to say, and only below its own directory; of others
// the Engine tells the size. What the container's mount table says does not matter.
func TestLayerIsNotWhereItsContainerSays(t *testing.T) {
	foreign := t.TempDir()
	must(t, os.WriteFile(filepath.Join(foreign, "secret"), make([]byte, 5*mib), 0o600))
	for name, dir := range map[string]string{"outside": foreign, "through a parent": "", "not told": "", "gone": "gone"} {
		s, e, c, upper := measured(t)
		switch c.Layer = dir; name {
		case "through a parent":
			c.Layer = filepath.Dir(upper) + "/../../.." + foreign
		case "gone":
			c.Layer = upper + "/none"
		}
		c.Pid = os.Getpid() // whose root is what it is here
		must(t, s.measure(c))
		if got := s.writable(c.ID()); got != nil {
			t.Errorf("%s: before the Engine has answered: %v", name, got)
		}
		s.askSizes(t.Context())
		s.measuring[c.ID()].resume = time.Time{}
		must(t, s.measure(c))
		got := s.writable(c.ID())
		if got == nil || got.GetUsedBytes().GetValue() >= 5*mib || got.GetInodesUsed() != nil {
			t.Errorf("%s: %v", name, got)
		}
		if n := e.Calls("GET /containers/{id}/json"); n != 1 {
			t.Errorf("%s: the Engine was asked %d times", name, n)
		}
	}
	for options, want := range map[string]string{
		"rw,lowerdir=/l,upperdir=/data/docker/u,workdir=/w": "/data/docker/u", "rw,upperdir=/ctrd/s/1/fs": "/ctrd/s/1/fs", "rw,lowerdir=/l": "",
		"upperdir=/var/lib/dpkg/info": "", "upperdir=/data/docker/../../etc": "", "upperdir=/data/dockerx/u": "", "upperdir=relative": "",
	} {
		if got := upperDir(options, "/data/docker", "/ctrd"); got != want {
			t.Errorf("%s: %q, want %q", options, got, want)
		}
		if got := upperDir(options, ""); got != "" {
			t.Errorf("%s, without a root: %q", options, got)
		}
	}
}

// A container with more files than can be counted in a slice is counted bit by bit, tells
// what was found so far, and does not keep others waiting.
func TestHugeContainerDoesNotStarveOthers(t *testing.T) {
	defer func(was time.Duration) { measureSlice = was }(measureSlice)
	measureSlice = time.Nanosecond
	s, e, huge, upper := measured(t)
	other, _ := another(t, e, "other")
	const files = 300
	for i := range files {
		must(t, os.WriteFile(filepath.Join(upper, fmt.Sprint(i)), nil, 0o600))
	}
	must(t, s.measure(huge))
	if w := s.written[huge.ID()]; w == nil || !w.partial || w.inodes > files {
		t.Errorf("after one slice: %+v", w)
	}
	// It rests now, and the other one does not.
	before := s.written[huge.ID()].inodes
	must(t, s.measure(huge))
	s.measuring[huge.ID()].resume = time.Now().Add(time.Hour)
	must(t, s.measure(huge))
	if after := s.written[huge.ID()].inodes; after > before+1 {
		t.Errorf("%d, %d inodes: there was no rest", before, after)
	}
	measureSlice = time.Minute
	must(t, s.measure(other))
	if w := s.written[other.ID()]; w == nil || w.partial || w.inodes != 2 {
		t.Errorf("the other one: %+v", w)
	}
	s.measuring[huge.ID()].resume = time.Time{}
	must(t, s.measure(huge))
	if w := s.written[huge.ID()]; w.partial || w.inodes != files+2 || len(s.measuring) != 0 {
		t.Errorf("in the end: %+v", w)
	}
}

// The Engine takes its time for one container, or hangs: others are measured meanwhile.
func TestHangingEngineDoesNotKeepMeasuringWaiting(t *testing.T) {
	s, e, c, _ := measured(t)
	c.Layer = ""
	e.Hang("GET /containers/{id}/json")
	other, _ := another(t, e, "other")
	begin := time.Now()
	must(t, os.MkdirAll(filepath.Join(e.RootDir, "containers", c.ID(), "local-logs"), 0o700),
		os.WriteFile(filepath.Join(e.RootDir, "containers", c.ID(), "local-logs", "container.log"), make([]byte, mib), 0o600))
	must(t, s.measure(c), s.measure(other))
	if got := s.writable(c.ID()); got != nil {
		t.Errorf("%v, though the most of it is not known", got)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if s.written[other.ID()] == nil {
		t.Error("the other one is not measured")
	}
}

// What Docker keeps of the output, and volumes made for the image, count; the volumes of
// others do not.
func TestLogsAndVolumesCount(t *testing.T) {
	s, e, c, _ := measured(t)
	logs := filepath.Join(e.RootDir, "containers", c.ID())
	volume := filepath.Join(e.RootDir, "volumes", "v", "_data")
	foreign := t.TempDir()
	c.JSONPath = filepath.Join(logs, c.ID()+"-json.log")
	c.Volumes = []string{volume, foreign}
	must(t, os.MkdirAll(volume, 0o700), os.MkdirAll(filepath.Join(logs, "local-logs"), 0o700),
		os.WriteFile(filepath.Join(volume, "data"), make([]byte, 3*mib), 0o600), os.WriteFile(filepath.Join(foreign, "data"), make([]byte, 30*mib), 0o600),
		os.WriteFile(c.JSONPath, make([]byte, 5*mib), 0o600), os.WriteFile(c.JSONPath+".1", make([]byte, 7*mib), 0o600),
		os.WriteFile(filepath.Join(logs, "local-logs", "container.log"), make([]byte, 11*mib), 0o600))
	must(t, s.measure(c))
	const want = (1 + 3 + 5 + 7 + 11) * mib
	if got := s.writable(c.ID()).GetUsedBytes().GetValue(); got < want || got > want+mib {
		t.Errorf("%d bytes, want %d", got, want)
	}
	if bytes, _, layers := s.Written(); bytes < want || layers < mib || layers > 2*mib {
		t.Errorf("%d bytes, %d of them in the root file system", bytes, layers)
	}
}
