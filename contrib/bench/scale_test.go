package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// lists is a runtime that has only lists.
type lists struct {
	runtimeapi.RuntimeServiceClient
	pods       []*runtimeapi.PodSandbox
	containers []*runtimeapi.Container
}

func (l lists) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: l.pods}, nil
}

func (l lists) ListContainers(context.Context, *runtimeapi.ListContainersRequest, ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: l.containers}, nil
}

func TestListsAreCorrectWithAllPodsAndContainers(t *testing.T) {
	ready := func(id string) *runtimeapi.PodSandbox { return &runtimeapi.PodSandbox{Id: id} }
	running := func(id string) *runtimeapi.Container {
		return &runtimeapi.Container{Id: id, State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	}
	pods := []*pod{{name: "a", sandbox: "A", containers: []string{"a"}}}
	for name, c := range map[string]struct {
		lists
		want string // in the error, empty for none
	}{
		"correct":             {lists{pods: []*runtimeapi.PodSandbox{ready("A")}, containers: []*runtimeapi.Container{running("a")}}, ""},
		"a missing pod":       {lists{containers: []*runtimeapi.Container{running("a")}}, "A of pod a"},
		"a missing container": {lists{pods: []*runtimeapi.PodSandbox{ready("A")}}, "a of pod a"},
		"an exited container": {lists{pods: []*runtimeapi.PodSandbox{ready("A")}, containers: []*runtimeapi.Container{{Id: "a", State: runtimeapi.ContainerState_CONTAINER_EXITED}}}, "a of pod a"},
		"one too many":        {lists{pods: []*runtimeapi.PodSandbox{ready("A"), ready("B")}, containers: []*runtimeapi.Container{running("a")}}, "3 pods and containers, want 2"},
	} {
		err := (&cri{runtime: c.lists}).correct(t.Context(), pods)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestProcessIsStartedAgainWithItsCommand(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "/bin/cat", "-u")
	cmd.Env = append(os.Environ(), "BENCH=again")
	stdin, inErr := cmd.StdinPipe()
	stdout, outErr := cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
		t.Skip("needs cat:", err)
	}
	// Start may return before Linux has put the arguments in place: wait for a byte of the program itself.
	_, inErr = stdin.Write([]byte("x"))
	_, outErr = stdout.Read(make([]byte, 1))
	if err := errors.Join(inErr, outErr); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }()
	p := process{"cat", cmd.Process.Pid}
	again, err := commandOf(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := end(p); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(again.Args, " "); got != "/bin/cat -u" || !strings.Contains(strings.Join(again.Env, " "), "BENCH=again") {
		t.Errorf("got %s, %q", got, again.Env)
	}
	if _, err := commandOf(p); err == nil || !strings.Contains(err.Error(), "cat has ended") {
		t.Errorf("got %v", err)
	}
}
