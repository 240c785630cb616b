package enginetest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/storage"
	"github.com/docker/docker/api/types/versions"
)

// An Image describes an image. The zero Image runs a shell as root.
type Image struct {
	ID      string            // a default if empty
	Config  container.Config  // User, Env, Entrypoint, Cmd, WorkingDir, Labels, StopSignal, Volumes, Healthcheck
	Size    int64             // bytes; 1 MB if 0
	Created time.Time         // now if zero
	Files   map[string]string // by absolute path; /etc/passwd and /etc/group have defaults
	Links   map[string]string // symbolic links and their targets, by absolute path
	Layers  []string          // digests; one by default
	Parent  string            // ID of the image that it was built or committed from, if any
	Arch    string            // amd64 if empty
}

// A fakeImage is an Image of the Engine.
type fakeImage struct {
	Image
	tagged time.Time
	saved  *savedImage // nil if it was not loaded
	pulled []string    // repositories that it was pulled from
}

// files returns the files of a container that was never started.
func (p *fakeImage) files() map[string]string {
	all := map[string]string{
		"/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"/etc/group":  "root:x:0:\nweb:x:1000:\nextra:x:2000:web\nnobody:x:65534:\n",
	}
	maps.Copy(all, p.Files)
	return all
}

// withDefaults returns i with defaults for all empty fields; the ID is derived from name.
func (i Image) withDefaults(name string) Image {
	if i.ID == "" {
		i.ID = "sha256:" + sha256Hex("image "+name)
	}
	if i.Config.Cmd == nil && i.Config.Entrypoint == nil {
		i.Config.Cmd = []string{"sh"}
	}
	if i.Size == 0 {
		i.Size = 1e6
	}
	if i.Created.IsZero() {
		i.Created = time.Now()
	}
	if len(i.Layers) == 0 {
		i.Layers = []string{"sha256:" + layerID(i.ID)}
	}
	if i.Arch == "" {
		i.Arch = "amd64"
	}
	return i
}

// SetImageLabels replaces the labels of an image.
func (e *Engine) SetImageLabels(ref string, labels map[string]string) {
	e.t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	p, err := e.findImageLocked(ref)
	if err != nil {
		e.t.Fatal(err)
	}
	p.Config.Labels = labels
}

// AddImage adds an image with the names refs, tags or digests, and returns its ID.
func (e *Engine) AddImage(img Image, refs ...string) string {
	e.t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lastID++
	img = img.withDefaults(fmt.Sprint(e.Host, e.lastID, refs))
	e.storeImageLocked(img)
	for _, ref := range refs {
		named, err := reference.ParseNormalizedNamed(ref)
		if err != nil {
			e.t.Errorf("enginetest: image %q: %v", ref, err)
			continue
		}
		e.refs[reference.FamiliarString(reference.TagNameOnly(named))] = img.ID
	}
	return img.ID
}

// HasImage reports whether there is an image with the name ref, without counting as a call.
func (e *Engine) HasImage(ref string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, err := e.findImageLocked(ref)
	return err == nil
}

// storeImageLocked adds an image unless the Engine has it.
func (e *Engine) storeImageLocked(img Image) {
	if _, ok := e.images[img.ID]; ok {
		return
	}
	e.images[img.ID] = &fakeImage{Image: img}
	dir := e.layerSizeDir(img.ID)
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "size"), fmt.Append(nil, img.Size), 0o600)
	}
	if err != nil {
		e.t.Error(err)
	}
}

// layerSizeDir returns where Docker stores the size of the only layer of an image.
func (e *Engine) layerSizeDir(id string) string {
	return filepath.Join(e.RootDir, "image", "overlay2", "layerdb", "sha256", layerID(id))
}

func layerID(id string) string { return sha256Hex("layer of image " + id) }

// trimAlgorithm returns an ID without "sha256:".
func trimAlgorithm(id string) string { return strings.TrimPrefix(id, "sha256:") }

// shortID returns the short form of an ID.
func shortID(id string) string { return trimAlgorithm(id)[:12] }

// withTag returns ref in the familiar form, with a tag.
func withTag(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.FamiliarString(reference.TagNameOnly(named))
}

// repository returns a reference without tag and digest.
func repository(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return named.Name()
}

// findImageLocked finds an image by tag, digest or ID, or by the prefix of an ID if that is no
// name.
func (e *Engine) findImageLocked(ref string) (*fakeImage, error) {
	hex := trimAlgorithm(ref)
	isHex := hex != "" && strings.Trim(hex, "0123456789abcdef") == ""
	if isHex && len(hex) == 64 {
		if p, ok := e.images["sha256:"+hex]; ok {
			return p, nil
		}
		return nil, errorf(http.StatusNotFound, "No such image: %s", ref)
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err == nil {
		names := []reference.Named{reference.TagNameOnly(named)}
		// Of name:tag@digest the tag is ignored.
		if digested, ok := named.(reference.Canonical); ok {
			if bare, err := reference.WithDigest(reference.TrimNamed(named), digested.Digest()); err == nil {
				names = append(names, bare)
			}
		}
		for _, n := range names {
			if id, ok := e.refs[reference.FamiliarString(n)]; ok {
				return e.images[id], nil
			}
		}
	}
	if isHex {
		var found []*fakeImage
		for id, p := range e.images {
			if strings.HasPrefix(id, "sha256:"+hex) {
				found = append(found, p)
			}
		}
		if len(found) == 1 {
			return found[0], nil
		}
	}
	return nil, errorf(http.StatusNotFound, "No such image: %s", withTag(ref))
}

// imageNamesLocked returns the tags and digests of an image, sorted.
func (e *Engine) imageNamesLocked(id string) (tags, digests []string) {
	for ref, of := range e.refs {
		switch {
		case of != id:
		case strings.Contains(ref, "@"):
			digests = append(digests, ref)
		default:
			tags = append(tags, ref)
		}
	}
	slices.Sort(tags)
	slices.Sort(digests)
	return tags, digests
}

// imageSummaryLocked returns the list entry of p.
func (e *Engine) imageSummaryLocked(p *fakeImage) image.Summary {
	tags, digests := e.imageNamesLocked(p.ID)
	digests = e.withStoreDigestsLocked(p.ID, tags, digests)
	if len(tags)+len(digests) == 0 && !e.supportsLocked("1.43") {
		tags, digests = []string{"<none>:<none>"}, []string{"<none>@<none>"}
	}
	if e.supportsLocked("1.43") { // before, empty lists are null
		tags, digests = append([]string{}, tags...), append([]string{}, digests...)
	}
	row := image.Summary{
		ID: p.ID, RepoTags: tags, RepoDigests: digests, Created: p.Created.Unix(), Size: p.Size,
		Labels: p.Config.Labels, SharedSize: -1, Containers: -1,
	}
	if !e.supportsLocked("1.44") {
		row.VirtualSize = p.Size //nolint:staticcheck // older Engines send it
	}
	return row
}

// imageList is GET /images/json.
func (e *Engine) imageList(c *call) error {
	args, err := c.filters("before", "dangling", "label", "reference", "since", "until")
	if err != nil {
		return err
	}
	rows, identities := []image.Summary{}, map[string]json.RawMessage{}
	e.mu.Lock()
	for _, p := range e.images {
		row := e.imageSummaryLocked(p)
		if !args.MatchKVList("label", p.Config.Labels) {
			continue
		}
		if patterns := args.Get("reference"); len(patterns) > 0 {
			row.RepoTags = slices.DeleteFunc(row.RepoTags, func(ref string) bool { return !matchesReference(patterns, ref) })
			if len(row.RepoTags) == 0 {
				continue
			}
		}
		tags, digests := e.imageNamesLocked(p.ID)
		if len(tags)+len(digests) == 0 && len(e.childrenLocked(p.ID)) > 0 && !c.boolParam("all") {
			continue
		}
		if want := args.Get("dangling"); len(want) > 0 && (want[0] == "true" || want[0] == "1") != (len(tags) == 0) {
			continue
		}
		rows = append(rows, row)
		identities[p.ID] = p.identity()
	}
	isContainerd := e.containerdStoreLocked()
	e.mu.Unlock()
	sort.Slice(rows, func(i, j int) bool { return rows[i].Created > rows[j].Created })
	// With an earlier version the parameter has no effect.
	if v := versionPrefix.FindStringSubmatch(c.URL.Path); !isContainerd || !c.boolParam("identity") || v == nil || versions.LessThan(v[1], "1.54") {
		return c.respond(http.StatusOK, rows)
	}
	type identified struct {
		image.Summary
		Manifests []json.RawMessage
	}
	all := make([]identified, 0, len(rows))
	for _, row := range rows {
		all = append(all, identified{row, []json.RawMessage{identities[row.ID]}})
	}
	return c.respond(http.StatusOK, all)
}

// identity returns the only manifest of a list entry, with where the image was pulled from.
func (p *fakeImage) identity() json.RawMessage {
	var pulls []string
	for _, repo := range p.pulled {
		pulls = append(pulls, fmt.Sprintf(`{"Repository": %q}`, repo))
	}
	if len(pulls) == 0 {
		return json.RawMessage(`{"Kind": "image", "ImageData": {}}`)
	}
	return json.RawMessage(`{"Kind": "image", "ImageData": {"Identity": {"Pull": [` + strings.Join(pulls, ", ") + `]}}}`)
}

// containerdStoreLocked reports whether images are in the containerd image store.
func (e *Engine) containerdStoreLocked() bool {
	return slices.ContainsFunc(e.infoLocked().DriverStatus, func(s [2]string) bool {
		return s[0] == "driver-type" && strings.HasPrefix(s[1], "io.containerd.snapshotter")
	})
}

// withStoreDigestsLocked returns digests and, with the containerd image store, one more for each
// repository of tags: there the digest of an image is its ID, whether or not a registry has it.
func (e *Engine) withStoreDigestsLocked(id string, tags, digests []string) []string {
	if !e.containerdStoreLocked() {
		return digests
	}
	for _, tag := range tags {
		named, err := reference.ParseNormalizedNamed(tag)
		if err != nil {
			continue
		}
		if !slices.ContainsFunc(digests, func(d string) bool { return repository(d) == named.Name() }) {
			digests = append(digests, reference.FamiliarName(named)+"@"+id)
		}
	}
	return digests
}

// matchesReference reports whether ref matches one of patterns.
func matchesReference(patterns []string, ref string) bool {
	named, err := reference.ParseNormalizedNamed(ref)
	return err == nil && slices.ContainsFunc(patterns, func(pattern string) bool {
		ok, err := reference.FamiliarMatch(pattern, named)
		return err == nil && ok
	})
}

// imageInspect is GET /images/{name}/json.
func (e *Engine) imageInspect(c *call) error {
	e.mu.Lock()
	p, err := e.findImageLocked(c.name)
	if err != nil {
		e.mu.Unlock()
		return err
	}
	tags, digests := e.imageNamesLocked(p.ID)
	digests = e.withStoreDigestsLocked(p.ID, tags, digests)
	text, err := json.Marshal(struct {
		image.InspectResponse
		Config container.Config
	}{image.InspectResponse{
		ID: p.ID, RepoTags: append([]string{}, tags...), RepoDigests: append([]string{}, digests...), Created: formatTime(p.Created),
		DockerVersion: serverVersion(e.api), Architecture: p.Arch, Os: "linux", Size: p.Size,
		GraphDriver: storage.DriverData{Name: e.infoLocked().Driver, Data: map[string]string{
			"UpperDir": filepath.Join(e.RootDir, "overlay2", layerID(p.ID), "diff"),
		}},
		RootFS:   image.RootFS{Type: "layers", Layers: p.Layers},
		Metadata: image.Metadata{LastTagTime: p.tagged},
	}, p.Config})
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return c.respond(http.StatusOK, json.RawMessage(text))
}

// imageTag is POST /images/{name}/tag.
func (e *Engine) imageTag(c *call) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	p, err := e.findImageLocked(c.name)
	if err != nil {
		return err
	}
	ref := c.query.Get("repo")
	if tag := c.query.Get("tag"); tag != "" {
		ref += ":" + tag
	}
	if _, err := reference.ParseNormalizedNamed(ref); err != nil {
		return invalidParameter("%v", err)
	}
	e.refs[withTag(ref)] = p.ID
	p.tagged = time.Now().UTC()
	e.emitImageLocked(events.ActionTag, p, withTag(ref))
	return c.respond(http.StatusCreated, nil)
}

// emitImageLocked publishes an event of an image.
func (e *Engine) emitImageLocked(action events.Action, p *fakeImage, name string) {
	attributes := map[string]string{}
	maps.Copy(attributes, p.Config.Labels)
	attributes["name"] = name
	e.publishLocked(events.Message{
		Status: string(action), ID: p.ID,
		Type: events.ImageEventType, Action: action, Actor: events.Actor{ID: p.ID, Attributes: attributes},
	})
}

// imageRemove is DELETE /images/{name}.
func (e *Engine) imageRemove(c *call) error {
	e.mu.Lock()
	done, err := e.removeImageLocked(c.name, c.boolParam("force"), !c.boolParam("noprune"))
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return c.respond(http.StatusOK, done)
}

// removeImageLocked removes a name of an image, and with the last one the image, or the image
// with all its names if ref is an ID. With prune it also removes parents without a name and
// without other children.
func (e *Engine) removeImageLocked(ref string, force, prune bool) ([]image.DeleteResponse, error) {
	p, err := e.findImageLocked(ref)
	if err != nil {
		return nil, err
	}
	conflict := func(format string, args ...any) error {
		return errorf(http.StatusConflict, "conflict: "+format, args...)
	}
	var done []image.DeleteResponse
	untag := func(name string) {
		delete(e.refs, name)
		done = append(done, image.DeleteResponse{Untagged: name})
		e.emitImageLocked(events.ActionUnTag, p, p.ID)
	}
	user, running := e.containerUsingLocked(p.ID)
	tags, digests := e.imageNamesLocked(p.ID)
	all := slices.Concat(tags, digests)
	repos := map[string]bool{}
	for _, r := range all {
		repos[repository(r)] = true
	}

	if name := withTag(ref); slices.Contains(all, name) || strings.Contains(ref, "@") {
		// A tag with digests of its repository is one reference.
		if !force && user != "" && len(tags) <= 1 && len(repos) == 1 {
			return nil, conflict("unable to remove repository reference %q (must force) - container %s is using its referenced image %s", ref, shortID(user), shortID(p.ID))
		}
		untag(name)
		// Digests are removed with the last tag of their repository.
		inRepo := func(r string) bool { return repository(r) == repository(name) }
		tags, digests = e.imageNamesLocked(p.ID)
		if !strings.Contains(name, "@") && !slices.ContainsFunc(tags, inRepo) {
			for _, d := range digests {
				if inRepo(d) {
					untag(d)
				}
			}
		}
		tags, digests = e.imageNamesLocked(p.ID)
		if len(tags)+len(digests) > 0 || len(e.childrenLocked(p.ID)) > 0 || user != "" && (running || !force) {
			return done, nil // the image stays, perhaps without a name
		}
	} else {
		switch {
		case len(e.childrenLocked(p.ID)) > 0:
			return nil, conflict("unable to delete %s (cannot be forced) - image has dependent child images", shortID(p.ID))
		case running:
			return nil, conflict("unable to delete %s (cannot be forced) - image is being used by running container %s", shortID(p.ID), shortID(user))
		case !force && (len(tags) > 1 || len(repos) > 1):
			return nil, conflict("unable to delete %s (must be forced) - image is referenced in multiple repositories", shortID(p.ID))
		case !force && user != "":
			return nil, conflict("unable to delete %s (must be forced) - image is being used by stopped container %s", shortID(p.ID), shortID(user))
		}
		for _, name := range all {
			untag(name)
		}
	}
	delete(e.images, p.ID)
	done = append(done, image.DeleteResponse{Deleted: p.ID})
	e.emitImageLocked(events.ActionDelete, p, p.ID)
	if user == "" { // else its layer is in use
		done = append(done, image.DeleteResponse{Deleted: "sha256:" + layerID(p.ID)})
		if err := os.RemoveAll(e.layerSizeDir(p.ID)); err != nil {
			e.t.Error(err)
		}
	}
	if tags, digests := e.imageNamesLocked(p.Parent); prune && e.images[p.Parent] != nil && len(tags)+len(digests)+len(e.childrenLocked(p.Parent)) == 0 {
		more, err := e.removeImageLocked(p.Parent, false, prune)
		if err != nil {
			return done, nil //nolint:nilerr // the parent is in use, and stays
		}
		done = append(done, more...)
	}
	return done, nil
}

// childrenLocked returns the IDs of the images that were built from the image id.
func (e *Engine) childrenLocked(id string) (found []string) {
	for _, p := range e.images {
		if p.Parent == id {
			found = append(found, p.ID)
		}
	}
	return found
}

// containerUsingLocked returns a container that uses the image id, preferably a running one.
func (e *Engine) containerUsingLocked(id string) (user string, running bool) {
	for _, b := range e.containers {
		if b.image != id {
			continue
		}
		if b.state.Running {
			return b.id, true
		}
		user = b.id
	}
	return user, false
}
