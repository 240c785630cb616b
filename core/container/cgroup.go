package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cgroup"
	"berth/core/engine"
	"berth/core/systemd"
	"berth/core/todocker"
)

// turn writes knobs to the cgroup of the container id, whose process is pid.
func (s *Service) turn(ctx context.Context, knobs []todocker.Knob, id string, pid int) error {
	g, err := cgroup.Of(pid, id)
	if err != nil {
		return gone(err)
	}
	s.tell(ctx, knobs, g)
	return gone(write(knobs, g))
}

// tell tells systemd of knobs that it has words for, if it manages g: it comes before
// the writing, for it writes more files than those. Without it they hold until
// it next reads its units again, and are then written again (KeepSettings).
func (s *Service) tell(ctx context.Context, knobs []todocker.Knob, g cgroup.Group) {
	unit := filepath.Base(g.V2)
	if !strings.HasSuffix(unit, ".scope") {
		return
	}
	files := map[string]string{}
	for _, k := range knobs {
		files[k.File] = k.Value
	}
	if err := systemd.Tell(ctx, unit, files); err != nil && !errors.Is(err, systemd.ErrNoBus) {
		s.log.Warn("systemd could not be told the settings of a container", slog.String("unit", unit), slog.Any("err", err))
	}
}

// KeepSettings writes again what systemd takes away from the cgroups of
// containers whenever it reads its units again. It returns when ctx ends.
func (s *Service) KeepSettings(ctx context.Context) error {
	systemd.Reloads(ctx, func() {
		docker, err := s.docker.Use()
		if err == nil {
			err = s.settle(ctx, docker)
		}
		if err != nil && ctx.Err() == nil {
			// KeepClean does the same as soon as Docker is there again.
			s.log.Debug("settings of containers not written again", slog.Any("err", err))
		}
	})
	return nil
}

// settle writes the settings of all running containers, where systemd may have taken
// them away.
func (s *Service) settle(ctx context.Context, docker *engine.Conn) error {
	if docker.Can.CgroupDriver != "systemd" {
		return nil
	}
	all, err := s.view.Containers(ctx, &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	})
	if err != nil {
		return err
	}
	for _, c := range all {
		if err := s.settleOne(ctx, docker, c.ID()); err != nil && ctx.Err() == nil {
			s.log.Warn("settings of a container could not be written again", slog.String("container", c.ID()), slog.Any("err", err))
		}
	}
	return ctx.Err()
}

// settleOne writes the settings of the container id if it runs.
func (s *Service) settleOne(ctx context.Context, docker *engine.Conn, id string) error {
	c, done, err := s.inTurn(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer done()
	knobs, err := todocker.Knobs(c.Status.GetResources().GetLinux(), docker.Can)
	if err != nil || !c.Running || len(knobs) == 0 {
		return err
	}
	g, err := cgroup.Of(c.Pid, c.ID())
	if err != nil {
		return gone(err)
	}
	return gone(write(knobs, g))
}

// prepare makes the cgroup that a container will start in and writes knobs there,
// so that its first instruction runs with them already; the low-level runtime
// takes the cgroup as it is. undo removes it if the container did not start.
//
// With systemd as driver there is none before the start.
func prepare(knobs []todocker.Knob, parent, id string) (undo func() error, err error) {
	var early []todocker.Knob
	var controllers []string
	for _, k := range knobs {
		if k.Late {
			continue
		}
		early = append(early, k)
		if c := k.Of(); c != "" && !slices.Contains(controllers, c) {
			controllers = append(controllers, c)
		}
	}
	if len(early) == 0 {
		return func() error { return nil }, nil
	}
	g, err := cgroup.Make(filepath.Join("/", parent, id), controllers)
	if err == nil {
		err = write(early, g)
	}
	return g.Remove, err
}

// write writes knobs to the files of a cgroup.
func write(knobs []todocker.Knob, g cgroup.Group) error {
	for _, k := range knobs {
		dir, ok := g.Dir(k.Controller)
		if !ok {
			if k.Optional {
				continue
			}
			return fmt.Errorf("%s: this node has no cgroup for it", k.File)
		}
		// Without O_CREATE: what a cgroup does not have cannot be written.
		f, err := os.OpenFile(filepath.Join(dir, k.File), os.O_WRONLY, 0)
		if errors.Is(err, fs.ErrNotExist) && k.Optional {
			continue
		}
		if err != nil {
			return err
		}
		_, err = f.WriteString(k.Value)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("set %s to %s: %w", k.File, k.Value, err)
		}
	}
	return nil
}
