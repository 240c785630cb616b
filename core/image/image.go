// Package image is the room of the node's images: pulled, listed, removed, and
// measured.
//
// It is called by the front desk (core/server), and by those who need an image
// to run something in; it talks to the Docker Engine. An image has one
// identity in all that is said of it here: its ID as the Engine has it.
package image

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/tocri"
	"berth/core/turns"
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

	removals turns.Turns // by image ID
	reading  turns.Turns // of accounts, by image ID
	helpers  turns.Turns // of credential helpers, by server
	pulls    flights     // by image and credentials
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
	}
}

// find looks for the image that ref names: by tag, by digest or by ID. It is of
// kind NotFound if there is none.
func (s *Service) find(ctx context.Context, docker *engine.Conn, ref string) (image.InspectResponse, error) {
	if ref == "" {
		return image.InspectResponse{}, fmt.Errorf("no image named: %w", errdefs.ErrNotFound)
	}
	found, err := docker.ImageInspect(ctx, ref)
	if err != nil {
		return found, fmt.Errorf("image %q: %w", ref, err)
	}
	// The Engine takes "abcd" for the beginning of an ID before it is a name.
	if !isID(ref) && strings.HasPrefix(strings.TrimPrefix(found.ID, "sha256:"), ref) {
		return image.InspectResponse{}, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	return found, nil
}

// isID reports whether ref is a whole ID rather than a name.
func isID(ref string) bool {
	hex := strings.TrimPrefix(ref, "sha256:")
	return len(hex) == 64 && strings.Trim(hex, "0123456789abcdef") == ""
}

// Status returns the image that ref names, nil if there is none, and with
// verbose what else there is to know of it.
func (s *Service) Status(ctx context.Context, ref string, verbose bool) (*runtimeapi.Image, map[string]string, error) {
	docker, err := s.docker.Use()
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := docker.Short(ctx)
	defer cancel()
	found, err := s.find(ctx, docker, ref)
	if errdefs.IsNotFound(err) {
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
	docker, err := s.docker.Use()
	if err != nil {
		return nil, err
	}
	ctx, cancel := docker.Short(ctx)
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
		case err != nil && (ctx.Err() != nil || engine.Away(err)):
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

// A Found is what those who run something in an image need to know of it.
type Found struct {
	ID         string
	Ref        string // repository@digest, of the repository asked for if it has one; else the ID
	HasCommand bool   // whether it has an entrypoint or a command
	User       string // whom it runs as if nobody says otherwise
	// Layers are the directories that its files are in, the topmost first; none
	// if the Engine does not tell.
	Layers []string
}

// Resolve finds a local image for somebody who runs it. It is of kind NotFound
// if there is none.
func (s *Service) Resolve(ctx context.Context, ref, userRef string) (Found, error) {
	docker, err := s.docker.Use()
	if err != nil {
		return Found{}, err
	}
	ctx, cancel := docker.Short(ctx)
	defer cancel()
	found, err := s.find(ctx, docker, ref)
	if err != nil {
		return Found{}, err
	}
	out := Found{ID: found.ID, Ref: repoDigest(found.RepoDigests, userRef, found.ID)}
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

// Remove removes an image with all its names, however it is called. One that is
// not there is no error; one that a container runs in is of kind Conflict.
func (s *Service) Remove(ctx context.Context, ref string) error {
	docker, err := s.docker.Use()
	if err != nil {
		return err
	}
	ctx, cancel := docker.Short(context.WithoutCancel(ctx))
	defer cancel()
	found, err := s.find(ctx, docker, ref)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	done, err := s.removals.Take(ctx, found.ID)
	if err != nil {
		return err
	}
	defer done()
	_, err = docker.ImageRemove(ctx, found.ID, image.RemoveOptions{Force: true, PruneChildren: true})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove image %q: %w", ref, err)
	}
	return nil
}
