package podcheckpoint_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	dockercontainer "github.com/docker/docker/api/types/container"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/criu"
)

func (e *env) checkpoint(ctx context.Context, pod string, ids ...string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return e.Checkpoint(ctx, &runtimeapi.CheckpointPodRequest{PodSandboxId: pod, ContainerIds: ids, OutputPath: "/out"})
}

func TestCheckpointDescribesThePod(t *testing.T) {
	e := newEnv(t)
	id, ids := e.run("web", "b", "a", "more")
	e.must(e.checkpoint(t.Context(), id, ids[0], ids[1][:20]))
	want := criu.Manifest{Berth: "1.2.3", Pod: criu.ManifestPod{Name: "web", Namespace: "ns", UID: "u-web"}}
	if got := e.checkpoints.manifest; got.Berth != want.Berth || got.Pod != want.Pod || got.RuntimeHandler != "" || e.checkpoints.path != "/out" {
		t.Errorf("%+v, %s", got, e.checkpoints.path)
	}
	if got := e.checkpoints.targets; len(got) != 2 || got[0].Config.Name != "a" || got[0].ID != ids[1] || got[1].Config.Name != "b" || got[0].PID == 0 || got[0].Config.RootfsImage != "server" || got[0].Config.RootfsImageName != "docker.io/library/server:latest" {
		t.Errorf("%+v", got)
	}
	if log := e.log.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, `msg="pod checkpointed" pod=web namespace=ns sandbox=`+id+" containers=2 location=/out") {
		t.Errorf("log: %s", log)
	}
	e.must(e.sandboxes.Remove(t.Context(), id)) // nothing is locked
	e.requireClean("RemovePodSandbox")
}

func TestCheckpointRefusesRequests(t *testing.T) {
	e := newEnv(t)
	id, ids := e.run("web", "a", "b")
	_, foreign := e.run("other", "c")
	_, paused := e.run("paused", "d")
	ended, endedIDs := e.run("ended", "e")
	e.must(e.sandboxes.Stop(t.Context(), ended))
	created, err := e.containers.Create(t.Context(), id, ctr("created"), pod("web"))
	e.must(err)
	e.engine.SetState(paused[0], func(s *dockercontainer.State) { s.Paused = true })
	pausedPod := mustSandboxOf(e, paused[0])
	for name, c := range map[string]struct {
		pod  string
		ids  []string
		is   func(error) bool
		want string
	}{
		"no pod":         {"none", ids, errdefs.IsNotFound, "none"},
		"no containers":  {id, nil, errdefs.IsInvalidArgument, "must not be empty"},
		"no container":   {id, []string{ids[0], "none"}, errdefs.IsNotFound, "none"},
		"a sandbox":      {id, []string{id}, errdefs.IsNotFound, id},
		"twice":          {id, []string{ids[0], ids[1], ids[0]}, errdefs.IsInvalidArgument, "there twice"},
		"twice, by part": {id, []string{ids[0], ids[0][:30]}, errdefs.IsInvalidArgument, "there twice"},
		"another pod":    {id, []string{ids[0], foreign[0]}, errdefs.IsInvalidArgument, "belongs to sandbox"},
		"not started":    {id, []string{ids[0], created}, errdefs.IsFailedPrecondition, "CONTAINER_CREATED"},
		"stopped":        {ended, endedIDs, errdefs.IsFailedPrecondition, "CONTAINER_EXITED"},
		"paused":         {pausedPod, paused, errdefs.IsFailedPrecondition, "is paused with Docker"},
	} {
		if err := e.checkpoint(t.Context(), c.pod, c.ids...); !c.is(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if err := e.Checkpoint(t.Context(), &runtimeapi.CheckpointPodRequest{PodSandboxId: id, ContainerIds: ids, OutputPath: "/out"}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "deadline") {
		t.Errorf("without a deadline: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := e.Checkpoint(ctx, &runtimeapi.CheckpointPodRequest{PodSandboxId: id, ContainerIds: ids, OutputPath: "/out", Options: map[string]string{"k": "v"}}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `options ["k"]`) {
		t.Errorf("with options: %v", err)
	}
	// The pause process has ended by itself, and the containers run.
	e.must(e.engine.Client(t).ContainerKill(t.Context(), id, "KILL"))
	_, err = e.cache.Refresh(t.Context(), id)
	e.must(err)
	if err := e.checkpoint(t.Context(), id, ids...); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "the sandbox is not ready: the pause container is exited") {
		t.Errorf("of a sandbox that is not ready: %v", err)
	}
	if e.checkpoints.path != "" || e.log.Len() > 0 {
		t.Error("a checkpoint was taken")
	}
}

func mustSandboxOf(e *env, container string) string {
	e.Helper()
	c, err := e.cache.Container(e.Context(), container)
	e.must(err)
	return c.Row.GetPodSandboxId()
}

// What ends a container or its pod ends the checkpoint, and does not wait for its deadline.
func TestStopAbortsTheCheckpoint(t *testing.T) {
	for name, stop := range map[string]func(e *env, id string, ids []string) error{
		"StopContainer":    func(e *env, _ string, ids []string) error { return e.containers.Stop(e.Context(), ids[1], time.Second) },
		"RemoveContainer":  func(e *env, _ string, ids []string) error { return e.containers.Remove(e.Context(), ids[0]) },
		"StopPodSandbox":   func(e *env, id string, _ []string) error { return e.sandboxes.Stop(e.Context(), id) },
		"RemovePodSandbox": func(e *env, id string, _ []string) error { return e.sandboxes.Remove(e.Context(), id) },
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			id, ids := e.run("web", "a", "b")
			begun := make(chan struct{})
			e.checkpoints.during = func(ctx context.Context) error {
				close(begun)
				<-ctx.Done()
				return errors.Join(errors.New("CRIU was killed"), ctx.Err())
			}
			var g errgroup.Group
			g.Go(func() error { return e.checkpoint(t.Context(), id, ids...) })
			<-begun
			e.must(stop(e, id, ids))
			if err := g.Wait(); !errdefs.IsFailedPrecondition(err) || errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "is being stopped") || !strings.Contains(err.Error(), "CRIU was killed") {
				t.Errorf("the checkpoint: %v", err)
			}
		})
	}
}

func TestDeadlineOfTheCheckpointIsThatOfTheCall(t *testing.T) {
	e := newEnv(t)
	id, ids := e.run("web", "a")
	e.checkpoints.during = func(ctx context.Context) error { <-ctx.Done(); return errors.New("interrupted") }
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := e.checkpoint(ctx, id, ids...); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("%v", err)
	}
	e.must(e.containers.Remove(t.Context(), ids[0]))
}

// Checkpoints of the same containers wait for each other, in whatever order they are named.
func TestCheckpointsOfAPodTakePlaceOneAfterAnother(t *testing.T) {
	e := newEnv(t)
	id, ids := e.run("web", "a", "b", "c")
	e.checkpoints.during = func(context.Context) error { time.Sleep(5 * time.Millisecond); return nil }
	var g errgroup.Group
	for range 5 {
		for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2}, {1, 0}} {
			var given []string
			for _, i := range order {
				given = append(given, ids[i])
			}
			g.Go(func() error { return e.checkpoint(t.Context(), id, given...) })
		}
	}
	e.must(g.Wait())
	if !slices.IsSortedFunc(e.checkpoints.targets, func(a, b criu.Container) int { return strings.Compare(a.Config.Name, b.Config.Name) }) {
		t.Error(e.checkpoints.targets)
	}
}
