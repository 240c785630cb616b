package enginelaws

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/client"
	"golang.org/x/sys/unix"
)

// A Gate is a field of engine.Features that depends on the Engine's version.
type Gate struct {
	// Field is the name of the field, and Since the first API version that has it.
	Field, Since string
	// Works uses the feature and reports whether it had an effect: on a real Engine by the
	// container's processes and mounts, on the fake one by its responses.
	Works func(t *testing.T, docker *client.Client, ref string) bool
}

// Gates returns a Gate for each field of engine.Features that depends on the Engine's
// version.
func Gates() []Gate {
	gate := func(field, since string, works func(*lawTest) bool) Gate {
		return Gate{field, since, func(t *testing.T, docker *client.Client, ref string) bool {
			t.Helper()
			return works(&lawTest{T: t, docker: docker, ref: ref, ctx: t.Context()})
		}}
	}
	return []Gate{
		gate("SeccompBuiltin", "1.42", seccompBuiltinWorks),
		gate("ShimRuntimes", "1.42", shimRuntimesWork),
		gate("Annotations", "1.43", annotationsWork),
		gate("ReadOnlyNonRecursive", "1.44", readOnlyNonRecursiveWorks),
		gate("RecursiveReadOnly", "1.44", recursiveReadOnlyWorks),
		gate("ImageMounts", "1.48", imageMountsWork),
		gate("WritableCgroups", "1.48", writableCgroupsWork),
		gate("CDI", "1.50", cdiWorks),
	}
}

// FakeName is Name of GET /info of the fake Engine, enginetest.Name.
const FakeName = "enginetest"

// isRealEngine reports whether the Engine is not the fake one.
func (c *lawTest) isRealEngine() bool {
	c.Helper()
	info, err := c.docker.Info(c.ctx)
	c.must(err)
	return info.Name != FakeName
}

// isCreated reports whether the Engine creates a container. Unless it does, its error must have
// the text.
func (c *lawTest) isCreated(text string, change func(*container.HostConfig)) bool {
	c.Helper()
	host := &container.HostConfig{LogConfig: container.LogConfig{Type: jsonLogDriver}}
	change(host)
	created, err := c.docker.ContainerCreate(c.ctx, &container.Config{Image: c.ref, Entrypoint: []string{"sleep", "1000"}, NetworkDisabled: true}, host, nil, nil, c.name())
	if err != nil {
		if !strings.Contains(err.Error(), text) {
			c.Errorf("unexpected error: %v", err)
		}
		return false
	}
	c.removeOnCleanup(created.ID)
	return true
}

// shimRuntimesWork: since Docker 23 the name of a shim that daemon.json does not have is a
// runtime. Whether it is installed is found out at the start.
func shimRuntimesWork(c *lawTest) bool {
	return c.isCreated("untime", func(host *container.HostConfig) { host.Runtime = "io.containerd.berth-none.v1" })
}

// writableCgroupsWork: before Docker 28 the security option is unknown.
func writableCgroupsWork(c *lawTest) bool {
	return c.isCreated("security-opt", func(host *container.HostConfig) {
		host.CgroupnsMode, host.SecurityOpt = container.CgroupnsModePrivate, []string{"writable-cgroups=true"}
	})
}

// tryStart creates and starts a container that sleeps, and returns the error of either.
func (c *lawTest) tryStart(change func(*container.Config, *container.HostConfig)) (id string, err error) {
	c.Helper()
	config := &container.Config{Image: c.ref, Entrypoint: []string{"sleep", "1000"}, NetworkDisabled: true}
	host := &container.HostConfig{LogConfig: container.LogConfig{Type: jsonLogDriver}}
	change(config, host)
	created, err := c.docker.ContainerCreate(c.ctx, config, host, nil, nil, c.name())
	if err != nil {
		return "", err
	}
	c.removeOnCleanup(created.ID)
	return created.ID, c.docker.ContainerStart(c.ctx, created.ID, container.StartOptions{})
}

// seccompBuiltinWorks: before Docker 23 the text after "seccomp=" is a profile, as JSON.
func seccompBuiltinWorks(c *lawTest) bool {
	id, err := c.tryStart(func(_ *container.Config, host *container.HostConfig) { host.SecurityOpt = []string{"seccomp=builtin"} })
	if err != nil {
		if !strings.Contains(err.Error(), "seccomp") {
			c.Errorf("unexpected error: %v", err)
		}
		return false
	}
	if c.isRealEngine() {
		status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(c.inspect(id).State.Pid), "status"))
		c.must(err)
		if !strings.Contains(string(status), "\nSeccomp:\t2\n") {
			c.Errorf("started without a seccomp filter:\n%s", status)
		}
	}
	return true
}

// annotationsWork: annotations are in the container's OCI specification, where runc reads
// org.systemd.property.*. Before Docker 24 they are dropped without an error.
func annotationsWork(c *lawTest) bool {
	const key = "org.systemd.property.TimeoutStopUSec"
	id, err := c.tryStart(func(_ *container.Config, host *container.HostConfig) {
		host.Annotations = map[string]string{key: "uint64 1000000"}
	})
	c.must(err)
	seen := c.inspect(id)
	_, inspected := seen.HostConfig.Annotations[key]
	if c.isRealEngine() {
		if _, given := c.ociSpec(seen.State.Pid).Annotations[key]; given != inspected {
			c.Errorf("inspected: %v, in the OCI specification: %v", inspected, given)
		}
	}
	return inspected
}

// ociSpec returns the OCI specification of the container whose first process is pid. The
// parent process is the containerd shim, whose working directory is the bundle.
func (c *lawTest) ociSpec(pid int) (spec struct{ Annotations map[string]string }) {
	c.Helper()
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	c.must(err)
	_, fields, _ := strings.Cut(string(stat), ") ") // after the command's name
	var state string
	var parent int
	_, err = fmt.Sscan(fields, &state, &parent)
	c.must(err)
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(parent), "cwd", "config.json"))
	c.must(err)
	c.must(json.Unmarshal(text, &spec))
	return spec
}

// readOnlyNonRecursiveWorks: since Docker 25 a read-only mount is recursive unless this field
// is set. Before, it never is, and the field is dropped.
func readOnlyNonRecursiveWorks(c *lawTest) bool {
	below, seen := c.startReadOnly(&mount.BindOptions{ReadOnlyNonRecursive: true})
	if below != "" && below != "rw" {
		c.Errorf("with ReadOnlyNonRecursive the mount below is %s, want rw", below)
	}
	known := seen.ReadOnlyNonRecursive
	if plain, _ := c.startReadOnly(&mount.BindOptions{}); plain == "ro" && !known {
		c.Error("read-only mounts are recursive, but ReadOnlyNonRecursive is not supported")
	}
	return known
}

// recursiveReadOnlyWorks: the client refuses the field for Engines before Docker 25.
func recursiveReadOnlyWorks(c *lawTest) bool {
	if !c.isRealEngine() {
		return c.accepts(&mount.BindOptions{ReadOnlyForceRecursive: true, Propagation: mount.PropagationRPrivate})
	}
	below, _ := c.startReadOnly(&mount.BindOptions{ReadOnlyForceRecursive: true, Propagation: mount.PropagationRPrivate})
	return below == "ro"
}

// accepts reports whether a container with a read-only mount with these options can be created.
func (c *lawTest) accepts(options *mount.BindOptions) bool {
	c.Helper()
	_, err := c.tryStart(func(_ *container.Config, host *container.HostConfig) {
		host.Mounts = []mount.Mount{{Type: mount.TypeBind, Source: c.TempDir(), Target: "/mnt", ReadOnly: true, BindOptions: options}}
	})
	return err == nil
}

// startReadOnly starts a container with a read-only mount of a directory that has another
// mount below it. It returns whether that one is "ro" or "rw" in the container, "" if the
// Engine is not a real one or has refused the options, and the options as inspected.
func (c *lawTest) startReadOnly(options *mount.BindOptions) (mode string, seen mount.BindOptions) {
	c.Helper()
	dir := c.TempDir()
	if c.isRealEngine() {
		below := filepath.Join(dir, "below")
		c.must(os.Mkdir(below, 0o755))
		c.must(unix.Mount("tmpfs", below, "tmpfs", 0, ""))
		c.Cleanup(func() { c.must(unix.Unmount(below, unix.MNT_DETACH)) })
	}
	id, err := c.tryStart(func(_ *container.Config, host *container.HostConfig) {
		host.Mounts = []mount.Mount{{Type: mount.TypeBind, Source: dir, Target: "/mnt", ReadOnly: true, BindOptions: options}}
	})
	if options.ReadOnlyForceRecursive && err != nil {
		c.Logf("refused: %v", err)
		return "", seen
	}
	c.must(err)
	found := c.inspect(id)
	if inspected := found.HostConfig.Mounts[0].BindOptions; inspected != nil {
		seen = *inspected
	}
	if !c.isRealEngine() {
		return "", seen
	}
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(found.State.Pid), "mountinfo"))
	c.must(err)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[4] == "/mnt/below" {
			mode, _, _ = strings.Cut(f[5], ",")
		}
	}
	if mode == "" {
		c.Fatalf("the mount below is missing:\n%s", text)
	}
	return mode, seen
}

// imageMountsWork: mounts of type image exist since Docker 28.0, with their sub-path.
func imageMountsWork(c *lawTest) bool {
	id, err := c.tryStart(func(_ *container.Config, host *container.HostConfig) {
		host.Mounts = []mount.Mount{{
			Type: mount.TypeImage, Source: c.ref, Target: "/mnt", ReadOnly: true, ImageOptions: &mount.ImageOptions{Subpath: "etc"},
		}}
	})
	if err != nil {
		if !strings.Contains(err.Error(), "mount type") {
			c.Errorf("unexpected error: %v", err)
		}
		return false
	}
	if c.isRealEngine() {
		_, err := os.Stat(filepath.Join("/proc", strconv.Itoa(c.inspect(id).State.Pid), "root", "mnt", "passwd"))
		c.must(err)
	}
	return true
}

// cdiWorks requests a device that no CDI specification describes. Before Docker 28.2 there is
// no device driver "cdi", unless features.cdi is set in daemon.json.
func cdiWorks(c *lawTest) bool {
	_, err := c.tryStart(func(_ *container.Config, host *container.HostConfig) {
		host.DeviceRequests = []container.DeviceRequest{{Driver: "cdi", DeviceIDs: []string{"berth.test/none=x"}}}
	})
	switch text := fmt.Sprint(err); {
	case strings.Contains(text, "could not select device driver"):
		return false
	case strings.Contains(text, "unresolvable CDI devices"):
		return true
	default:
		c.Errorf("unexpected error: %v", err)
		return false
	}
}
