package cache

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"

	"berth/core/engine/enginetest"
	"berth/core/labels"
	"berth/core/names"
	"berth/core/panics"
	"berth/core/tocri"
)

type nowhere struct{}

func (nowhere) Addresses(string) ([]netip.Addr, bool) { return nil, false }
func (nowhere) InNetNS(string, int) bool              { return false }
func (nowhere) Keep(context.Context, *Container)      {}
func (nowhere) Drop(string)                           {}

// The Engine's list is compared with the view, whose events may have been lost.
// What does not differ costs no look.
func TestAudit(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	e.AddImage(enginetest.Image{}, "server")
	docker := e.Client(t)
	create := func(name string) string {
		said := labels.Set{Kind: labels.Container, SandboxID: "s", Config: `{"metadata":{"name":"` + name + `"}}`}
		made, err := docker.ContainerCreate(t.Context(), &container.Config{Image: "server", Cmd: []string{"serve"}, Labels: said.Encode()},
			&container.HostConfig{Init: new(bool)}, nil, nil, names.Name{Container: name, Pod: "p", Namespace: "ns", UID: "u"}.String())
		if err != nil {
			t.Fatal(err)
		}
		return made.ID
	}
	start := func(id string) error { return docker.ContainerStart(t.Context(), id, container.StartOptions{}) }
	pause := func(id string) error { return docker.ContainerPause(t.Context(), id) }
	unpause := func(id string) error { return docker.ContainerUnpause(t.Context(), id) }
	ended := func(id string) error { e.Die(id, 3); return nil }
	restarting := func(id string) error {
		e.SetState(id, func(s *container.State) { s.Status, s.Restarting, s.Pid = container.StateRestarting, true, 0 })
		return nil
	}
	type steps []func(string) error
	cases := map[string]struct {
		seen, unseen steps
		want         string
	}{
		"created":                  {nil, nil, ""},
		"running":                  {steps{start}, nil, ""},
		"paused":                   {steps{start, pause}, nil, ""},
		"restarting":               {steps{start, restarting}, nil, ""},
		"exited":                   {steps{start, ended}, nil, ""},
		"started unseen":           {nil, steps{start}, "running"},
		"ended unseen":             {steps{start}, steps{ended}, "exited"},
		"started and ended unseen": {nil, steps{start, ended}, "exited"},
		"paused unseen":            {steps{start}, steps{pause}, "paused"},
		"unpaused unseen":          {steps{start, pause}, steps{unpause}, "running"},
	}
	do := func(id string, all steps) {
		t.Helper()
		for _, step := range all {
			if err := step(id); err != nil {
				t.Fatal(err)
			}
		}
	}
	ids := map[string]string{}
	for name, tt := range cases {
		ids[name] = create(strings.ReplaceAll(name, " ", "-"))
		do(ids[name], tt.seen)
	}
	connected := e.Connect(t)
	v := New(Config{Network: nowhere{}, Logs: nowhere{}}, connected, slog.New(slog.DiscardHandler))
	conn, err := connected.WaitConn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := func(look func(context.Context, *panics.Group) error) {
		t.Helper()
		g := panics.NewGroup(slog.New(slog.DiscardHandler))
		if err := look(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	desk := &desk{looks: map[string]bool{}}
	all(func(ctx context.Context, g *panics.Group) error { return v.sync(ctx, conn, g, desk) })
	looks := map[string]func() int{}
	for name, tt := range cases {
		do(ids[name], tt.unseen)
		count := 0
		e.On("GET /containers/"+ids[name]+"/json", func() { count++ })
		looks[name] = func() int { return count }
	}
	all(func(ctx context.Context, g *panics.Group) error { return v.audit(ctx, conn, g, desk) })
	for name, tt := range cases {
		t.Run(name, func(t *testing.T) {
			want := 0
			if tt.want != "" {
				want = 1
			}
			if got := looks[name](); got != want {
				t.Errorf("%d looks, want %d", got, want)
			}
			if got := v.containers[ids[name]].seen.State; want > 0 && got != tt.want {
				t.Errorf("state %q, want %q", got, tt.want)
			}
		})
	}
}

func TestFromList(t *testing.T) {
	for name, tt := range map[string]struct {
		state, status string
		want          string
		exit          int32
	}{
		"created":    {"created", "Created", "CONTAINER_CREATED ", 0},
		"running":    {"running", "Up 5 minutes", "CONTAINER_RUNNING ", 0},
		"paused":     {"paused", "Up 5 minutes (Paused)", "CONTAINER_RUNNING ", 0},
		"restarting": {"restarting", "Restarting (1) 5 seconds ago", "CONTAINER_RUNNING ", 0},
		"well":       {"exited", "Exited (0) 5 minutes ago", "CONTAINER_EXITED Completed", 0},
		"killed":     {"exited", "Exited (137) About a minute ago", "CONTAINER_EXITED Error", 137},
		"dead":       {"dead", "Dead", "CONTAINER_EXITED Error", 255},
		"removing":   {"removing", "Removal In Progress", "CONTAINER_EXITED Error", 255},
	} {
		t.Run(name, func(t *testing.T) {
			said := labels.Set{Kind: labels.Container, Config: `{"metadata":{"name":"c"}}`}
			c := fromList(container.Summary{Names: []string{"/k8s_c_p_n_u_0"}, ID: "c", Created: 1, State: tt.state, Status: tt.status, Labels: said.Encode()}, life{})
			_, status, err := tocri.Container(c, tocri.FailedStart{})
			if err != nil {
				t.Fatal(err)
			}
			if got := status.GetState().String() + " " + status.GetReason(); got != tt.want || status.GetExitCode() != tt.exit {
				t.Errorf("got %s %d, want %s %d", got, status.GetExitCode(), tt.want, tt.exit)
			}
		})
	}
}
