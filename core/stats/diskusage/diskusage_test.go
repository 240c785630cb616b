package diskusage

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/engine/enginetest"
	"berth/core/logs/dockerlog"
)

// newTracker returns a Tracker on a Docker Engine with one running container, that
// container and its writable layer.
func newTracker(t *testing.T) (*Tracker, *enginetest.Engine, *cache.Container, string) {
	t.Helper()
	e := enginetest.New(t)
	e.AddImage(enginetest.Image{}, "busybox:1")
	tracker := New(e.Connect(t), nil, slog.New(slog.DiscardHandler))
	c, upper := addContainer(t, e, "one")
	return tracker, e, c, upper
}

// addContainer adds a running container with a file of a megabyte in its writable layer.
func addContainer(t *testing.T, e *enginetest.Engine, name string) (*cache.Container, string) {
	t.Helper()
	made, err := e.Client(t).ContainerCreate(t.Context(), &container.Config{Image: "busybox:1"}, nil, nil, nil, name)
	must(t, err)
	found, _ := e.Container(made.ID)
	upper := found.GraphDriver.Data["UpperDir"]
	must(t, os.MkdirAll(upper, 0o755), os.WriteFile(filepath.Join(upper, "big"), make([]byte, mib), 0o600))
	return &cache.Container{
		Row: &runtimeapi.Container{Id: made.ID, State: runtimeapi.ContainerState_CONTAINER_RUNNING}, Pid: 7, Running: true, WritableLayer: upper,
	}, upper
}

// exited returns c after its exit.
func exited(c *cache.Container) *cache.Container {
	after := *c
	after.Row = &runtimeapi.Container{Id: c.ID(), State: runtimeapi.ContainerState_CONTAINER_EXITED}
	after.Pid, after.Running = 0, false
	return &after
}

func TestNoUsageBeforeFirstMeasurement(t *testing.T) {
	tracker, _, c, _ := newTracker(t)
	if got := tracker.Last(c.ID()); got != nil {
		t.Errorf("before: %+v", got)
	}
	must(t, tracker.measure(c))
	if got := tracker.Last(c.ID()); got.Bytes < mib || got.Inodes != 2 || !got.HasInodes || got.At.IsZero() {
		t.Errorf("after: %+v", got)
	}
}

// A container may exit before it was measured, for example while berthd does not run.
func TestExitedContainerIsMeasuredOnce(t *testing.T) {
	tracker, e, running, upper := newTracker(t)
	created := exited(running)
	created.Row.State = runtimeapi.ContainerState_CONTAINER_CREATED
	measure := func(c *cache.Container, want uint64) {
		t.Helper()
		must(t, tracker.measure(c))
		if _, inodes, _ := tracker.Totals(); inodes != want {
			t.Errorf("%d inodes written, want %d", inodes, want)
		}
	}
	measure(created, 0)
	measure(exited(running), 2)
	must(t, os.WriteFile(filepath.Join(upper, "more"), nil, 0o600))
	measure(exited(running), 2)
	// A measurement of the running container is not the final one.
	tracker.usage[running.ID()].run.pid = 7
	measure(exited(running), 3)
	if n := e.Calls("GET /containers/{id}/json"); n != 0 {
		t.Errorf("%d inspects, want none", n)
	}
}

// The directory of a layer comes from Docker and must be below Docker's data root, never
// from the container's own mount table. Without one Docker reports the size.
func TestLayerOutsideDataRootIsNotRead(t *testing.T) {
	foreign := t.TempDir()
	must(t, os.WriteFile(filepath.Join(foreign, "secret"), make([]byte, 5*mib), 0o600))
	for name, dir := range map[string]string{"outside": foreign, "through ..": "", "not reported": "", "removed": "removed"} {
		tracker, e, c, upper := newTracker(t)
		switch c.WritableLayer = dir; name {
		case "through ..":
			c.WritableLayer = filepath.Dir(upper) + "/../../.." + foreign
		case "removed":
			c.WritableLayer = upper + "/none"
		}
		c.Pid = os.Getpid() // a process whose mount table has other directories
		must(t, tracker.measure(c))
		if got := tracker.Last(c.ID()); got != nil {
			t.Errorf("%s: usage %+v before Docker has responded", name, got)
		}
		tracker.updateEngineSizes(t.Context())
		tracker.measurements[c.ID()].resume = time.Time{}
		must(t, tracker.measure(c))
		got := tracker.Last(c.ID())
		if got == nil || got.Bytes >= 5*mib || got.HasInodes {
			t.Errorf("%s: %+v", name, got)
		}
		if n := e.Calls("GET /containers/{id}/json"); n != 1 {
			t.Errorf("%s: %d inspects, want 1", name, n)
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

// A container with more files than can be counted in a slice is counted slice by slice.
// Until that is complete its usage is what was found so far.
func TestHugeContainerDoesNotStarveOthers(t *testing.T) {
	tracker, e, huge, upper := newTracker(t)
	tracker.slice = time.Nanosecond
	other, _ := addContainer(t, e, "other")
	const files = 300
	for i := range files {
		must(t, os.WriteFile(filepath.Join(upper, fmt.Sprint(i)), nil, 0o600))
	}
	must(t, tracker.measure(huge))
	if w := tracker.usage[huge.ID()]; w == nil || !w.partial || w.Inodes > files {
		t.Errorf("after one slice: %+v", w)
	}
	// There is a pause after the slice for this container, not for the other one.
	before := tracker.usage[huge.ID()].Inodes
	must(t, tracker.measure(huge))
	tracker.measurements[huge.ID()].resume = time.Now().Add(time.Hour)
	must(t, tracker.measure(huge))
	if after := tracker.usage[huge.ID()].Inodes; after > before+1 {
		t.Errorf("%d inodes, then %d: there was no pause", before, after)
	}
	tracker.slice = time.Minute
	must(t, tracker.measure(other))
	if w := tracker.usage[other.ID()]; w == nil || w.partial || w.Inodes != 2 {
		t.Errorf("other container: %+v", w)
	}
	tracker.measurements[huge.ID()].resume = time.Time{}
	must(t, tracker.measure(huge))
	if w := tracker.usage[huge.ID()]; w.partial || w.Inodes != files+2 || len(tracker.measurements) != 0 {
		t.Errorf("after the last slice: %+v", w)
	}
}

func TestHangingEngineDoesNotBlockMeasurement(t *testing.T) {
	tracker, e, c, _ := newTracker(t)
	c.WritableLayer = ""
	e.Hang("GET /containers/{id}/json")
	other, _ := addContainer(t, e, "other")
	begin := time.Now()
	must(t, os.MkdirAll(filepath.Join(e.RootDir, "containers", c.ID(), "local-logs"), 0o700),
		os.WriteFile(filepath.Join(e.RootDir, "containers", c.ID(), "local-logs", "container.log"), make([]byte, mib), 0o600))
	must(t, tracker.measure(c), tracker.measure(other))
	if got := tracker.Last(c.ID()); got != nil {
		t.Errorf("usage %+v, though the size of the layer is not known", got)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if tracker.usage[other.ID()] == nil {
		t.Error("the other container is not measured")
	}
}

func TestUsageIncludesDockerLogsAndOwnVolumesOnly(t *testing.T) {
	tracker, e, c, _ := newTracker(t)
	logs := filepath.Join(e.RootDir, "containers", c.ID())
	volume := filepath.Join(e.RootDir, "volumes", "v", "_data")
	foreign := t.TempDir()
	c.LogFile = dockerlog.File{Driver: dockerlog.JSONFile, Path: filepath.Join(logs, c.ID()+"-json.log")}
	c.Volumes = []string{volume, foreign}
	must(t, os.MkdirAll(volume, 0o700), os.MkdirAll(filepath.Join(logs, "local-logs"), 0o700),
		os.WriteFile(filepath.Join(volume, "data"), make([]byte, 3*mib), 0o600), os.WriteFile(filepath.Join(foreign, "data"), make([]byte, 30*mib), 0o600),
		os.WriteFile(c.LogFile.Path, make([]byte, 5*mib), 0o600), os.WriteFile(c.LogFile.Path+".1", make([]byte, 7*mib), 0o600),
		os.WriteFile(filepath.Join(logs, "local-logs", "container.log"), make([]byte, 11*mib), 0o600))
	must(t, tracker.measure(c))
	const want = (1 + 3 + 5 + 7 + 11) * mib
	if got := tracker.Last(c.ID()).Bytes; got < want || got > want+mib {
		t.Errorf("%d bytes, want %d", got, want)
	}
	if bytes, _, layerBytes := tracker.Totals(); bytes < want || layerBytes < mib || layerBytes > 2*mib {
		t.Errorf("%d bytes, %d of them in the writable layer", bytes, layerBytes)
	}
}

// A panic while the size of one container is requested from Docker must not end the loop for
// all of them, nor repeat at once.
func TestPanicForOneContainerDoesNotEndEngineSizes(t *testing.T) {
	var out bytes.Buffer
	tracker := New(nil, nil, slog.New(slog.NewTextHandler(&out, nil)))
	calls := map[string]int{}
	tracker.inspectSize = func(_ context.Context, id string) (uint64, error) {
		if calls[id]++; id == "broken" {
			panic("no such field")
		}
		return 42, nil
	}
	broken, healthy := runKey{"broken", 1}, runKey{"healthy", 2}
	for range 3 {
		tracker.requestEngineSize(broken)
		tracker.requestEngineSize(healthy)
		tracker.updateEngineSizes(t.Context())
	}
	if got := tracker.requestEngineSize(healthy); got.bytes != 42 || got.at.IsZero() {
		t.Errorf("size of the healthy container %+v", got)
	}
	if calls["broken"] != 1 || calls["healthy"] != 1 {
		t.Errorf("calls %v, want one for each container within measureInterval", calls)
	}
	if !strings.Contains(out.String(), "no such field") {
		t.Errorf("the panic is not in the log: %s", out.String())
	}
}
