package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cgroup"
	"berth/core/engine"
	"berth/core/todocker"
	"berth/core/undo"
	"berth/core/view"
)

// Update changes the resources of a container that is created or runs; what
// r leaves open stays as it is. Either all of it is in effect afterwards
// or, with an error, nothing.
//
// The error is of kind NotFound if there is no container and
// FailedPrecondition if it has ended.
func (s *Service) Update(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (err error) {
	docker, err := s.docker.Use()
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
	old := c.Status.GetResources().GetLinux()
	order, err := todocker.UpdateContainer(old, change, docker.Can)
	if err != nil {
		return err
	}
	back, err := todocker.UpdateContainer(order.Result, todocker.Revert(old, order.Result), docker.Can)
	if err != nil {
		return err
	}
	work := context.WithoutCancel(ctx)
	var steps undo.Stack
	defer steps.Rollback(work, &err)
	steps.Push(func(ctx context.Context) error { return s.apply(ctx, docker, c, back) })
	if err := s.apply(work, docker, c, order); err != nil {
		return fmt.Errorf("update container %s: %w", c.ID(), plain{err})
	}
	if err := s.keep(c.ID(), order.Result); err != nil {
		return err
	}
	_, err = s.view.Refresh(work, c.ID())
	return err
}

// keep puts into the journal what has been updated: labels cannot be changed.
func (s *Service) keep(id string, what proto.Message) error {
	text, err := protojson.Marshal(what)
	if err != nil {
		return err
	}
	return s.updates.Save(id, text)
}

// apply tells the Engine, and writes what it cannot be told if the container
// runs; if it does not, its start will.
func (s *Service) apply(ctx context.Context, docker *engine.Conn, c *view.Container, order todocker.Update) error {
	short, cancel := docker.Short(ctx)
	defer cancel()
	if _, err := docker.ContainerUpdate(short, c.ID(), order.Engine); err != nil {
		return err
	}
	if !c.Running {
		return nil
	}
	return errors.Join(s.turn(ctx, order.Knobs, c.ID(), c.Pid), adjustOOMScore(c.ID(), c.Pid, max(int(order.Result.GetOomScoreAdj()), docker.OOMFloor())))
}

// adjustOOMScore sets the score of all processes of the container id, the first of
// which is pid. The Engine takes a score in an update and does nothing with it.
func adjustOOMScore(id string, pid, score int) error {
	own, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/oom_score_adj")
	if err != nil || strings.TrimSpace(string(own)) == strconv.Itoa(score) {
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
func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}
