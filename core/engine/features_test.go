package engine

import (
	"testing"

	"github.com/docker/docker/api/types/system"
)

func TestFeaturesFromInfo(t *testing.T) {
	old := newFeatures(system.Info{
		ServerVersion: "20.10.24", CgroupVersion: "1", CgroupDriver: "cgroupfs", DefaultRuntime: "runc", KernelVersion: "6.1.0",
		SecurityOptions: []string{"name=apparmor", "name=seccomp,profile=default"},
		Runtimes:        map[string]system.RuntimeWithStatus{"runc": {Runtime: system.Runtime{Path: "runc"}}},
	}, "1.41")
	if old.SeccompBuiltin || old.ReadOnlyNonRecursive || old.ImageMounts || old.Runtimes["runc"].RecursiveReadOnly || old.CDI ||
		!old.RuncShim("") || !old.Premounts || !old.AppArmor || old.SeccompProfile != "default" || old.CgroupVersion != 1 {
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
		recent.Runtimes["old"].RecursiveReadOnly || !recent.CDI || len(recent.CDISpecDirs) != 1 || !recent.Snapshotter || !recent.UserNSRemap || !recent.SELinux || recent.CgroupVersion != 2 {
		t.Errorf("28.5: %+v", recent)
	}
	runtimes := newFeatures(system.Info{DefaultRuntime: "kata", Runtimes: map[string]system.RuntimeWithStatus{
		"crun":   {Runtime: system.Runtime{Path: "/usr/bin/crun"}},
		"nvidia": {Runtime: system.Runtime{Type: "io.containerd.runc.v2", Options: map[string]any{"BinaryName": "nvidia-container-runtime"}}},
		"kata":   {Runtime: system.Runtime{Type: "io.containerd.kata.v2"}},
		"gvisor": {Runtime: system.Runtime{Type: "io.containerd.runsc.v1"}},
	}}, "1.51")
	for runtime, want := range map[string]bool{"crun": true, "nvidia": true, "kata": false, "": false, "gvisor": false, "io.containerd.runc.v2": false} {
		if runtimes.RuncShim(runtime) != want {
			t.Errorf("the runtime %q is run by the shim for runc: %v", runtime, !want)
		}
	}
	if !newFeatures(system.Info{SecurityOptions: []string{"name=rootless"}}, "1.41").Rootless {
		t.Error("a rootless Engine is not reported as such")
	}
}

func TestDiscarded(t *testing.T) {
	const weight = "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded."
	if got := Discarded([]string{"other", weight}); got != weight {
		t.Errorf("%q", got)
	}
	if got := Discarded([]string{"Memory limited without swap."}); got != "" {
		t.Errorf("%q", got)
	}
}
