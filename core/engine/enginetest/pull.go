package enginetest

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/registry"
	godigest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// repeatInterval is how often Docker repeats the progress of a download with the containerd image
// store.
const repeatInterval = 100 * time.Millisecond

// A Remote is what a registry has under a name, or how a pull of it fails. The zero Remote is an
// image that anybody can pull.
type Remote struct {
	Image  Image
	Digest string // of the manifest, sha256:...; a default if empty

	// Allow decides whether credentials are accepted; nil accepts all, and none. Others get
	// the error of Docker Hub.
	Allow func(registry.AuthConfig) bool

	// Error is why the pull fails. With a Status it is the response; without, it is sent in
	// the stream, after the first messages.
	Error  string
	Status int
	// Flood is how many bytes are appended to that error, as if a registry responds with a
	// large page.
	Flood int64

	Pace  time.Duration // between two progress messages
	Steps int           // progress messages while downloading; 2 if 0

	// Stall is the prefix of a status. After the first message with it there is no progress for
	// StallFor or, if that is 0, for ever. The status "Waiting", of a layer that waits for other
	// downloads, is only sent if it is that of Stall.
	Stall    string
	StallFor time.Duration
	// Claim is the digest with which the registry answers a request for the manifest, if not Digest.
	Claim string
	// Repeats has that message repeated every 100 ms, as with the containerd image store.
	Repeats bool
}

// Resolving is the Stall of a registry that does not answer a request for a manifest.
const Resolving = "Resolving"

// A Pull is a request to pull an image.
type Pull struct {
	Ref  string // normalized
	Auth registry.AuthConfig
	// Header is the X-Registry-Auth header, "" without one.
	Header   string
	Platform string
}

// Registry puts r into a registry under the name ref. Pulls of other names are not found.
func (e *Engine) Registry(ref string, r Remote) {
	e.t.Helper()
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		e.t.Errorf("enginetest: registry: %v", err)
		return
	}
	named = reference.TagNameOnly(named)
	r.Image = r.Image.withDefaults(named.String())
	if r.Digest == "" {
		r.Digest = "sha256:" + sha256Hex("manifest "+r.Image.ID)
	}
	if canonical, ok := named.(reference.Canonical); ok {
		r.Digest = canonical.Digest().String()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.registries[named.String()] = &r
}

// Pulls returns all requests to pull an image.
func (e *Engine) Pulls() []Pull {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.pulls)
}

// Resolves returns all requests for a manifest.
func (e *Engine) Resolves() []Pull {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.resolves)
}

// findRemoteLocked returns what a registry has under a name, or nil.
func (e *Engine) findRemoteLocked(named reference.Named) *Remote {
	if r, ok := e.registries[named.String()]; ok {
		return r
	}
	canonical, ok := named.(reference.Canonical)
	if !ok {
		return nil
	}
	for name, r := range e.registries {
		if repository(name) == named.Name() && r.Digest == canonical.Digest().String() {
			return r
		}
	}
	return nil
}

// imagePull is POST /images/create.
func (e *Engine) imagePull(c *call) error {
	ref := c.query.Get("fromImage")
	if tag := c.query.Get("tag"); strings.Contains(tag, ":") {
		ref += "@" + tag
	} else if tag != "" {
		ref += ":" + tag
	}
	named, request, r, err := e.findRemote(c, ref, &e.pulls)
	switch {
	case err != nil:
		return err
	case r == nil:
		return errorf(http.StatusNotFound, "manifest for %s not found: manifest unknown: manifest unknown", reference.FamiliarString(named))
	case r.Allow != nil && !r.Allow(request.Auth):
		return errorf(http.StatusNotFound, "pull access denied for %s, repository does not exist or may require 'docker login': denied: requested access to the resource is denied", reference.FamiliarName(named))
	case r.Status != 0:
		return errorf(r.Status, "%s", r.Error)
	}
	return e.download(c, named, r)
}

// findRemote adds the request about the image ref to requests, and returns the image of the registry, which is nil if there is none.
func (e *Engine) findRemote(c *call, ref string, requests *[]Pull) (reference.Named, Pull, *Remote, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, Pull{}, nil, invalidParameter("%v", err)
	}
	named = reference.TagNameOnly(named)
	request := Pull{Ref: named.String(), Header: c.Request.Header.Get(registry.AuthHeader), Platform: c.query.Get("platform")}
	if request.Header != "" {
		auth, err := registry.DecodeAuthConfig(request.Header)
		if err != nil {
			return nil, Pull{}, nil, invalidParameter("%v", err)
		}
		request.Auth = *auth
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	*requests = append(*requests, request)
	return named, request, e.findRemoteLocked(named), nil
}

// distribution is GET /distribution/{name}/json: it asks the registry for a manifest.
func (e *Engine) distribution(c *call) error {
	_, request, r, err := e.findRemote(c, c.name, &e.resolves)
	switch {
	case err != nil:
		return err
	case r == nil:
		return errorf(http.StatusNotFound, "manifest unknown: manifest unknown")
	case r.Allow != nil && !r.Allow(request.Auth):
		return errorf(http.StatusUnauthorized, "unauthorized: authentication required")
	case r.Status != 0:
		return errorf(r.Status, "%s", r.Error)
	case r.Stall == Resolving:
		select {
		case <-c.Context().Done():
		case <-c.server.ctx.Done():
		}
		return errHangUp
	}
	digest := r.Digest
	if r.Claim != "" {
		digest = r.Claim
	}
	return c.respond(http.StatusOK, registry.DistributionInspect{
		Descriptor: ocispec.Descriptor{MediaType: "application/vnd.docker.distribution.manifest.v2+json", Digest: godigest.Digest(digest), Size: 500},
		Platforms:  []ocispec.Platform{{Architecture: r.Image.Arch, OS: "linux"}},
	})
}

// A progress is a message of the stream of a pull.
type progress struct {
	Status string            `json:"status,omitempty"`
	Amount *progressDetail   `json:"progressDetail,omitempty"`
	Error  string            `json:"error,omitempty"`
	Detail map[string]string `json:"errorDetail,omitempty"`
	ID     string            `json:"id,omitempty"`
}

type progressDetail struct {
	Current int64 `json:"current,omitempty"`
	Total   int64 `json:"total,omitempty"`
}

// download sends the progress of a pull that was accepted.
func (e *Engine) download(c *call, named reference.Named, r *Remote) error {
	e.mu.Lock()
	_, present := e.images[r.Image.ID]
	e.mu.Unlock()
	send := c.stream()
	stalled := r.Stall == ""
	for _, m := range pullMessages(named, r, present) {
		if err := send(m); err != nil {
			return errHangUp
		}
		pace := time.After(r.Pace)
		var repeat <-chan time.Time
		if !stalled && strings.HasPrefix(m.Status, r.Stall) {
			stalled, pace = true, nil
			if r.StallFor > 0 {
				pace = time.After(r.StallFor)
			}
			if r.Repeats {
				tick := time.NewTicker(repeatInterval)
				defer tick.Stop()
				repeat = tick.C
			}
		}
		for moved := false; !moved; {
			select {
			case <-pace:
				moved = true
			case <-repeat:
				if err := send(m); err != nil {
					return errHangUp
				}
			case <-c.Context().Done():
				return errHangUp // the pull is cancelled
			case <-c.server.ctx.Done():
				return errHangUp
			}
		}
	}
	if r.Flood > 0 {
		return writeLongError(c, r)
	}
	if r.Error != "" {
		return send(progress{Error: r.Error, Detail: map[string]string{"message": r.Error}})
	}
	familiar := reference.FamiliarString(named)
	e.mu.Lock()
	e.storeImageLocked(r.Image)
	if _, digested := named.(reference.Canonical); !digested {
		e.refs[familiar] = r.Image.ID
		e.images[r.Image.ID].tagged = time.Now().UTC()
	}
	e.refs[reference.FamiliarName(named)+"@"+r.Digest] = r.Image.ID
	if p := e.images[r.Image.ID]; !slices.Contains(p.pulled, named.Name()) {
		p.pulled = append(p.pulled, named.Name())
	}
	e.publishLocked(events.Message{
		Status: string(events.ActionPull), ID: familiar, Type: events.ImageEventType, Action: events.ActionPull,
		Actor: events.Actor{ID: familiar, Attributes: map[string]string{"name": reference.FamiliarName(named)}},
	})
	e.mu.Unlock()
	if err := send(progress{Status: "Digest: " + r.Digest}); err != nil {
		return errHangUp
	}
	outcome := "Downloaded newer image"
	if present {
		outcome = "Image is up to date"
	}
	return send(progress{Status: "Status: " + outcome + " for " + familiar})
}

// writeLongError sends an error whose text is too long to keep in memory.
func writeLongError(c *call, r *Remote) error {
	if _, err := fmt.Fprintf(c.ResponseWriter, `{"errorDetail":{"message":%q},"error":"%s`, r.Error, r.Error); err != nil {
		return errHangUp
	}
	more := bytes.Repeat([]byte("x"), 64<<10)
	for left := r.Flood; left > 0; left -= int64(len(more)) {
		if _, err := c.ResponseWriter.Write(more); err != nil {
			return errHangUp
		}
	}
	_, err := io.WriteString(c.ResponseWriter, `"}`)
	return err
}

// pullMessages returns the messages of a pull before its result.
func pullMessages(named reference.Named, r *Remote, present bool) []progress {
	which := reference.FamiliarString(named)
	if tagged, ok := named.(reference.Tagged); ok {
		which = tagged.Tag()
	}
	all := []progress{{Status: "Pulling from " + reference.Path(named), ID: which}}
	if present || r.Error != "" {
		return all
	}
	id, size := layerID(r.Image.ID)[:12], r.Image.Size
	steps := int64(r.Steps)
	if steps == 0 {
		steps = 2
	}
	all = append(all, progress{Status: "Pulling fs layer", Amount: &progressDetail{}, ID: id})
	if r.Stall == "Waiting" {
		all = append(all, progress{Status: "Waiting", Amount: &progressDetail{}, ID: id})
	}
	for i := range steps {
		all = append(all, progress{Status: "Downloading", Amount: &progressDetail{size * (i + 1) / steps, size}, ID: id})
	}
	return append(all,
		progress{Status: "Verifying Checksum", Amount: &progressDetail{}, ID: id},
		progress{Status: "Download complete", Amount: &progressDetail{}, ID: id},
		progress{Status: "Extracting", Amount: &progressDetail{size, size}, ID: id},
		progress{Status: "Pull complete", Amount: &progressDetail{}, ID: id})
}
