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
)

// noPods is a Network without pods, and a Logs that writes none.
type noPods struct{}

func (noPods) Addresses(string) ([]netip.Addr, bool, error) { return nil, false, nil }
func (noPods) InNetNS(string, int) bool                     { return false }
func (noPods) Observe(context.Context, *Container)          {}
func (noPods) Discard(string)                               {}

// Only containers whose state differs from the Engine's list are inspected.
func TestAuditInspectsContainersThatDiffer(t *testing.T) {
	t.Parallel()
	e := enginetest.New(t)
	e.AddImage(enginetest.Image{}, "server")
	docker := e.Client(t)
	create := func(name string) string {
		set := labels.Set{Kind: labels.Container, SandboxID: "s", Config: `{"metadata":{"name":"` + name + `"}}`}
		made, err := docker.ContainerCreate(t.Context(), &container.Config{Image: "server", Cmd: []string{"serve"}, Labels: set.Encode()},
			&container.HostConfig{Init: new(bool)}, nil, nil, names.Name{Container: name, Pod: "p", Namespace: "ns", UID: "u"}.String())
		if err != nil {
			t.Fatal(err)
		}
		return made.ID
	}
	start := func(id string) error { return docker.ContainerStart(t.Context(), id, container.StartOptions{}) }
	pause := func(id string) error { return docker.ContainerPause(t.Context(), id) }
	unpause := func(id string) error { return docker.ContainerUnpause(t.Context(), id) }
	exit := func(id string) error { e.Die(id, 3); return nil }
	restarting := func(id string) error {
		e.SetState(id, func(s *container.State) { s.Status, s.Restarting, s.Pid = container.StateRestarting, true, 0 })
		return nil
	}
	type steps []func(string) error
	cases := map[string]struct {
		synced, missed steps
		want           string
	}{
		"created":               {nil, nil, ""},
		"running":               {steps{start}, nil, ""},
		"paused":                {steps{start, pause}, nil, ""},
		"restarting":            {steps{start, restarting}, nil, ""},
		"exited":                {steps{start, exit}, nil, ""},
		"start missed":          {nil, steps{start}, "running"},
		"exit missed":           {steps{start}, steps{exit}, "exited"},
		"start and exit missed": {nil, steps{start, exit}, "exited"},
		"pause missed":          {steps{start}, steps{pause}, "paused"},
		"unpause missed":        {steps{start, pause}, steps{unpause}, "running"},
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
		do(ids[name], tt.synced)
	}
	connected := e.Connect(t)
	c := New(Config{Network: noPods{}, Logs: noPods{}}, connected, slog.New(slog.DiscardHandler))
	conn, err := connected.WaitConn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	run := func(pass func(*syncer, context.Context) error) {
		t.Helper()
		s := &syncer{Cache: c, conn: conn, group: panics.NewGroup(slog.New(slog.DiscardHandler)), queue: newInspectQueue()}
		if err := pass(s, t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.group.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	run((*syncer).sync)
	inspects := map[string]func() int{}
	for name, tt := range cases {
		do(ids[name], tt.missed)
		count := 0
		e.On("GET /containers/"+ids[name]+"/json", func() { count++ })
		inspects[name] = func() int { return count }
	}
	run((*syncer).audit)
	for name, tt := range cases {
		t.Run(name, func(t *testing.T) {
			want := 0
			if tt.want != "" {
				want = 1
			}
			if got := inspects[name](); got != want {
				t.Errorf("%d inspects, want %d", got, want)
			}
			if got := c.containers[ids[name]].value.State; want > 0 && got != tt.want {
				t.Errorf("state %q, want %q", got, tt.want)
			}
		})
	}
}
