package engine

import (
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/docker/docker/api/types/system"
	"golang.org/x/sys/unix"
)

func TestFeaturesFromInfo(t *testing.T) {
	old := newFeatures(system.Info{
		ServerVersion: "20.10.24", CgroupVersion: "1", CgroupDriver: "cgroupfs", DefaultRuntime: "runc", KernelVersion: "6.1.0",
		SecurityOptions: []string{"name=apparmor", "name=seccomp,profile=default"},
		Runtimes:        map[string]system.RuntimeWithStatus{"runc": {}},
	}, "1.41")
	if old.SeccompBuiltin || old.ReadOnlyNonRecursive || old.ImageMounts || old.Runtimes["runc"].RecursiveReadOnly || old.CDI ||
		!old.StagedMounts || !old.AppArmor || old.SeccompProfile != "default" || old.CgroupVersion != 1 {
		t.Errorf("20.10: %+v", old)
	}
	features := map[string]string{"org.opencontainers.runtime-spec.features": `{"mountOptions":["ro","rro"]}`}
	recent := newFeatures(system.Info{
		ServerVersion: "28.5.2", CgroupVersion: "2", KernelVersion: "6.12.1-amd64", CDISpecDirs: []string{"/etc/cdi"},
		DriverStatus:    [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}},
		SecurityOptions: []string{"name=seccomp,profile=builtin", "name=userns", "name=selinux"},
		Runtimes:        map[string]system.RuntimeWithStatus{"runc": {Status: features}, "old": {}},
	}, "1.51")
	if !recent.SeccompBuiltin || !recent.ReadOnlyNonRecursive || !recent.ImageMounts || !recent.Runtimes["runc"].RecursiveReadOnly ||
		recent.Runtimes["old"].RecursiveReadOnly || !recent.CDI || !recent.Snapshotter || !recent.UserNSRemap || !recent.SELinux || recent.CgroupVersion != 2 {
		t.Errorf("28.5: %+v", recent)
	}
	if !newFeatures(system.Info{SecurityOptions: []string{"name=rootless"}}, "1.41").Rootless {
		t.Error("a rootless Engine is not reported as such")
	}
}

func TestKernelAtLeast(t *testing.T) {
	for release, want := range map[string]bool{"5.12.0": true, "5.4.0-1": false, "6.1": true, "4.19": false, "odd": false} {
		if got := kernelAtLeast(release, 5, 12); got != want {
			t.Errorf("%s: %v", release, got)
		}
	}
}

// A connect to a Unix socket whose backlog is full blocks.
func TestPeerPIDTimesOutOnAFullBacklog(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for range 3 {
		conn, err := net.DialTimeout("unix", path, 100*time.Millisecond)
		if err == nil {
			defer conn.Close()
		}
	}
	if _, err := peerPID(path); err == nil {
		t.Error("got a process, want an error: the backlog is full")
	}
	if took := time.Since(begin); took > 10*localDialTimeout {
		t.Errorf("it took %v", took)
	}
}
