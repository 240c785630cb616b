package container

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/cdi"
	"berth/core/engine"
	"berth/core/names"
	"berth/core/restore"
	"berth/core/securityprofile"
	"berth/core/specedit"
	"berth/core/specfiles"
	"berth/core/todocker"
)

// params collects what the translation of a container needs to know. The checkpoint is what the container is restored from, nil for nothing.
func (s *Service) params(ctx context.Context, docker *engine.Conn, pod *cache.Sandbox, c *runtimeapi.ContainerConfig, given *runtimeapi.PodSandboxConfig) (p todocker.ContainerParams, checkpoint *restore.Checkpoint, err error) {
	p = todocker.ContainerParams{
		Pod: pod.Config, PodAnnotations: pod.Row.GetAnnotations(), Config: c, SandboxID: pod.ID(), SandboxLabel: pod.ProcessLabel, Runtime: pod.Runtime, Handler: pod.Row.GetRuntimeHandler(), CgroupParent: pod.CgroupParent, ShimGroup: pod.ShimGroup,
		Files: s.files.FilesOf(pod.ID()), Volumes: map[string]todocker.Image{}, PremountName: names.NewPremount(), Premounts: s.premounts, Features: docker.Features, Policy: s.policy, UserNS: s.oci.Support(), Log: s.logs.LogConfig(),
	}
	if p.Log.Type == "" && docker.Features.LoggingDriver == "none" {
		return p, nil, fmt.Errorf("container-logs is follow, but the log driver of Docker is none and keeps nothing to follow: set another log-driver in daemon.json: %w", errdefs.ErrFailedPrecondition)
	}
	p.Features.LowestOOMScore = docker.OOMFloor()
	if !pod.CreatedByBerth && given.GetMetadata().GetName() != "" {
		p.Pod, p.PodAnnotations = given, given.GetAnnotations() // cri-dockerd has recorded less than is needed
	}
	if checkpoint, err = s.imageParams(ctx, pod, &p); err != nil {
		return p, nil, err
	}
	if err = s.cdiParams(&p); err != nil {
		return p, checkpoint, err
	}
	if p.SpecFiles, err = s.specFiles.Container(p.Handler, specfiles.Container{PodAnnotations: p.PodAnnotations, Config: c, Program: program(c, p)}); err != nil {
		return p, checkpoint, err
	}
	sc := c.GetLinux().GetSecurityContext()
	if p.TargetID, err = s.pidTarget(ctx, pod, sc.GetNamespaceOptions()); err != nil {
		return p, checkpoint, err
	}
	p.Seccomp, err = securityprofile.Load(sc, sc.GetPrivileged())
	return p, checkpoint, err
}

// program returns the first word of the command of a container. As in Docker, a command of its own replaces that of the image, and
// so do arguments if the image has no entrypoint.
func program(c *runtimeapi.ContainerConfig, p todocker.ContainerParams) string {
	switch {
	case p.Restore != nil:
		return p.RestoredArgs[0]
	case len(c.GetCommand()) > 0:
		return c.GetCommand()[0]
	case len(c.GetArgs()) > 0 && !p.Image.HasEntrypoint:
		return c.GetArgs()[0]
	default:
		return p.Image.Program
	}
}

// imageParams adds the image of a container, and the images that it has as volumes. Errors about the latter
// begin with a reason that the kubelet knows, ImageVolumeMountFailed.
func (s *Service) imageParams(ctx context.Context, pod *cache.Sandbox, p *todocker.ContainerParams) (checkpoint *restore.Checkpoint, err error) {
	spec := p.Config.GetImage()
	if spec.GetImage() == "" {
		return nil, fmt.Errorf("container without an image: %w", errdefs.ErrInvalidArgument)
	}
	if p.ImageName = spec.GetUserSpecifiedImage(); p.ImageName == "" {
		p.ImageName = spec.GetImage()
	}
	if restore.IsArchive(spec.GetImage()) {
		checkpoint, err = s.restores.OpenArchive(ctx, spec.GetImage())
	} else if p.Image, err = s.images.Resolve(ctx, spec.GetImage(), p.ImageName); err == nil {
		checkpoint, err = s.restores.OpenImage(ctx, restore.Image{
			ID: p.Image.ID, Names: p.Image.Names, Size: p.Image.Size, HasMark: p.Image.IsCheckpoint, HasCommand: p.Image.HasCommand, Walk: s.images.Walk,
		})
	}
	if err == nil && checkpoint != nil {
		err = s.checkpointParams(ctx, pod, p, checkpoint)
	}
	if err != nil {
		return nil, err
	}
	if p.PasswdFiles, err = s.images.PasswdFiles(ctx, p.Image.ID); err != nil {
		return nil, err
	}
	for _, m := range p.Config.GetMounts() {
		if ref := m.GetImage().GetImage(); ref != "" {
			if p.Volumes[ref], err = s.images.Resolve(ctx, ref, ref); err != nil {
				return nil, fmt.Errorf("ImageVolumeMountFailed: %w", err)
			}
		}
	}
	return checkpoint, nil
}

// checkpointParams replaces the image of a container by the one of the checkpoint that it is restored from.
func (s *Service) checkpointParams(ctx context.Context, pod *cache.Sandbox, p *todocker.ContainerParams, checkpoint *restore.Checkpoint) (err error) {
	p.Image, err = s.images.Resolve(ctx, checkpoint.Image, checkpoint.Name)
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("image %s of the checkpoint is not on the node: pull %s: %w", checkpoint.Image, checkpoint.Name, err)
	}
	if err != nil {
		return err
	}
	p.ImageName, p.Restore, p.RestoredArgs = checkpoint.Name, checkpoint.Restore, checkpoint.Args
	return s.restores.Probe(ctx, pod.Pid, pod.ID())
}

// cdiParams adds the CDI devices of a container.
func (s *Service) cdiParams(p *todocker.ContainerParams) error {
	names, err := s.cdi.Names(p.Config)
	if err != nil {
		return err
	}
	if p.Features.CDI {
		p.CDINames = names
		p.CDI = cdi.Config{SpecDirs: p.Features.CDISpecDirs}.Process(names)
		return nil
	}
	p.CDI, err = s.cdi.Resolve(names, specedit.Installed(p.Runtime, p.UserNS.Dir, p.Features))
	return err
}

// pidTarget returns the ID of the container whose PID namespace a container shares (NamespaceMode TARGET, as
// ephemeral containers use it), "" for none.
func (s *Service) pidTarget(ctx context.Context, pod *cache.Sandbox, ns *runtimeapi.NamespaceOption) (string, error) {
	if ns.GetPid() != runtimeapi.NamespaceMode_TARGET {
		return "", nil
	}
	c, err := s.Running(ctx, ns.GetTargetId())
	if err != nil {
		return "", fmt.Errorf("target of the pid namespace: %w", err)
	}
	if c.Row.GetPodSandboxId() != pod.ID() {
		return "", fmt.Errorf("target of the pid namespace: container %s belongs to another pod: %w", c.ID(), errdefs.ErrInvalidArgument)
	}
	return c.ID(), nil
}
