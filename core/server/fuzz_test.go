package server_test

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/docker/docker/api/types/system"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine/enginetest"
	"berth/core/protofuzz"
)

const (
	fuzzCalls   = 60               // per seed
	fuzzTimeout = 20 * time.Second // of each call; none should need it
)

// FuzzServer sends random messages, about objects that exist and that do not. None may
// cause a panic or a hang, and pods can be run as before afterwards.
func FuzzServer(f *testing.F) {
	for seed := range uint64(6) {
		f.Add(seed, []byte{0x0a, byte(seed), 0x12, 0x00, 0xff})
	}
	f.Add(uint64(151), []byte("\n\x00@\x00\xff")) // stops a container that ignores the signal
	f.Fuzz(func(t *testing.T, seed uint64, wire []byte) {
		h := newDaemon(t, enginetest.Info(func(i *system.Info) {
			// With these settings no cgroup of this machine is created or written.
			i.CgroupDriver, i.KernelVersion = "systemd", "5.10.0"
		}))
		// The PID of no process, so that signals reach nothing.
		h.engine.PID = func(string) int { return 1<<22 + 1 }
		random := rand.New(rand.NewPCG(seed, 1))
		pod, c, err := h.runPod(h.pod("fuzz"), command("c", "sleep", "1000"))
		h.must(err)
		words := []string{pod, c, pod[:5], busybox, "docker", filepath.Join(h.dir, "made"), filepath.Join(h.dir, "made"), "true", "c"}
		for range fuzzCalls {
			h.scrambled(random, words, wire)
		}
		h.removeAllPods()
		if _, _, err := h.runPod(h.pod("after"), command("c", "sleep", "1000")); err != nil {
			t.Errorf("a pod after all that: %v", err)
		}
		h.removeAllPods()
	})
}

// scrambled makes one call with a random message.
func (h *testDaemon) scrambled(random *rand.Rand, words []string, wire []byte) {
	h.Helper()
	service := reflect.ValueOf(h.runtime)
	if random.IntN(4) == 0 {
		service = reflect.ValueOf(h.images)
	}
	n := random.IntN(service.NumMethod())
	name, method := service.Type().Method(n).Name, service.Method(n)
	if name == "GetContainerEvents" {
		return // which ends with the daemon
	}
	request := reflect.New(method.Type().In(1).Elem())
	m := request.Interface().(proto.Message)
	if random.IntN(4) == 0 && proto.Unmarshal(wire, m) == nil {
		// as it is
	} else {
		proto.Reset(m)
		protofuzz.Fill(m, random, words...)
	}
	// Half of the requests are valid enough to reach the Engine.
	if r, ok := m.(*runtimeapi.CreateContainerRequest); ok && random.IntN(2) == 0 {
		if r.Config == nil {
			r.Config = &runtimeapi.ContainerConfig{}
		}
		r.PodSandboxId, r.Config.Windows, r.Config.Command = words[0], nil, []string{"sleep", "1"}
		r.Config.Image = &runtimeapi.ImageSpec{Image: busybox}
		r.Config.Metadata = &runtimeapi.ContainerMetadata{Name: "c", Attempt: random.Uint32N(9)}
		if random.IntN(2) == 0 {
			r.Config.Linux, r.Config.Mounts, r.Config.Devices, r.Config.CDIDevices = nil, nil, nil, nil
		}
	}
	// A container may ignore the signal for as long as it is given.
	if r, ok := m.(*runtimeapi.StopContainerRequest); ok {
		r.Timeout = min(r.Timeout, 1)
	}
	ctx, cancel := context.WithTimeout(h.Context(), fuzzTimeout)
	defer cancel()
	out := method.Call([]reflect.Value{reflect.ValueOf(ctx), request})
	err, _ := out[1].Interface().(error)
	if recv := out[0].MethodByName("Recv"); err == nil && recv.IsValid() {
		for err == nil {
			err, _ = recv.Call(nil)[1].Interface().(error)
		}
	}
	if code := status.Code(err); code == codes.Internal || code == codes.DeadlineExceeded || ctx.Err() != nil {
		if !slices.Contains([]string{"ExecSync"}, name) || code == codes.Internal {
			h.Errorf("%s: %v\n%v", name, err, m)
		}
	}
}
