package enginetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
)

// minMemory is the lowest memory limit that Engines accept, in bytes.
const minMemory = 6 << 20

var (
	validName  = regexp.MustCompile(`^/?[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)
	shim       = regexp.MustCompile(`^[^./][^/]*\.[^/]+$`) // any that containerd could have
	capability = regexp.MustCompile(`^(ALL|CAP_(AUDIT_(CONTROL|READ|WRITE)|BLOCK_SUSPEND|BPF|CHECKPOINT_RESTORE|CHOWN|DAC_(OVERRIDE|READ_SEARCH)|FOWNER|FSETID|IPC_(LOCK|OWNER)|KILL|LEASE|LINUX_IMMUTABLE|MAC_(ADMIN|OVERRIDE)|MKNOD|NET_(ADMIN|BIND_SERVICE|BROADCAST|RAW)|PERFMON|SET(FCAP|GID|PCAP|UID)|SYS_(ADMIN|BOOT|CHROOT|MODULE|NICE|PACCT|PTRACE|RAWIO|RESOURCE|TIME|TTY_CONFIG)|SYSLOG|WAKE_ALARM))$`)
)

// The default masked and read-only paths.
var (
	maskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// create is POST /containers/create.
func (e *Engine) create(c *call) error {
	var request container.CreateRequest
	if err := json.NewDecoder(c.Body).Decode(&request); err != nil {
		status := http.StatusInternalServerError
		if e.supports("1.42") {
			status = http.StatusBadRequest
		}
		return errorf(status, "%v", err)
	}
	if request.Config == nil {
		return errorf(http.StatusBadRequest, "Config cannot be empty in order to create a container")
	}
	if request.HostConfig == nil {
		request.HostConfig = &container.HostConfig{}
	}
	warnings := []string{}
	if request.HostConfig.BlkioWeight > 0 { // as on a kernel without it
		request.HostConfig.BlkioWeight = 0
		warnings = append(warnings, "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.")
	}
	e.mu.Lock()
	b, err := e.newContainerLocked(c.query.Get("name"), request.Config, request.HostConfig)
	if err == nil {
		e.containers[b.id] = b
		e.emitLocked(b, events.ActionCreate, nil)
	}
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return c.respond(http.StatusCreated, container.CreateResponse{ID: b.id, Warnings: warnings})
}

// newContainerLocked returns a new container, which the caller adds to e.containers.
func (e *Engine) newContainerLocked(name string, config *container.Config, host *container.HostConfig) (*fakeContainer, error) {
	if err := errors.Join(checkHost(config, host), e.checkFeaturesLocked(host), e.checkMountsLocked(host.Mounts)); err != nil {
		return nil, err
	}
	var image string
	var files, links map[string]string
	if config.Image != "" {
		p, err := e.findImageLocked(config.Image)
		if err != nil {
			return nil, errorf(http.StatusNotFound, "No such image: %s", withTag(config.Image))
		}
		image, files, links = p.ID, p.files(), p.Links
		mergeImageConfig(config, p.Config)
	}
	argv := slices.Concat([]string(config.Entrypoint), []string(config.Cmd))
	if len(argv) == 0 || len(argv) == 1 && argv[0] == "" {
		return nil, errorf(http.StatusBadRequest, "No command specified")
	}
	id := e.newIDLocked()
	if name == "" {
		name = "quiet_" + id[:8]
	}
	if r := e.checkNameLocked(name); r != nil {
		return nil, r
	}
	for _, mode := range []*string{(*string)(&host.IpcMode), (*string)(&host.PidMode)} {
		if err := e.resolveModeLocked(mode, true); err != nil {
			return nil, err
		}
	}
	if err := e.resolveModeLocked((*string)(&host.NetworkMode), false); err != nil {
		return nil, err
	}
	e.setDefaultsLocked(config, host, id)
	b := &fakeContainer{
		id: id, name: strings.TrimPrefix(name, "/"), created: time.Now().UTC(),
		config: config, host: host, image: image, path: argv[0], args: argv[1:], files: files, links: links,
		state:   container.State{Status: container.StateCreated, StartedAt: zeroTime, FinishedAt: zeroTime},
		removed: make(chan struct{}),
		output:  newOutput(config.Tty),
		stdin:   newPipe(),
	}
	if err := errors.Join(os.MkdirAll(e.containerDir(id), 0o710), os.MkdirAll(filepath.Join(e.layerDir(id), "diff"), 0o755)); err != nil {
		return nil, err
	}
	return b, nil
}

// invalidParameter returns the error of an invalid request, with status 400.
func invalidParameter(format string, args ...any) error {
	return errorf(http.StatusBadRequest, format, args...)
}

// checkHost returns an error for a request that every Engine refuses.
func checkHost(config *container.Config, host *container.HostConfig) error {
	for what, list := range map[string][]string{"CapAdd": host.CapAdd, "CapDrop": host.CapDrop} {
		for _, c := range list {
			if c = strings.ToUpper(c); c != "ALL" && !strings.HasPrefix(c, "CAP_") {
				c = "CAP_" + c
			}
			if !capability.MatchString(c) {
				return invalidParameter("invalid %s: unknown capability: %q", what, c)
			}
		}
	}
	switch {
	case host.NetworkMode.IsContainer() && config.Hostname != "":
		return invalidParameter("conflicting options: hostname and the network mode")
	case host.UTSMode.IsHost() && config.Hostname != "":
		return invalidParameter("conflicting options: hostname and the UTS mode")
	case host.Memory != 0 && host.Memory < minMemory:
		return invalidParameter("Minimum memory limit allowed is 6MB")
	case host.Memory > 0 && host.MemorySwap > 0 && host.MemorySwap < host.Memory:
		return invalidParameter("Minimum memoryswap limit should be larger than memory limit, see usage")
	case host.Memory == 0 && host.MemorySwap > 0:
		return invalidParameter("You should always set the Memory limit when using Memoryswap limit, see usage")
	case host.OomScoreAdj < -1000 || host.OomScoreAdj > 1000:
		return invalidParameter("Invalid value %d, range for oom score adj is [-1000, 1000]", host.OomScoreAdj)
	}
	if config.StopSignal != "" {
		if _, err := signalNumber(config.StopSignal); err != nil {
			return invalidParameter("Invalid signal: %s", config.StopSignal)
		}
	}
	return nil
}

// checkFeaturesLocked returns an error for what this Engine does not support.
func (e *Engine) checkFeaturesLocked(host *container.HostConfig) error {
	self := e.infoLocked()
	known := host.Runtime == "" || e.supportsLocked("1.42") && shim.MatchString(host.Runtime)
	if _, ok := self.Runtimes[host.Runtime]; !known && !ok {
		if e.supportsLocked("1.44") {
			return invalidParameter("unknown or invalid runtime name: %s", host.Runtime)
		}
		return invalidParameter("Unknown runtime specified %s", host.Runtime)
	}
	if p := host.CgroupParent; p != "" && self.CgroupDriver == "systemd" && (!strings.HasSuffix(p, ".slice") || strings.Contains(p, "/")) {
		return invalidParameter(`cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice"`)
	}
	for _, opt := range host.SecurityOpt {
		key, _, _ := strings.Cut(strings.Replace(opt, ":", "=", 1), "=")
		switch key {
		case "no-new-privileges", "seccomp", "apparmor", "label", "systempaths":
		case "writable-cgroups":
			if !e.supportsLocked("1.48") {
				return errorf(http.StatusInternalServerError, "invalid --security-opt 2: %q", opt)
			}
		default:
			return errorf(http.StatusInternalServerError, "invalid --security-opt 2: %q", opt)
		}
	}
	return nil
}

// checkMountsLocked returns an error for invalid mounts.
func (e *Engine) checkMountsLocked(mounts []mount.Mount) error {
	targets := map[string]bool{}
	for _, m := range mounts {
		target := filepath.Clean(m.Target)
		if !filepath.IsAbs(target) {
			return invalidParameter("invalid mount config for type %q: invalid mount path: '%s' mount path must be absolute", m.Type, m.Target)
		}
		if targets[target] {
			return invalidParameter("Duplicate mount point: %s", m.Target)
		}
		targets[target] = true
		options := m.BindOptions
		if options == nil {
			options = &mount.BindOptions{}
		}
		switch m.Type {
		case mount.TypeBind:
			_, err := os.Stat(m.Source)
			if errors.Is(err, os.ErrNotExist) && (!options.CreateMountpoint || !e.supportsLocked("1.42")) {
				return invalidParameter("invalid mount config for type \"bind\": bind source path does not exist: %s", m.Source)
			}
			if options.ReadOnlyNonRecursive && !m.ReadOnly {
				return invalidParameter("mount options conflict: !ReadOnly && BindOptions.ReadOnlyNonRecursive")
			}
			if strings.HasPrefix(m.Source, e.RootDir) || strings.HasPrefix(e.RootDir, m.Source) {
				switch options.Propagation {
				case "", mount.PropagationRSlave, mount.PropagationRShared:
				default:
					return invalidParameter(`invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source is within the daemon root, daemon root: %q, bind mount source: %q`, e.RootDir, m.Source)
				}
			}
		case mount.TypeImage:
			if !e.supportsLocked("1.48") {
				return invalidParameter("invalid mount config for type \"image\": mount type unknown")
			}
			if _, err := e.findImageLocked(m.Source); err != nil {
				return errorf(http.StatusNotFound, "No such image: %s", withTag(m.Source))
			}
		case mount.TypeVolume, mount.TypeTmpfs:
		default:
			return invalidParameter("invalid mount config for type %q: mount type unknown", m.Type)
		}
	}
	return nil
}

// checkSubPathsLocked returns an error if an image mount of b has a sub-path that is not in the
// image.
func (e *Engine) checkSubPathsLocked(b *fakeContainer) error {
	for _, m := range b.host.Mounts {
		if m.Type != mount.TypeImage || m.ImageOptions == nil || m.ImageOptions.Subpath == "" {
			continue
		}
		p, err := e.findImageLocked(m.Source)
		if err != nil {
			return err
		}
		at, found := path.Join("/", m.ImageOptions.Subpath), false
		for name := range p.files() {
			found = found || name == at || strings.HasPrefix(name, at+"/")
		}
		if !found {
			return errorf(http.StatusInternalServerError, "cannot access path %s: no such file or directory", at)
		}
	}
	return nil
}

// mergeImageConfig adds to a request what it takes from the image.
func mergeImageConfig(config *container.Config, image container.Config) {
	or := func(have *string, def string) {
		if *have == "" {
			*have = def
		}
	}
	or(&config.User, image.User)
	or(&config.WorkingDir, image.WorkingDir)
	or(&config.StopSignal, image.StopSignal)
	have := map[string]bool{}
	for _, kv := range config.Env {
		k, _, _ := strings.Cut(kv, "=")
		have[k] = true
	}
	for _, kv := range image.Env {
		if k, _, _ := strings.Cut(kv, "="); !have[k] {
			config.Env = append(config.Env, kv)
		}
	}
	if len(image.Labels) > 0 {
		labels := maps.Clone(image.Labels)
		maps.Copy(labels, config.Labels)
		config.Labels = labels
	}
	if len(config.Entrypoint) == 0 {
		if len(config.Cmd) == 0 {
			config.Cmd = image.Cmd
		}
		if config.Entrypoint == nil {
			config.Entrypoint = image.Entrypoint
		}
	}
	if config.Healthcheck == nil {
		config.Healthcheck = image.Healthcheck
	}
	if len(image.Volumes) > 0 && config.Volumes == nil {
		config.Volumes = maps.Clone(image.Volumes)
	}
}

// setDefaultsLocked sets the defaults of a request.
func (e *Engine) setDefaultsLocked(config *container.Config, host *container.HostConfig, id string) {
	self := e.infoLocked()
	if config.Labels == nil {
		config.Labels = map[string]string{}
	}
	if config.Hostname == "" && !host.NetworkMode.IsContainer() {
		config.Hostname = id[:12]
		if host.NetworkMode.IsHost() || host.UTSMode.IsHost() {
			config.Hostname = self.Name
		}
	}
	if host.Runtime == "" {
		host.Runtime = self.DefaultRuntime
	}
	if host.NetworkMode == "" {
		host.NetworkMode = network.NetworkDefault
	}
	if host.IpcMode == "" {
		host.IpcMode = container.IPCModePrivate
	}
	if host.CgroupnsMode == "" {
		host.CgroupnsMode = container.CgroupnsModeHost
		if self.CgroupVersion == "2" {
			host.CgroupnsMode = container.CgroupnsModePrivate
		}
	}
	if host.ShmSize == 0 && !host.IpcMode.IsContainer() {
		host.ShmSize = 64 << 20
	}
	if host.LogConfig.Type == "" {
		host.LogConfig.Type = self.LoggingDriver
	}
	if host.LogConfig.Config == nil {
		host.LogConfig.Config = map[string]string{}
	}
	if host.Memory > 0 && host.MemorySwap == 0 {
		host.MemorySwap = 2 * host.Memory
	}
	if host.OomKillDisable == nil && self.CgroupVersion == "1" {
		host.OomKillDisable = new(bool)
	}
	// null means the default, [] none; for privileged containers null means none.
	if !host.Privileged && host.MaskedPaths == nil {
		host.MaskedPaths = maskedPaths
	}
	if !host.Privileged && host.ReadonlyPaths == nil {
		host.ReadonlyPaths = readonlyPaths
	}
	if !e.supportsLocked("1.43") {
		host.Annotations = nil
	}
	for _, m := range host.Mounts {
		if m.BindOptions != nil && !e.supportsLocked("1.44") {
			m.BindOptions.ReadOnlyNonRecursive, m.BindOptions.ReadOnlyForceRecursive = false, false
		}
	}
}

// checkNameLocked returns nil if name is valid and free.
func (e *Engine) checkNameLocked(name string) *apiError {
	if !validName.MatchString(name) {
		return &apiError{http.StatusBadRequest, fmt.Sprintf("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)}
	}
	name = strings.TrimPrefix(name, "/")
	holder := ""
	if e.leakedNames[name] {
		holder = sha256Hex("holder of " + name)
	}
	for _, b := range e.containers {
		if b.name == name {
			holder = b.id
		}
	}
	if holder == "" {
		return nil
	}
	return &apiError{http.StatusConflict, fmt.Sprintf("Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, holder)}
}

// resolveModeLocked replaces the name in a mode such as container:web by the ID.
func (e *Engine) resolveModeLocked(mode *string, must bool) error {
	name, ok := strings.CutPrefix(*mode, "container:")
	if !ok {
		return nil
	}
	b, err := e.findContainerLocked(name)
	switch {
	case err == nil:
		*mode = "container:" + b.id
	case must:
		return invalidParameter("No such container: %s", name)
	}
	return nil
}
