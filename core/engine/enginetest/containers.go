package enginetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/storage"
)

// zeroTime is how the Engine API writes a time that is not set.
const zeroTime = "0001-01-01T00:00:00Z"

// formatTime formats a time as the Engine API does.
func formatTime(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// A fakeContainer is a container of the Engine. Engine.mu guards it, except what never changes:
// id, created, config, image, path, args, files, links, removed, output.
type fakeContainer struct {
	id, name string
	created  time.Time
	config   *container.Config
	host     *container.HostConfig
	image    string // ID
	path     string
	args     []string
	files    map[string]string // of its image, by path
	links    map[string]string // of its image: targets of symbolic links, by path

	state          container.State
	process        *Process      // nil unless it runs
	stdin          *pipe         // of the running process, or of the next one
	exited         chan struct{} // closed when the process has exited; nil before the first
	removed        chan struct{} // closed when the container is removed
	removing       bool
	unkillable     bool  // see Unkillable
	pendingSignals []int // delivered when the container is unpaused
	output         *output
	ttySizes       [][2]uint

	hostname                            string // of the container whose network it shares
	hostsFile, hostnameFile, resolvConf string // paths of files
	sandboxID, endpoint, logPath        string
}

// command returns the path and the arguments of b.
func (b *fakeContainer) command() []string { return append([]string{b.path}, b.args...) }

// findContainerLocked finds a container by ID, name, or prefix of its ID.
func (e *Engine) findContainerLocked(name string) (*fakeContainer, error) {
	if b, ok := e.containers[name]; ok {
		return b, nil
	}
	var found []*fakeContainer
	for _, b := range e.containers {
		if b.name == strings.TrimPrefix(name, "/") {
			return b, nil
		}
		if strings.HasPrefix(b.id, name) {
			found = append(found, b)
		}
	}
	switch {
	case len(found) == 0 || name == "":
		return nil, errorf(http.StatusNotFound, "No such container: %s", name)
	case len(found) == 1:
		return found[0], nil
	default:
		return nil, errorf(http.StatusBadRequest, "multiple IDs found with provided prefix: %s", name)
	}
}

func (e *Engine) containerDir(id string) string { return filepath.Join(e.RootDir, "containers", id) }

func (e *Engine) layerDir(id string) string {
	return filepath.Join(e.RootDir, "overlay2", sha256Hex("layer of "+id))
}

// inspect is GET /containers/{id}/json.
func (e *Engine) inspect(c *call) error {
	e.mu.Lock()
	b, err := e.findContainerLocked(c.name)
	if err != nil {
		e.mu.Unlock()
		return err
	}
	found := e.inspectLocked(b)
	if c.boolParam("size") {
		var written, all int64
		err := filepath.WalkDir(filepath.Join(e.layerDir(b.id), "diff"), func(_ string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			if err == nil {
				written += info.Size()
			}
			return err
		})
		if err != nil {
			written = -1 // as Engines report a failure
		}
		all = written
		found.SizeRw, found.SizeRootFs = &written, &all
	}
	text, err := json.Marshal(found)
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return c.respond(http.StatusOK, json.RawMessage(text))
}

// inspectLocked returns the inspect result of b. It shares memory with b: use it with e.mu held.
func (e *Engine) inspectLocked(b *fakeContainer) container.InspectResponse {
	state, config := b.state, *b.config
	if b.hostname != "" {
		config.Hostname = b.hostname
	}
	var execs []string
	for _, s := range e.execs {
		if s.container == b && s.process != nil {
			execs = append(execs, s.id)
		}
	}
	settings := &container.NetworkSettings{Networks: e.endpointsLocked(b)}
	settings.SandboxID = b.sandboxID
	if b.sandboxID != "" {
		settings.SandboxKey = filepath.Join(e.RootDir, "netns", b.sandboxID[:12])
	}
	dir, driver := e.layerDir(b.id), e.infoLocked().Driver
	base := &container.ContainerJSONBase{
		ID: b.id, Created: formatTime(b.created), Path: b.path, Args: append([]string{}, b.args...), State: &state, Image: b.image, Name: "/" + b.name,
		Driver: driver, Platform: "linux",
		ResolvConfPath: b.resolvConf, HostnamePath: b.hostnameFile, HostsPath: b.hostsFile, LogPath: b.logPath,
		ExecIDs: execs, HostConfig: b.host,
		GraphDriver: storage.DriverData{Name: driver, Data: map[string]string{
			"UpperDir": filepath.Join(dir, "diff"), "MergedDir": filepath.Join(dir, "merged"), "WorkDir": filepath.Join(dir, "work"),
		}},
	}
	return container.InspectResponse{ContainerJSONBase: base, Mounts: b.mounts(), Config: &config, NetworkSettings: settings}
}

// mounts returns the mounts of b as in an inspect result.
func (b *fakeContainer) mounts() []container.MountPoint {
	points := []container.MountPoint{}
	for _, m := range b.host.Mounts {
		point := container.MountPoint{Type: m.Type, Source: m.Source, Destination: m.Target, RW: !m.ReadOnly}
		if m.BindOptions != nil {
			point.Propagation = m.BindOptions.Propagation
		}
		if m.Type == mount.TypeBind && point.Propagation == "" {
			point.Propagation = mount.PropagationRPrivate
		}
		points = append(points, point)
	}
	return points
}

// endpointsLocked returns the networks to which b is attached.
func (e *Engine) endpointsLocked(b *fakeContainer) map[string]*network.EndpointSettings {
	name := string(b.host.NetworkMode)
	switch {
	case b.config.NetworkDisabled, b.host.NetworkMode.IsContainer():
		return map[string]*network.EndpointSettings{}
	case b.host.NetworkMode.IsDefault():
		name = network.NetworkBridge
	}
	end := &network.EndpointSettings{EndpointID: b.endpoint}
	if b.state.StartedAt != zeroTime || b.state.ExitCode != 0 {
		end.NetworkID = sha256Hex("network " + name)
	}
	if name == network.NetworkBridge && b.state.Running {
		n, _ := strconv.ParseUint(b.id[:2], 16, 8)
		end.IPAddress, end.IPPrefixLen, end.Gateway = fmt.Sprintf("172.17.0.%d", n%250+2), 16, "172.17.0.1"
	}
	return map[string]*network.EndpointSettings{name: end}
}

// list is GET /containers/json.
func (e *Engine) list(c *call) error {
	args, err := c.filters("ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label",
		"name", "network", "publish", "since", "status", "volume")
	if err != nil {
		return err
	}
	for _, s := range args.Get("status") {
		if container.ValidateContainerState(s) != nil {
			return errorf(http.StatusBadRequest, "Invalid filter 'status=%s'", s)
		}
	}
	limit, err := c.intParam("limit", 0)
	if err != nil {
		return err
	}
	all := c.boolParam("all") || limit > 0 || len(args.Get("status")) > 0
	rows := []container.Summary{}
	e.mu.Lock()
	for _, b := range e.newestFirstLocked() {
		switch {
		case !all && !b.state.Running,
			len(args.Get("id")) > 0 && !args.Match("id", b.id),
			len(args.Get("name")) > 0 && !args.Match("name", b.name) && !args.Match("name", "/"+b.name),
			!args.MatchKVList("label", b.config.Labels),
			!args.ExactMatch("status", b.state.Status),
			!args.ExactMatch("exited", strconv.Itoa(b.state.ExitCode)):
			continue
		}
		if a := args.Get("ancestor"); len(a) > 0 && !slices.ContainsFunc(a, func(ref string) bool {
			p, err := e.findImageLocked(ref)
			return err == nil && e.descendsLocked(b.image, p.ID)
		}) {
			continue
		}
		if rows = append(rows, e.summaryLocked(b)); limit > 0 && len(rows) == limit {
			break
		}
	}
	e.mu.Unlock()
	return c.respond(http.StatusOK, rows)
}

// descendsLocked reports whether an image is another one or was built from it.
func (e *Engine) descendsLocked(id, from string) bool {
	for id != from {
		p := e.images[id]
		if p == nil || p.Parent == "" {
			return false
		}
		id = p.Parent
	}
	return true
}

// newestFirstLocked returns all containers, the newest first.
func (e *Engine) newestFirstLocked() []*fakeContainer {
	list := slices.Collect(maps.Values(e.containers))
	sort.Slice(list, func(i, j int) bool { return list[i].created.After(list[j].created) })
	return list
}

// summaryLocked returns the list entry of b.
func (e *Engine) summaryLocked(b *fakeContainer) container.Summary {
	words := b.command()
	for i, w := range words {
		if strings.ContainsAny(w, " '\"") {
			words[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	row := container.Summary{
		ID: b.id, Names: []string{"/" + b.name}, Image: b.config.Image, ImageID: b.image, Command: strings.Join(words, " "),
		Created: b.created.Unix(), Ports: []container.Port{}, Labels: b.config.Labels, State: b.state.Status, Status: statusText(b.state),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: e.endpointsLocked(b)}, Mounts: b.mounts(),
	}
	if p, err := e.findImageLocked(row.Image); err != nil || p.ID != b.image {
		row.Image = b.image // the name belongs to another image now
	}
	row.HostConfig.NetworkMode = string(b.host.NetworkMode)
	if e.supportsLocked("1.46") {
		row.HostConfig.Annotations = b.host.Annotations
	}
	return row
}

// statusText returns the human-readable status of a list entry.
func statusText(s container.State) string {
	ago := func(at string) string {
		t, _ := time.Parse(time.RFC3339Nano, at)
		if d := time.Since(t); d >= time.Second {
			return d.Round(time.Second).String()
		}
		return "Less than a second"
	}
	switch {
	case s.Status == container.StateRemoving:
		return "Removal In Progress"
	case s.Dead:
		return "Dead"
	case s.Paused:
		return "Up " + ago(s.StartedAt) + " (Paused)"
	case s.Running:
		return "Up " + ago(s.StartedAt)
	case s.StartedAt == zeroTime:
		return "Created"
	default:
		return fmt.Sprintf("Exited (%d) %s ago", s.ExitCode, ago(s.FinishedAt))
	}
}

// rename is POST /containers/{id}/rename.
func (e *Engine) rename(c *call) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	name := strings.TrimPrefix(c.query.Get("name"), "/")
	b, err := e.findContainerLocked(c.name)
	switch {
	case name == "":
		return errorf(http.StatusBadRequest, "Neither old nor new names may be empty")
	case err != nil:
		return err
	case b.name == name:
		return errorf(http.StatusBadRequest, "Renaming a container with the same name as its current name")
	}
	if r := e.checkNameLocked(name); r != nil {
		return errorf(r.status, "Error when allocating new name: %s", r.text)
	}
	old := b.name
	b.name = name
	e.emitLocked(b, events.ActionRename, map[string]string{"oldName": "/" + old})
	return c.respond(http.StatusNoContent, nil)
}

// update is POST /containers/{id}/update.
func (e *Engine) update(c *call) error {
	var request container.UpdateConfig
	if err := c.decode(&request); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.findContainerLocked(c.name)
	switch {
	case err != nil:
		return err
	case request.Memory != 0 && request.Memory < minMemory:
		return errorf(http.StatusBadRequest, "Minimum memory limit allowed is 6MB")
	case b.removing || b.state.Dead:
		return errorf(http.StatusConflict, "Cannot update container %s: Container is marked for removal and cannot be \"update\".", b.id)
	case request.Memory > b.host.MemorySwap && request.MemorySwap == 0:
		return errorf(http.StatusConflict, "Cannot update container %s: Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time", b.id)
	}
	host := *b.host // inspect results may share the old one
	for _, f := range []struct{ have, want *int64 }{
		{&host.CPUShares, &request.CPUShares}, {&host.CPUPeriod, &request.CPUPeriod}, {&host.CPUQuota, &request.CPUQuota},
		{&host.Memory, &request.Memory}, {&host.MemorySwap, &request.MemorySwap}, {&host.MemoryReservation, &request.MemoryReservation},
	} {
		if *f.want != 0 {
			*f.have = *f.want
		}
	}
	for _, f := range []struct{ have, want *string }{{&host.CpusetCpus, &request.CpusetCpus}, {&host.CpusetMems, &request.CpusetMems}} {
		if *f.want != "" {
			*f.have = *f.want
		}
	}
	if request.PidsLimit != nil {
		host.PidsLimit = request.PidsLimit
	}
	if request.RestartPolicy.Name != "" {
		host.RestartPolicy = request.RestartPolicy
	}
	b.host = &host
	e.emitLocked(b, events.ActionUpdate, nil)
	return c.respond(http.StatusOK, container.UpdateResponse{})
}

// remove is DELETE /containers/{id}.
func (e *Engine) remove(c *call) error {
	e.mu.Lock()
	b, err := e.findRemovableLocked(c.name, c.boolParam("force"))
	if err != nil {
		e.mu.Unlock()
		return err
	}
	b.removing = true
	takes := e.removeTakes
	e.mu.Unlock()

	// It is completed even if the client closes the connection.
	err = e.sendSignal(b, "KILL")
	if err == nil && takes > 0 {
		e.mu.Lock()
		b.state.Status = container.StateRemoving
		e.mu.Unlock()
		select {
		case <-time.After(takes):
		case <-c.server.ctx.Done():
		}
	}
	e.mu.Lock()
	if err != nil {
		b.removing = false
		e.mu.Unlock()
		return errorf(http.StatusInternalServerError, "Could not kill running container %s, cannot remove - %v", b.id, err)
	}
	e.deleteLocked(b)
	e.mu.Unlock()
	return c.respond(http.StatusNoContent, nil)
}

// findRemovableLocked finds a container and checks that it may be removed.
func (e *Engine) findRemovableLocked(name string, force bool) (*fakeContainer, error) {
	b, err := e.findContainerLocked(name)
	switch {
	case err != nil:
		return nil, err
	case b.removing:
		return nil, errorf(http.StatusConflict, "removal of container %s is already in progress", name)
	case force || !b.state.Running:
		return b, nil
	case b.state.Paused:
		return nil, errorf(http.StatusConflict, "You cannot remove a paused container %s. Unpause and then stop the container before attempting removal or force remove", b.id)
	case e.supportsLocked("1.44"):
		return nil, errorf(http.StatusConflict, "cannot remove container %q: container is running: stop the container before removing or force remove", "/"+b.name)
	default:
		return nil, errorf(http.StatusConflict, "You cannot remove a running container %s. Stop the container before attempting removal or force remove", b.id)
	}
}

// deleteLocked deletes b.
func (e *Engine) deleteLocked(b *fakeContainer) {
	if e.containers[b.id] != b {
		return
	}
	delete(e.containers, b.id)
	for id, s := range e.execs {
		if s.container == b {
			delete(e.execs, id)
		}
	}
	close(b.removed)
	e.emitLocked(b, events.ActionDestroy, nil)
	if err := errors.Join(os.RemoveAll(e.containerDir(b.id)), os.RemoveAll(e.layerDir(b.id))); err != nil {
		e.t.Error(err)
	}
}

// resize is POST /containers/{id}/resize.
func (e *Engine) resize(c *call) error {
	size, err := c.size()
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.findContainerLocked(c.name)
	if err != nil {
		return err
	}
	if !b.state.Running {
		return errorf(http.StatusConflict, "Container %s is not running", b.id)
	}
	b.ttySizes = append(b.ttySizes, size)
	e.emitLocked(b, events.ActionResize, map[string]string{"height": strconv.Itoa(int(size[0])), "width": strconv.Itoa(int(size[1]))})
	return c.respond(http.StatusOK, nil)
}

// size returns the height and width of a terminal from the query.
func (c *call) size() (size [2]uint, err error) {
	for i, side := range []string{"h", "w"} {
		n, err := strconv.ParseUint(c.query.Get(side), 10, 16)
		if err != nil {
			return size, errorf(http.StatusBadRequest, "%v", err)
		}
		size[i] = uint(n)
	}
	return size, nil
}

// Len returns the number of containers.
func (e *Engine) Len() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.containers)
}

// Container returns the inspect result of a container by ID or name without counting as a call;
// ok is false if there is none.
func (e *Engine) Container(id string) (found container.InspectResponse, ok bool) {
	e.t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.findContainerLocked(id)
	if err != nil {
		return found, false
	}
	text, err := json.Marshal(e.inspectLocked(b))
	if err == nil {
		err = json.Unmarshal(text, &found)
	}
	if err != nil {
		e.t.Error(err)
	}
	return found, err == nil
}

// Sizes returns the sizes, height and width each, to which the terminal of the container id
// was resized since its start.
func (e *Engine) Sizes(id string) [][2]uint {
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.findContainerLocked(id)
	if err != nil {
		return nil
	}
	return slices.Clone(b.ttySizes)
}

// editContainer calls do for the container id, which must exist.
func (e *Engine) editContainer(id string, do func(*fakeContainer)) {
	e.t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.findContainerLocked(id)
	if err != nil {
		e.t.Errorf("enginetest: %v", err)
		return
	}
	do(b)
}

// SetState changes the reported state of the container id, for states that the Engine does not
// get into by itself, such as dead. Processes and events are not affected.
func (e *Engine) SetState(id string, edit func(*container.State)) {
	e.t.Helper()
	e.editContainer(id, func(b *fakeContainer) { edit(&b.state) })
}

// Unkillable sets whether the process of the container id survives SIGKILL, like one in an
// uninterruptible sleep. Kills, stops and removals then fail with status 500.
func (e *Engine) Unkillable(id string, on bool) {
	e.t.Helper()
	e.editContainer(id, func(b *fakeContainer) { b.unkillable = on })
}

// LeakName makes name taken by a container that does not exist, as Engines do when a create
// fails half-way. It stays taken until the Engine restarts.
func (e *Engine) LeakName(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.leakedNames[name] = true
}

// RemoveTakes sets the duration of every removal. Meanwhile the container is in state removing,
// and another removal of it is a conflict.
func (e *Engine) RemoveTakes(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.removeTakes = d
}
