package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/cgroup"
	"berth/core/engine"
	"berth/core/rollback"
	"berth/core/todocker"
)

// Update changes the resources of a container that is created or runs; what
// r leaves open stays as it is. Either all of it is in effect afterwards
// or, with an error, nothing.
//
// The error is of kind NotFound if there is no container and
// FailedPrecondition if it has ended.
func (s *Service) Update(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (err error) {
	docker, err := s.docker.Conn()
	if err != nil {
		return err
	}
	if err := todocker.CheckUpdate(r); err != nil {
		return err
	}
	change := r.GetLinux()
	c, done, err := s.inTurn(ctx, r.GetContainerId())
	if err != nil {
		return err
	}
	defer done()
	state := c.Row.GetState()
	if state != runtimeapi.ContainerState_CONTAINER_CREATED && state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("container %s is %v and cannot be updated: %w", c.ID(), state, errdefs.ErrFailedPrecondition)
	}
	order, err := todocker.UpdateContainer(c.Status.GetResources().GetLinux(), change, docker.Features)
	if err != nil {
		return err
	}
	back, err := s.before(docker, c, order)
	if err != nil {
		return err
	}
	work := context.WithoutCancel(ctx)
	var steps rollback.Stack
	defer steps.Rollback(work, &err)
	steps.Push("restore the resources of container "+c.ID(), back)
	defer s.unsettle()
	if err := s.apply(work, docker, c, order); err != nil {
		return fmt.Errorf("update container %s: %w", c.ID(), plain{err})
	}
	if err := s.updates.Put(c.ID(), order.Result); err != nil {
		return err
	}
	_, err = s.view.Refresh(work, c.ID())
	return err
}

// apply tells the Engine, and writes what it cannot be told if the container
// runs; if it does not, its start will.
func (s *Service) apply(ctx context.Context, docker *engine.Conn, c *cache.Container, order todocker.Update) error {
	if err := tellEngine(ctx, docker, c.ID(), order.Engine); err != nil || !c.Running {
		return err
	}
	err := s.turn(ctx, order.CgroupSettings, c.ID(), c.Pid)
	// Else it is left alone: processes may have given one to themselves.
	if score := order.Result.GetOomScoreAdj(); score != c.Status.GetResources().GetLinux().GetOomScoreAdj() {
		err = errors.Join(err, adjustOOMScore(c.ID(), c.Pid, max(int(score), docker.OOMFloor())))
	}
	return err
}

func tellEngine(ctx context.Context, docker *engine.Conn, id string, change container.UpdateConfig) error {
	short, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	_, err := docker.ContainerUpdate(short, id, change)
	return err
}

// before looks what c has, and returns what gives it that again after order. An
// order with a setting that the node does not know is refused here.
func (s *Service) before(docker *engine.Conn, c *cache.Container, order todocker.Update) (again func(context.Context) error, err error) {
	old := c.Status.GetResources().GetLinux()
	var g cgroup.Group
	var was []todocker.CgroupSetting
	score, cpus, mems := 0, "", ""
	if c.Running {
		if g, err = cgroup.Of(c.Pid, c.ID()); err == nil {
			was, err = present(slices.Concat(todocker.EngineManagedFiles(docker.Features), order.CgroupSettings), g)
		}
		if err == nil {
			score, err = scoreOf(c.Pid)
		}
		if err := gone(err); err != nil {
			return nil, err
		}
		cpus, mems = effective(g, "cpus"), effective(g, "mems")
	}
	told, err := todocker.Revert(old, order.Result, docker.Features, cpus, mems)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		err := tellEngine(ctx, docker, c.ID(), told)
		if !c.Running {
			return err
		}
		s.tell(ctx, was, g)
		return errors.Join(err, putBack(was, g), adjustOOMScore(c.ID(), c.Pid, score))
	}, nil
}

// effective returns the CPUs or memory nodes that the processes in g may use; nothing
// where that is not known.
func effective(g cgroup.Group, which string) string {
	dir, ok := g.Dir("cpuset")
	if !ok {
		return ""
	}
	for _, file := range []string{"cpuset." + which + ".effective", "cpuset." + which} { // of v2, and of v1
		if text, err := os.ReadFile(filepath.Join(dir, file)); err == nil {
			return strings.TrimSpace(string(text))
		}
	}
	return ""
}

// scoreOf reads the oom_score_adj of a process.
func scoreOf(pid int) (int, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/oom_score_adj")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// adjustOOMScore sets the score of all processes of the container id, the first of
// which is pid. The Engine takes a score in an update and does nothing with it.
func adjustOOMScore(id string, pid, score int) error {
	if own, err := scoreOf(pid); err != nil || own == score {
		return gone(err)
	}
	g, err := cgroup.Of(pid, id)
	if err != nil {
		return gone(err)
	}
	all, err := cgroup.Processes(g)
	if err != nil {
		return gone(err)
	}
	var errs []error
	for _, member := range all {
		err := os.WriteFile("/proc/"+strconv.Itoa(member)+"/oom_score_adj", []byte(strconv.Itoa(score)), 0)
		errs = append(errs, gone(err))
	}
	return errors.Join(errs...)
}

// gone drops an error that says that a process has ended, and its cgroup with it.
// ENODEV is what the kernel answers for a file of a cgroup that was removed after
// the file was opened.
func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.ENODEV) {
		return nil
	}
	return err
}
