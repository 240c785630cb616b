package sandbox_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runSlowly runs a pod whose network is attached only after the caller's deadline.
func (e *env) runSlowly(pod *runtimeapi.PodSandboxConfig) string {
	e.Helper()
	ctx, cancel := context.WithTimeout(e.Context(), time.Second)
	defer cancel()
	e.network.before("attach", func() { <-ctx.Done() })
	defer e.network.before("attach", func() {})
	id, err := e.Run(ctx, pod, "")
	if err != nil {
		e.Fatalf("run: %v", err)
	}
	return id
}

func (e *env) requireListed(want ...string) {
	e.Helper()
	list, err := e.List(e.Context(), nil)
	if err != nil || len(list) != len(want) || len(want) == 1 && list[0].GetId() != want[0] {
		e.Errorf("listed: %v, %v; want %v", list, err, want)
	}
}

// A kubelet that receives no ID in time sends the request again. Until then it must not find the
// sandbox, or it would count the next one as a further attempt.
func TestSandboxCreatedAfterTheDeadlineIsReturnedToTheRetry(t *testing.T) {
	e := newEnv(t)
	id := e.runSlowly(pod())
	e.requireListed()
	retried, err := e.Run(t.Context(), pod(), "")
	if err != nil || retried != id {
		t.Errorf("retry: %s, %v; want %s", retried, err, id)
	}
	e.requireListed(id)
	if err := e.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	e.requireClean("RemovePodSandbox")
}

func TestSandboxOfAnotherRequestIsReplaced(t *testing.T) {
	e := newEnv(t)
	first := e.runSlowly(pod())
	other := proto.CloneOf(pod())
	other.Labels = map[string]string{"changed": "yes"}
	second, err := e.Run(t.Context(), other, "")
	if err != nil || second == first {
		t.Fatalf("another request: %s, %v; want a new sandbox", second, err)
	}
	e.requireListed(second)
	if err := e.Remove(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	e.requireClean("RemovePodSandbox")
}

func TestSandboxThatNoRetryClaimsIsRemoved(t *testing.T) {
	e := newEnv(t)
	e.runSlowly(pod())
	e.ExpirePending(t.Context())
	e.requireListed()
	e.requireClean("the TTL of a pending sandbox")
}

// A caller that cancels before its deadline does not retry.
func TestSandboxOfACancelledCallIsRolledBack(t *testing.T) {
	e := newEnv(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	e.network.before("attach", cancel)
	if id, err := e.Run(ctx, pod(), ""); err == nil {
		t.Errorf("run: %s, want the error of a cancelled call", id)
	}
	e.requireClean("a cancelled RunPodSandbox")
}
