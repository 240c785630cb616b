package engine

import (
	"context"
	"crypto/rand"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"

	"berth/core/labels"
)

// A HelperKind is the purpose of a helper container. berth creates helper containers from
// images, outside of pods, and never starts them.
type HelperKind string

const (
	// ReadHelper is for reading files of an image.
	ReadHelper HelperKind = "read"
	// PinHelper keeps an image from being removed while a container uses its
	// files as a volume.
	PinHelper HelperKind = "hold"
)

// helperName matches the Docker name of a helper: kind, purpose and a random part. An image
// cannot set the name of its containers, so the name proves that berth created the container.
var helperName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^/berth_(read|hold)_([A-Z2-7]{16,26})_[A-Z2-7]{8}$`) })

// IsHelper reports whether row, an entry of the Engine's list, is a helper container.
func IsHelper(row container.Summary) bool { return helperName().MatchString(labels.Name(row)) }

// legacyHelperKeys are the labels by which berth before 1.1 recognised its helpers, which had
// random names of Docker's. They are still set, so that after a downgrade an older berth
// removes the helpers of this one.
var legacyHelperKeys = map[HelperKind]string{ReadHelper: "berth.look", PinHelper: "berth.hold"}

// CreateHelper creates a helper container of an image and returns its ID. The purpose, which
// Helpers returns, must be 16 to 26 characters of crypto/rand.Text.
func (c *Conn) CreateHelper(ctx context.Context, image string, kind HelperKind, purpose string) (string, error) {
	name := fmt.Sprintf("berth_%s_%s_%s", kind, purpose, rand.Text()[:8])
	if !helperName().MatchString("/" + name) {
		return "", fmt.Errorf("helper container %q: invalid name: %w", name, errdefs.ErrInvalidArgument)
	}
	created, err := c.ContainerCreate(ctx, &container.Config{
		Image: image, Entrypoint: helperEntrypoint, NetworkDisabled: true,
		Labels:      labels.Helper(legacyHelperKeys[kind], purpose),
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	}, &container.HostConfig{NetworkMode: "none", LogConfig: container.LogConfig{Type: "none"}}, nil, nil, name)
	return created.ID, err
}

// helperEntrypoint cannot be executed: a helper that somebody starts fails at once.
var helperEntrypoint = []string{"/"}

// Helpers returns the purposes of all helper containers of the kind, by container ID. A
// running container does not count, even with the name of a helper.
func (c *Conn) Helpers(ctx context.Context, kind HelperKind) (map[string]string, error) {
	ctx, cancel := c.WithRequestTimeout(ctx)
	defer cancel()
	// The label alone proves nothing: an image can have any label.
	list, err := c.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", legacyHelperKeys[kind]))})
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, row := range list {
		if name := helperName().FindStringSubmatch(labels.Name(row)); name != nil {
			if name[1] == string(kind) && row.State != container.StateRunning {
				found[row.ID] = name[2]
			}
			continue
		}
		legacy, err := c.isLegacyHelper(ctx, row)
		if err != nil {
			return nil, err
		}
		if legacy {
			found[row.ID] = row.Labels[legacyHelperKeys[kind]]
		}
	}
	return found, nil
}

// isLegacyHelper reports whether row is a helper container of berth before 1.1. Those were
// never started and have NetworkDisabled set through the API, which neither an image nor the
// docker command line can do.
func (c *Conn) isLegacyHelper(ctx context.Context, row container.Summary) (bool, error) {
	if row.State != container.StateCreated || row.HostConfig.NetworkMode != "none" || strings.HasPrefix(labels.Name(row), "/k8s_") {
		return false, nil
	}
	found, err := c.ContainerInspect(ctx, row.ID)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("inspect %s: %w", row.ID, err)
	}
	return found.Config != nil && found.ContainerJSONBase != nil && found.State != nil && found.HostConfig != nil &&
		found.State.Status == container.StateCreated && found.Config.NetworkDisabled &&
		slices.Equal(found.Config.Entrypoint, helperEntrypoint) && found.HostConfig.LogConfig.Type == "none", nil
}
