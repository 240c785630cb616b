package tocri

import (
	"testing"

	"github.com/docker/docker/api/types/container"

	"berth/core/labels"
)

// FuzzInspect translates inspect results with arbitrary names, labels and states.
func FuzzInspect(f *testing.F) {
	f.Add("/k8s_c_p_n_u_0", `{"metadata":{"name":"c"}}`, `{"uid":"1"}`, "2026-11-23T06:00:00Z", "0001-01-01T00:00:00Z", "SIGRTMIN+3", int64(137), uint8(1))
	f.Add("/k8s_POD_p_n_u_0", "", "", "", "", "", int64(0), uint8(0))
	f.Add("", `{`, `[]`, "yesterday", "9999999999999999", "SIG", int64(-1), uint8(255))
	f.Add("/x", `{"metadata":null,"linux":{"resources":null},"mounts":[{}],"stopSignal":9999}`, "null", "2026-11-23T06:00:00+99:99", "x", "+-", int64(1<<40), uint8(7))
	f.Fuzz(func(t *testing.T, name, config, user, started, finished, signal string, exit int64, flags uint8) {
		for _, kind := range []labels.Kind{labels.Container, labels.Sandbox} {
			c := inspected(container.State{
				StartedAt: started, FinishedAt: finished, ExitCode: int(exit), Error: signal,
				Running: flags&1 > 0, Paused: flags&2 > 0, Dead: flags&4 > 0, OOMKilled: flags&8 > 0,
			}, labels.Set{Kind: kind, Config: config, User: user}, name)
			c.Config.StopSignal = signal
			row, status, err := containerOf(c, FailedStart{})
			if err == nil && (row.GetId() != c.ID || status.GetId() != c.ID) {
				t.Errorf("row %v, status %v", row, status)
			}
			pod, podStatus, err := sandboxOf(c, Network{Ready: true})
			if err == nil && (pod.GetId() != c.ID || podStatus.GetLinux().GetNamespaces().GetOptions() == nil) {
				t.Errorf("pod %v, status %v", pod, podStatus)
			}
			_, _, _, _ = Times(c)
		}
		Image(ImageInfo{ID: name, Tags: []string{config}, Digests: []string{user}, User: signal, Size: exit})
	})
}
