package container

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/engine"
	"berth/core/nri"
	"berth/core/nri/adjust"
	"berth/core/premounts"
	"berth/core/todocker"
)

// maxAdjustments is how often a container is created because NRI plugins change it. They get another container, with another ID, each
// time; those that change each of them in the same way, but for its ID, are content with the second one.
const maxAdjustments = 3

// adjustedError is the error of a creation that NRI plugins want to be another one.
type adjustedError struct{ nri.Created }

func (e *adjustedError) Error() string {
	return "NRI plugins change the container: " + strings.Join(e.Fields(), ", ")
}

// createAdjusted creates a container as NRI plugins adjust it.
//
// Plugins know a container by its ID, which Docker chooses when it creates the container, and what most of them change can only be set then. So
// the container is created as it was requested first. If plugins change more than an update can, it is removed, which plugins are sent as well, and
// created again with the changes.
func (s *Service) createAdjusted(ctx context.Context, docker *engine.Conn, pod *cache.Sandbox, given *runtimeapi.PodSandboxConfig, a attempt) (string, error) {
	a.applied = nri.Created{Change: adjust.New(nil, "", nil, false)}
	var again *adjustedError
	for range maxAdjustments {
		id, err := s.create(ctx, docker, pod, a)
		if !errors.As(err, &again) {
			if err != nil && !a.applied.Empty() { // behind the error: the kubelet knows some by how they begin
				err = fmt.Errorf("%w (NRI plugin %s changes %s of the container)", err, strings.Join(a.applied.Plugins(), ", "), strings.Join(a.applied.Fields(), ", "))
			}
			return id, err
		}
		if a, err = s.adjusted(ctx, docker, pod, given, a.request, again.Created); err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("NRI plugin %s changes %s of a container in another way each time that it is created: %w",
		strings.Join(again.Plugins(), ", "), strings.Join(again.Fields(), ", "), errdefs.ErrFailedPrecondition)
}

// adjusted returns the attempt to create the requested container with a change.
func (s *Service) adjusted(ctx context.Context, docker *engine.Conn, pod *cache.Sandbox, given *runtimeapi.PodSandboxConfig, request *runtimeapi.ContainerConfig, change nri.Created) (attempt, error) {
	a := attempt{request: request, applied: change}
	env := s.nri.Env(docker, s.oci.Support().Dir, pod.Runtime)
	config, err := change.Config(request, env)
	if err != nil {
		return a, err
	}
	if a.params, a.checkpoint, err = s.params(ctx, docker, pod, config, given); err != nil {
		return a, err
	}
	if a.checkpoint != nil {
		if err := change.Restored(); err != nil {
			return a, err
		}
	}
	a.params.NRIPlugins = change.Plugins()
	if a.spec, err = todocker.Container(a.params); err != nil {
		return a, err
	}
	if err := change.Spec(&a.spec, config, env); err != nil {
		return a, err
	}
	return a, premounts.Check(pod, a.params, a.spec)
}

// adjustCreated sends NRI plugins the container id, to which applied has been applied already, and applies what an update of it can apply. Anything
// else is an adjustedError.
func (s *Service) adjustCreated(ctx context.Context, docker *engine.Conn, id string, applied nri.Created, sync *nri.SyncBlock) error {
	if err := s.nri.BlockSync(ctx, sync); err != nil {
		return err
	}
	created, err := s.nri.CreateContainer(ctx, id, applied)
	if err != nil {
		return err
	}
	if created.Equal(applied.Change) {
		return s.nri.Finish(ctx, id, created)
	}
	resources, ok := created.UpdateOf(applied.Change, nri.Features(docker))
	if !ok {
		return &adjustedError{created}
	}
	if err := s.ApplyUpdate(ctx, id, resources); err != nil {
		return fmt.Errorf("adjustment by NRI plugin %s: %w", strings.Join(created.Plugins(), ", "), err)
	}
	return s.nri.Finish(ctx, id, created)
}
