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
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cgroup"
	"berth/core/engine"
	"berth/core/panics"
	"berth/core/systemd"
	"berth/core/todocker"
)

// turn writes knobs to the cgroup of the container id, whose process is pid.
func (s *Service) turn(ctx context.Context, knobs []todocker.CgroupSetting, id string, pid int) error {
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
func (s *Service) tell(ctx context.Context, knobs []todocker.CgroupSetting, g cgroup.Group) {
	unit := filepath.Base(g.V2)
	if !strings.HasSuffix(unit, ".scope") {
		return
	}
	files := map[string]string{}
	for _, k := range knobs {
		files[k.File] = k.Value
	}
	if err := systemd.SetProperties(ctx, unit, files); err != nil && !errors.Is(err, systemd.ErrNoBus) {
		s.log.Warn("systemd could not be told the settings of a container", slog.String("unit", unit), slog.Any("err", err))
	}
}

// RunReapply writes again what systemd takes away from the cgroups of containers.
// It returns when ctx ends.
func (s *Service) RunReapply(ctx context.Context) error {
	g, ctx := panics.NewGroupWithContext(ctx, s.log)
	g.Go(func() error {
		systemd.WatchReloads(ctx, s.unsettle)
		return nil
	})
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-s.unsettled:
			}
			t := time.NewTimer(settling)
			select {
			case <-ctx.Done():
			case <-t.C:
			}
			t.Stop()
			docker, err := s.docker.Conn()
			if err == nil {
				err = s.settle(ctx, docker)
			}
			if err != nil && ctx.Err() == nil {
				// KeepClean does the same as soon as Docker is there again.
				s.log.Debug("settings of containers not written again", slog.Any("err", err))
			}
		}
	})
	return g.Wait()
}

// settling is how long systemd has for writing, and how often at most we write after it.
const settling = time.Second

// unsettle says that systemd may have taken settings away. After a reload it does so
// when the next unit of a slice starts or is changed (257), as containers of the
// same pod do; so it is to be called after that, too.
func (s *Service) unsettle() {
	select {
	case s.unsettled <- struct{}{}:
	default: // it has been said
	}
}

// settle writes the settings of all running containers, where systemd may have taken
// them away.
func (s *Service) settle(ctx context.Context, docker *engine.Conn) error {
	if docker.Features.CgroupDriver != "systemd" {
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

// settleOne writes the settings of the container id if it runs. One that somebody is
// starting or updating gets them from him.
func (s *Service) settleOne(ctx context.Context, docker *engine.Conn, id string) error {
	done, ok := s.turns.TryLock(id)
	if !ok {
		return nil
	}
	defer done()
	c, err := s.view.Container(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	knobs, err := todocker.CgroupSettings(c.Status.GetResources().GetLinux(), docker.Features)
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
func prepare(knobs []todocker.CgroupSetting, parent, id string) (undo func() error, err error) {
	var early []todocker.CgroupSetting
	var controllers []string
	for _, k := range knobs {
		if k.AfterStart {
			continue
		}
		early = append(early, k)
		if c := k.ControllerName(); c != "" && !slices.Contains(controllers, c) {
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
func write(knobs []todocker.CgroupSetting, g cgroup.Group) error {
	for _, k := range knobs {
		file, err := place(k, g)
		if err != nil {
			return err
		}
		if file == "" {
			continue
		}
		if err := set(file, k.Value); err != nil {
			return fmt.Errorf("set %s to %s: %w", k.File, k.Value, err)
		}
	}
	return nil
}

// place returns the file of a knob; none if it is missing and optional, and an error of
// kind InvalidArgument if it is missing.
func place(k todocker.CgroupSetting, g cgroup.Group) (string, error) {
	dir, ok := g.Dir(k.Controller)
	if ok {
		file := filepath.Join(dir, k.File)
		_, err := os.Stat(file)
		if !errors.Is(err, fs.ErrNotExist) {
			return file, err
		}
		// If there is none either, the container has ended.
		if _, err := os.Stat(dir); err != nil {
			return "", err
		}
	}
	if k.Optional {
		return "", nil
	}
	return "", fmt.Errorf("%s: the cgroups of this node have no such file: %w", k.File, errdefs.ErrInvalidArgument)
}

// set writes to a file of a cgroup, which takes a line at a time.
func set(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for line := range strings.Lines(value) {
		if _, err := f.WriteString(line); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}

// present returns knobs with the values that they have now. Those without a value are
// left out, and those without a file, or refused as by write.
func present(knobs []todocker.CgroupSetting, g cgroup.Group) ([]todocker.CgroupSetting, error) {
	var now []todocker.CgroupSetting
	for _, k := range knobs {
		file, err := place(k, g)
		if err != nil {
			return nil, err
		}
		if file == "" {
			continue
		}
		// What can only be written has no value. Of what is empty, a set of CPUs above
		// all, the kernel does not let processes have nothing again.
		text, _ := os.ReadFile(file)
		if k.Value = strings.TrimSpace(string(text)); k.Value != "" {
			now = append(now, k)
		}
	}
	return now, nil
}

// putBack gives knobs that have another value by now the one that they had. The
// kernel lets no limit of memory be above that of memory and swap: of two
// such the one can only be written after the other, so there is a second round.
func putBack(was []todocker.CgroupSetting, g cgroup.Group) error {
	var errs []error
	for range 2 {
		errs = nil
		for _, k := range was {
			now, err := present([]todocker.CgroupSetting{k}, g)
			if err == nil && len(now) == 1 && now[0].Value == k.Value {
				continue
			}
			errs = append(errs, gone(err), gone(write([]todocker.CgroupSetting{k}, g)))
		}
	}
	return errors.Join(errs...)
}
