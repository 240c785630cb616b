package engine_test

import (
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"

	"berth/core/engine"
	"berth/core/labels"
	"berth/core/tocri"
)

func TestInspectFromSummary(t *testing.T) {
	for name, tt := range map[string]struct {
		state, status string
		want          string
		exit          int32
	}{
		"created":    {"created", "Created", "CONTAINER_CREATED ", 0},
		"running":    {"running", "Up 5 minutes", "CONTAINER_RUNNING ", 0},
		"paused":     {"paused", "Up 5 minutes (Paused)", "CONTAINER_RUNNING ", 0},
		"restarting": {"restarting", "Restarting (1) 5 seconds ago", "CONTAINER_RUNNING ", 0},
		"succeeded":  {"exited", "Exited (0) 5 minutes ago", "CONTAINER_EXITED Completed", 0},
		"killed":     {"exited", "Exited (137) About a minute ago", "CONTAINER_EXITED Error", 137},
		"dead":       {"dead", "Dead", "CONTAINER_EXITED Error", 255},
		"removing":   {"removing", "Removal In Progress", "CONTAINER_EXITED Error", 255},
	} {
		t.Run(name, func(t *testing.T) {
			set := labels.Set{Kind: labels.Container, Config: `{"metadata":{"name":"c"}}`}
			c := engine.InspectFromSummary(container.Summary{Names: []string{"/k8s_c_p_n_u_0"}, ID: "c", Created: 1, State: tt.state, Status: tt.status, Labels: set.Encode()}, time.Time{})
			_, status, err := tocri.Container(c, set, tocri.FailedStart{})
			if err != nil {
				t.Fatal(err)
			}
			if got := status.GetState().String() + " " + status.GetReason(); got != tt.want || status.GetExitCode() != tt.exit {
				t.Errorf("got %s %d, want %s %d", got, status.GetExitCode(), tt.want, tt.exit)
			}
		})
	}
}
