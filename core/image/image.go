// Package image is the room of the node's images: pulled, listed, removed, and
// measured.
//
// It is called by the front desk (core/server), and by those who need an image
// to run something in; it talks to the Docker Engine. An image has one
// identity in all that is said of it here: its ID as the Engine has it.
package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/kmutex"
	"berth/core/tocri"
	"berth/core/todocker"
)

// Config is what an operator can choose about images.
type Config struct {
	// PauseImage is what sandboxes run. It is pulled if it can be; else the
	// built-in one serves.
	PauseImage string
	// PullProgress is how long a pull may wait for the registry without progress
	// before it is given up.
	PullProgress time.Duration
	// NodeCredentials lets pulls for pods use the credentials that root's Docker
	// configuration has, where the kubelet gives none. The pause image always may.
	NodeCredentials bool
	// Written tells how many bytes and inodes all containers have written, and how
	// many of the bytes are in their root file systems.
	Written func() (bytes, inodes, layers uint64)
}

// A Service does what the kubelet asks about images.
type Service struct {
	Config
	docker *engine.Engine
	log    *slog.Logger

	removals kmutex.Mutex // by image ID
	reading  kmutex.Mutex // of accounts, by image ID
	helpers  kmutex.Mutex // of credential helpers, by server
	pulls    flights      // by image and credentials
	pause    pauseImage
	used     atomic.Uint64 // bytes that images take, as last measured

	accounts accountsCache

	accountsMu sync.Mutex      // guards looking
	looking    map[string]bool // label values of containers made to look into images
	untidy     chan struct{}   // told when one could not be removed

	mu    sync.Mutex        // guards users
	users map[string]string // whom images run as, by ID; that of an ID never changes
}

// New returns a Service; none of its arguments may be nil.
func New(cfg Config, docker *engine.Engine, log *slog.Logger) *Service {
	return &Service{
		Config: cfg, docker: docker, log: log, looking: map[string]bool{}, untidy: make(chan struct{}, 1),
		users: map[string]string{},
		pulls: flights{log: log}, pause: pauseImage{flights: flights{log: log}},
	}
}

// A match is a way in which a reference may find an image besides by its names and its whole
// ID.
type match int

const (
	// byDigits is by the beginning of an ID, in 12 digits or more without an algorithm, as
	// docker and crictl print them. A reference of a pod never looks like that: the kubelet
	// adds a tag to each that has none (applyDefaultImageTag in pkg/kubelet/images).
	byDigits match = iota
	// byDigest is byDigits, and by such digits after "sha256:". A pod's author may write
	// that, and the kubelet passes it on as a name with a tag. So it is only for calls that
	// never get a reference of a pod: it could find an image of another tenant.
	byDigest
)

// minDigits is how many digits of an ID must be given: docker prints 12, crictl 13.
const minDigits = 12

// errFewDigits is about the beginning of an ID that finds an image and may not.
var errFewDigits = fmt.Errorf("the beginning of an image ID must have at least %d digits: %w", minDigits, errdefs.ErrInvalidArgument)

// find looks for the image that ref names: by tag, by digest, by ID, or as by says. It is of
// kind NotFound if there is none, and errFewDigits if ref may not find what it does.
func (s *Service) find(ctx context.Context, docker *engine.Conn, ref string, by match) (image.InspectResponse, error) {
	if ref == "" {
		return image.InspectResponse{}, fmt.Errorf("no image named: %w", errdefs.ErrInvalidArgument)
	}
	found, err := docker.ImageInspect(ctx, ref)
	if err != nil {
		return found, fmt.Errorf("image %q: %w", ref, err)
	}
	digits, digest := strings.CutPrefix(ref, algorithm)
	switch {
	case isID(ref), !isHex(digits), called(found, ref):
		return found, nil
	// So Docker has taken it for the beginning of an ID.
	case len(digits) < minDigits:
		return image.InspectResponse{}, fmt.Errorf("image %q: %w", ref, errFewDigits)
	case digest && by != byDigest:
		return image.InspectResponse{}, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	return found, nil
}

// called reports whether ref is one of the names of an image.
func called(found image.InspectResponse, ref string) bool {
	return slices.ContainsFunc(slices.Concat(found.RepoTags, found.RepoDigests), func(name string) bool { return sameName(name, ref) })
}

// algorithm is that of IDs.
const algorithm = "sha256:"

// isID reports whether ref is a whole ID rather than a name.
func isID(ref string) bool {
	digits := strings.TrimPrefix(ref, algorithm)
	return len(digits) == 64 && isHex(digits)
}

func isHex(text string) bool { return strings.Trim(text, "0123456789abcdef") == "" }

// Status returns the image that ref names, nil if there is none, and with
// verbose what else there is to know of it.
func (s *Service) Status(ctx context.Context, ref string, verbose bool) (*runtimeapi.Image, map[string]string, error) {
	docker, err := s.docker.Conn()
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	found, err := s.find(ctx, docker, ref, byDigits)
	if errdefs.IsNotFound(err) || ref == "" || errors.Is(err, errFewDigits) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	out := tocri.Image(tocri.ImageFacts{
		ID: found.ID, Tags: found.RepoTags, Digests: found.RepoDigests, Size: found.Size, User: user(found),
		Pinned: s.pinned(found.ID, found.RepoTags, found.RepoDigests),
	})
	if !verbose {
		return out, nil, nil
	}
	info, err := verboseInfo(found)
	return out, info, err
}

func user(found image.InspectResponse) string {
	if found.Config == nil {
		return ""
	}
	return found.Config.User
}

// List returns the images that match filter; a nil filter matches all.
func (s *Service) List(ctx context.Context, filter *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	if ref := filter.GetImage().GetImage(); ref != "" {
		found, _, err := s.Status(ctx, ref, false)
		if found == nil || err != nil {
			return nil, err
		}
		return []*runtimeapi.Image{found}, nil
	}
	docker, err := s.docker.Conn()
	if err != nil {
		return nil, err
	}
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	list, err := docker.ImageList(ctx, image.ListOptions{Filters: filters.NewArgs()})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	users, err := s.usersOf(ctx, docker, list)
	if err != nil {
		return nil, err
	}
	out := make([]*runtimeapi.Image, 0, len(list))
	for _, row := range list {
		out = append(out, tocri.Image(tocri.ImageFacts{
			ID: row.ID, Tags: row.RepoTags, Digests: row.RepoDigests, Size: row.Size, User: users[row.ID],
			Pinned: s.pinned(row.ID, row.RepoTags, row.RepoDigests),
		}))
	}
	return out, nil
}

// usersOf tells whom the images run as, which a list does not. Each image is
// looked at once in its life.
func (s *Service) usersOf(ctx context.Context, docker *engine.Conn, list []image.Summary) (map[string]string, error) {
	s.mu.Lock()
	known := s.users
	s.mu.Unlock()
	users := make(map[string]string, len(list))
	for _, row := range list {
		if name, ok := known[row.ID]; ok {
			users[row.ID] = name
			continue
		}
		found, err := docker.ImageInspect(ctx, row.ID)
		switch {
		case errdefs.IsNotFound(err): // removed meanwhile
		case err != nil && (ctx.Err() != nil || engine.IsUnavailable(err)):
			return nil, fmt.Errorf("image %s: %w", row.ID, err)
		case err != nil:
			// One that is broken, or half removed, must not hide the others.
			s.log.Info("an image is listed without its user", slog.String("image", row.ID), slog.Any("err", err))
		default:
			users[row.ID] = user(found)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accounts.retain(users)
	s.users = users // never changed from here on, so that others may read on
	return users, nil
}

// Resolve finds a local image for somebody who runs it. It is of kind NotFound
// if there is none.
func (s *Service) Resolve(ctx context.Context, ref, userRef string) (todocker.Image, error) {
	docker, err := s.docker.Conn()
	if err != nil {
		return todocker.Image{}, err
	}
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	found, err := s.find(ctx, docker, ref, byDigits)
	if err != nil {
		return todocker.Image{}, err
	}
	if err := checkConfig(found); err != nil {
		return todocker.Image{}, err
	}
	out := todocker.Image{ID: found.ID, Ref: repoDigest(found.RepoDigests, userRef, found.ID)}
	if found.Config != nil {
		out.HasCommand = len(found.Config.Entrypoint) > 0 || len(found.Config.Cmd) > 0
		out.User = found.Config.User
	}
	if data := found.GraphDriver.Data; data["UpperDir"] != "" {
		out.Layers = []string{data["UpperDir"]}
		if data["LowerDir"] != "" {
			out.Layers = append(out.Layers, strings.Split(data["LowerDir"], ":")...)
		}
	}
	return out, nil
}

const (
	// maxLabels is how many bytes of labels an image may have. Docker copies them to each
	// container, and sends them with each event about it and in each list.
	maxLabels = 256 << 10
	// maxConfig is how large the configuration of an image may be, as JSON. Docker copies it to
	// each container, too, and sends most of it with each inspect.
	maxConfig = 1 << 20
)

// checkConfig refuses an image whose containers would make each answer of Docker
// enormous.
func checkConfig(found image.InspectResponse) error {
	if found.Config == nil {
		return nil
	}
	size := 0
	for k, v := range found.Config.Labels {
		size += len(k) + len(v)
	}
	if size > maxLabels {
		return fmt.Errorf("image %s has %d bytes of labels: at most %d are supported: %w", found.ID, size, maxLabels, errdefs.ErrFailedPrecondition)
	}
	text, err := json.Marshal(found.Config)
	if err != nil {
		return fmt.Errorf("image %s: %w", found.ID, err)
	}
	if len(text) > maxConfig {
		return fmt.Errorf("image %s has a configuration of %d bytes: at most %d are supported: %w", found.ID, len(text), maxConfig, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// repoDigest picks the digest of the repository that the user named, else the
// first there is, else id.
func repoDigest(digests []string, userRef, id string) string {
	pick := id
	if len(digests) > 0 && !strings.Contains(digests[0], "<none>") {
		pick = digests[0]
	}
	want, err := reference.ParseNormalizedNamed(userRef)
	if err != nil {
		return pick
	}
	for _, d := range digests {
		if have, err := reference.ParseNormalizedNamed(d); err == nil && have.Name() == want.Name() {
			return d
		}
	}
	return pick
}

// Remove removes an image with all its names, however it is called. One that is not there
// is no error; one that a running container uses is of kind Conflict.
//
// Of an image that others were built from only the names are removed: Docker keeps its
// layers for the others, does not list it any more, and removes it with the last of them.
func (s *Service) Remove(ctx context.Context, ref string) error {
	docker, err := s.docker.Conn()
	if err != nil {
		return err
	}
	ctx, cancel := docker.WithRequestTimeout(context.WithoutCancel(ctx))
	defer cancel()
	found, err := s.find(ctx, docker, ref, byDigest)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	done, err := s.removals.Lock(ctx, found.ID)
	if err != nil {
		return err
	}
	defer done()
	_, err = docker.ImageRemove(ctx, found.ID, image.RemoveOptions{Force: true, PruneChildren: true})
	if errdefs.IsConflict(err) {
		err = s.untag(ctx, docker, found.ID, err)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove image %q: %w", ref, err)
	}
	return nil
}

// untag removes all names of an image that Docker refuses to remove by its ID. Where that is
// because a running container uses it, it returns the refusal.
func (s *Service) untag(ctx context.Context, docker *engine.Conn, id string, refusal error) error {
	// The filter also finds containers of images that were built from this one.
	running, err := docker.ContainerList(ctx, container.ListOptions{Filters: filters.NewArgs(filters.Arg("ancestor", id))})
	if err != nil {
		return err
	}
	if slices.ContainsFunc(running, func(c container.Summary) bool { return c.ImageID == id }) {
		return refusal
	}
	found, err := docker.ImageInspect(ctx, id)
	if err != nil {
		return err
	}
	for _, name := range slices.Concat(found.RepoTags, found.RepoDigests) {
		// With the last tag of a repository Docker has removed its digests.
		if _, err := docker.ImageRemove(ctx, name, image.RemoveOptions{Force: true, PruneChildren: true}); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}
