// Package image implements the image service of the CRI on the Docker Engine: pull, list,
// status, removal and disk usage. For the services that run containers, Service also
// resolves image references, provides the pause image and reads the users and groups of
// images.
//
// An image is identified by its ID in the Engine, which is its ID in the CRI. Methods that
// call the Engine bound each call; a pull is bounded by its progress instead. Errors have
// the kinds of containerd/errdefs.
package image

import (
	"archive/tar"
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/image"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/identity"
	"berth/core/image/imagecache"
	"berth/core/image/mirror"
	"berth/core/image/passwd"
	"berth/core/image/pullprogress"
	"berth/core/image/registryauth"
	"berth/core/kmutex"
	"berth/core/podpolicy"
	"berth/core/singleflight"
	"berth/core/tocri"
	"berth/core/todocker"
)

// Config is the configuration of a Service.
type Config struct {
	// PauseImage returns the image of new pause containers; it may change. If it is not on the
	// node and cannot be pulled, the built-in image is used instead.
	PauseImage func() string
	// PullProgressTimeout is the time without progress after which a pull fails, while the next
	// step depends on the registry.
	PullProgressTimeout time.Duration
	// NodeCredentials allows pulls for pods to use the credentials in root's Docker
	// configuration, where the kubelet sends none. The pull of the pause image always may.
	NodeCredentials bool
	// Policy has the runtime handlers that pulls may name.
	Policy podpolicy.Policy
	// ContainerUsage returns how many bytes and inodes all containers have written. layers is the
	// part of the bytes that is in their root file systems.
	ContainerUsage func() (bytes, inodes, layers uint64)
	// Progress follows pulls; nil means that nothing else needs to know of them.
	Progress *pullprogress.Tracker
	// Pin says which images the kubelet's garbage collection must not remove.
	Pin PinConfig
	// PullPolicy is in effect until SetPullPolicy is called.
	PullPolicy PullPolicy
	// Aliases are the names of images that were pulled from mirrors. Nil is for a Service without
	// mirrors.
	Aliases *mirror.Aliases
	// Metrics is where the metrics of the cache of images are registered. It may be nil.
	Metrics prometheus.Registerer
}

// A Service manages the images of the node. Its methods may be called concurrently.
type Service struct {
	Config
	docker *engine.Engine
	log    *slog.Logger

	credentials registryauth.Resolver
	passwd      *passwd.Reader
	pullPolicy  atomic.Pointer[PullPolicy]
	resolves    singleflight.Group[ocispec.Descriptor] // by reference and credentials
	pulls       singleflight.Group[string]             // by reference and credentials; the value is an image ID
	removals    kmutex.Mutex                           // by image ID
	pause       pauseImage
	diskUsage   atomic.Uint64 // bytes of all images, as last measured
	pins        *pins
	cache       *imagecache.Cache
	lastList    atomic.Pointer[criList]
	contents    imagecache.PerImage[todocker.Image] // what of an image a container needs, but for its names
}

// New returns a Service. None of its arguments may be nil.
func New(cfg Config, docker *engine.Engine, log *slog.Logger) *Service {
	if cfg.Progress == nil {
		cfg.Progress = pullprogress.New(nil, log)
	}
	s := &Service{
		Config: cfg, docker: docker, log: log,
		credentials: registryauth.Resolver{Log: log},
		passwd:      passwd.New(docker, log),
		resolves:    singleflight.Group[ocispec.Descriptor]{Log: log},
		pulls:       singleflight.Group[string]{Log: log},
		pause:       pauseImage{lookups: singleflight.Group[string]{Log: log}},
		pins:        newPins(cfg.Pin, docker, log),
	}
	s.cache = imagecache.New(imagecache.Config{Observe: s.observeList, Metrics: cfg.Metrics}, docker, log)
	s.SetPullPolicy(cfg.PullPolicy)
	return s
}

// PasswdFiles returns /etc/passwd and /etc/group of the image with the ID.
func (s *Service) PasswdFiles(ctx context.Context, id string) (identity.PasswdFiles, error) {
	return s.passwd.Files(ctx, id)
}

// Walk visits files in the root directory of the image with the ID, see passwd.Reader.
func (s *Service) Walk(ctx context.Context, id string, names []string, visit func(header *tar.Header, content io.Reader) error) error {
	return s.passwd.Walk(ctx, id, names, visit)
}

// RunGC removes helper containers that were left behind. It returns nil when ctx is done.
func (s *Service) RunGC(ctx context.Context) error { return s.passwd.RunGC(ctx) }

// RunCache keeps the images in memory current. It returns nil when ctx is done.
func (s *Service) RunCache(ctx context.Context) error { return s.cache.Run(ctx) }

// Status returns an image, which must not be changed, or, if there is none, nil. If verbose is set it
// also returns the properties for which the CRI has no field.
func (s *Service) Status(ctx context.Context, ref string, verbose bool) (*runtimeapi.Image, map[string]string, error) {
	docker, err := s.docker.Conn()
	if err != nil {
		return nil, nil, err
	}
	if !verbose {
		if images, found := s.cache.Find(docker, ref); found != nil {
			return s.list(ctx, docker, images, []string{found.ID}).statuses[found.ID], nil, nil
		}
	}
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	found, err := s.find(ctx, docker, ref, byHexPrefix)
	if errdefs.IsNotFound(err) || ref == "" || isShortPrefix(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	facts := inspectFacts(found)
	reason := s.pinReasonNow(ctx, docker, facts)
	out := s.criImage(facts, defaultUser(found), reason)
	if !verbose {
		return out, nil, nil
	}
	info, err := tocri.ImageVerbose(found, pinDetails(reason))
	return out, info, err
}

// defaultUser returns Config.User of an image.
func defaultUser(found image.InspectResponse) string {
	if found.Config == nil {
		return ""
	}
	return found.Config.User
}
