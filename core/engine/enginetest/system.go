package enginetest

import (
	"net/http"
	"runtime"
	"slices"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/api/types/versions"
	"github.com/docker/docker/api/types/volume"
)

// Name is Name of GET /info, by which enginelaws recognises the fake Engine.
const Name = "enginetest"

// kernel is the reported kernel release.
const kernel = "6.1.0-18-amd64"

// serverVersion returns the version of an Engine whose newest API version is api.
func serverVersion(api string) string {
	switch api {
	case "1.41":
		return "20.10.24"
	case "1.42":
		return "23.0.6"
	case "1.43":
		return "24.0.9"
	case "1.44":
		return "25.0.5"
	case "1.45":
		return "26.1.5"
	case "1.46", "1.47":
		return "27.5.1"
	case "1.48", "1.49", "1.50", "1.51":
		return "28.5.2"
	default:
		if versions.LessThan(api, "1.41") {
			return "19.03.15"
		}
		return "29.7.2"
	}
}

// supportsLocked reports whether the Engine supports API version v.
func (e *Engine) supportsLocked(v string) bool { return versions.GreaterThanOrEqualTo(e.api, v) }

// supports is supportsLocked without e.mu held.
func (e *Engine) supports(v string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.supportsLocked(v)
}

// ping is GET and HEAD /_ping.
func (e *Engine) ping(c *call) error {
	c.responded = true
	c.Header().Set("Cache-Control", "no-cache, no-store, must-revalidate")
	c.Header().Set("Content-Type", "text/plain; charset=utf-8")
	c.WriteHeader(http.StatusOK)
	if c.Method == http.MethodHead {
		return nil
	}
	_, err := c.Write([]byte("OK"))
	return err
}

// version is GET /version.
func (e *Engine) version(c *call) error {
	e.mu.Lock()
	api, oldest := e.api, e.minAPI
	server := e.infoLocked().ServerVersion
	e.mu.Unlock()
	return c.respond(http.StatusOK, types.Version{
		Version: server, APIVersion: api, MinAPIVersion: oldest,
		Components: []types.ComponentVersion{{Name: "Engine", Version: server, Details: map[string]string{
			"ApiVersion": api, "MinAPIVersion": oldest, "Os": "linux", "Arch": runtime.GOARCH,
		}}},
		Os: "linux", Arch: runtime.GOARCH, KernelVersion: kernel, GoVersion: runtime.Version(),
	})
}

// info is GET /info.
func (e *Engine) info(c *call) error {
	e.mu.Lock()
	info := e.infoLocked()
	e.mu.Unlock()
	return c.respond(http.StatusOK, info)
}

// infoLocked returns GET /info.
func (e *Engine) infoLocked() system.Info {
	features := map[string]string{}
	if e.supportsLocked("1.44") {
		features["org.opencontainers.runtime-spec.features"] = `{"ociVersionMin":"1.0.0","ociVersionMax":"1.2.0","mountOptions":["bind","ro","rbind","rro"]}`
	}
	runc := system.RuntimeWithStatus{Runtime: system.Runtime{Path: "runc"}, Status: features}
	commit := system.Commit{ID: sha256Hex("containerd")[:40]}
	if e.containerdLost {
		commit.ID = "N/A"
	}
	info := system.Info{
		ContainerdCommit: commit,
		ID:               sha256Hex(e.Host)[:36], Name: Name, Images: len(e.images),
		Driver:       "overlay2",
		DriverStatus: [][2]string{{"Backing Filesystem", "extfs"}, {"Supports d_type", "true"}, {"Native Overlay Diff", "true"}},
		Plugins: system.PluginsInfo{
			Volume: []string{"local"}, Network: []string{"bridge", "host", "null"}, Log: []string{"json-file", "local", "none"},
		},
		MemoryLimit: true, SwapLimit: true, CPUCfsPeriod: true, CPUCfsQuota: true, CPUShares: true, CPUSet: true,
		PidsLimit: true, IPv4Forwarding: true, OomKillDisable: true,
		SystemTime:    formatTime(time.Now()),
		LoggingDriver: jsonLogDriver, CgroupDriver: "cgroupfs", CgroupVersion: "1",
		NEventsListener: e.listenersLocked(),
		KernelVersion:   kernel, OperatingSystem: "Maps", OSVersion: "12", OSType: "linux", Architecture: "x86_64",
		NCPU: 2, MemTotal: 8 << 30, DockerRootDir: e.RootDir, ServerVersion: serverVersion(e.api),
		Runtimes: map[string]system.RuntimeWithStatus{
			"io.containerd.runc.v2": runc, "runc": runc,
		},
		DefaultRuntime: "runc", Swarm: swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive},
		LiveRestoreEnabled: e.liveRestore, InitBinary: "docker-init",
		SecurityOptions: []string{"name=seccomp,profile=default"},
	}
	if e.supportsLocked("1.42") {
		info.SecurityOptions = []string{"name=seccomp,profile=builtin"}
	}
	if e.supportsLocked("1.50") {
		info.CDISpecDirs = []string{"/etc/cdi", "/var/run/cdi"}
	}
	for _, b := range e.containers {
		info.Containers++
		switch {
		case b.state.Paused:
			info.ContainersPaused++
		case b.state.Running:
			info.ContainersRunning++
		default:
			info.ContainersStopped++
		}
	}
	for _, edit := range e.editInfo {
		edit(&info)
	}
	return info
}

// diskUsage is GET /system/df.
func (e *Engine) diskUsage(c *call) error {
	return c.respond(http.StatusOK, e.diskUsageOf(c.query["type"]))
}

// diskUsageOf returns the disk usage of the given kinds of objects. Before API 1.42 it is always
// that of all.
func (e *Engine) diskUsageOf(kinds []string) types.DiskUsage {
	e.mu.Lock()
	defer e.mu.Unlock()
	wants := func(kind types.DiskUsageObject) bool {
		return !e.supportsLocked("1.42") || len(kinds) == 0 || slices.Contains(kinds, string(kind))
	}
	usage := types.DiskUsage{}
	if wants(types.ImageObject) {
		usage.Images = []*image.Summary{}
		for _, p := range e.images {
			usage.LayersSize += p.Size
			row := e.imageSummaryLocked(p)
			row.SharedSize, row.Containers = 0, 0
			for _, b := range e.containers {
				if b.image == p.ID {
					row.Containers++
				}
			}
			usage.Images = append(usage.Images, &row)
		}
	}
	if wants(types.ContainerObject) {
		usage.Containers = []*container.Summary{}
		for _, b := range e.newestFirstLocked() {
			row := e.summaryLocked(b)
			usage.Containers = append(usage.Containers, &row)
		}
	}
	if wants(types.VolumeObject) {
		usage.Volumes = []*volume.Volume{}
	}
	return usage
}
