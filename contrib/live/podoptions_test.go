package live

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/versions"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/names"
)

// since reports whether the Engine speaks the API version.
func (n *node) since(api string) bool {
	n.t.Helper()
	v, err := n.docker.ServerVersion(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return versions.GreaterThanOrEqualTo(v.APIVersion, api)
}

// handlers lists the runtime handlers in the status of the runtime.
func (n *node) handlers() (names []string) {
	n.t.Helper()
	r, err := n.runtime.Status(n.t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, h := range r.GetRuntimeHandlers() {
		names = append(names, h.GetName())
	}
	return names
}

// addRuntime adds an OCI runtime to the Engine until the test ends. program is called with the path of the
// runtime that the Engine has used so far.
func (n *node) addRuntime(name string, program func(runc string) string) {
	n.t.Helper()
	n.register(name, func(runc string) map[string]any { return map[string]any{"path": program(runc)} })
	n.until(10*time.Second, "the runtime "+name+" is not reported", func() bool { return slices.Contains(n.handlers(), name) })
}

// addOCIRuntime adds berth-oci, which berthd does not report as a handler.
func (n *node) addOCIRuntime(program, instructions string) {
	n.t.Helper()
	n.register(names.OCIRuntime(n.info().DefaultRuntime), func(runc string) map[string]any {
		return map[string]any{"path": program, "runtimeArgs": []string{"--berth-instructions=" + instructions, "--berth-runtime=" + runc}}
	})
}

// register adds an OCI runtime to the configuration of the Engine until the test ends, and waits until the Engine has it.
// entry is called with the path of the runtime that the Engine has used so far, and returns what daemon.json says of the new one.
func (n *node) register(name string, entry func(runc string) map[string]any) {
	n.t.Helper()
	dir := filepath.Dir(strings.TrimPrefix(*host, "unix://"))
	file := filepath.Join(dir, "daemon.json")
	before, err := os.ReadFile(file)
	if err != nil {
		n.t.Skip("needs an Engine whose configuration is beside its socket:", err)
	}
	config := map[string]any{}
	if err := json.Unmarshal(before, &config); err != nil {
		n.t.Fatal(err)
	}
	runtimes, _ := config["runtimes"].(map[string]any)
	runc := "runc"
	if clamp, ok := runtimes["clamp"].(map[string]any); ok {
		runc = clamp["path"].(string)
	}
	if runtimes == nil {
		runtimes = map[string]any{}
		config["runtimes"] = runtimes
	}
	runtimes[name] = entry(runc)
	after, err := json.Marshal(config)
	if err != nil {
		n.t.Fatal(err)
	}
	reload := func(text []byte) {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			n.t.Error(err)
		}
		if err := syscall.Kill(n.enginePID(), syscall.SIGHUP); err != nil {
			n.t.Error(err)
		}
	}
	reload(after)
	n.t.Cleanup(func() { reload(before) })
	n.until(10*time.Second, "the Engine does not report the runtime "+name, func() bool {
		info, err := n.docker.Info(n.t.Context())
		_, ok := info.Runtimes[name]
		return err == nil && ok
	})
	if n.runtime == nil {
		return
	}
	n.until(20*time.Second, "berthd does not know the runtime "+name, func() bool {
		status, err := n.runtime.Status(n.t.Context(), &runtimeapi.StatusRequest{Verbose: true})
		return err == nil && strings.Contains(status.GetInfo()["engine"], strconv.Quote(name))
	})
}

// enginePID returns the PID of dockerd.
func (n *node) enginePID() int {
	n.t.Helper()
	text, err := os.ReadFile(filepath.Join(filepath.Dir(strings.TrimPrefix(*host, "unix://")), "pid"))
	if err != nil {
		n.t.Skip("needs an Engine whose PID file is beside its socket:", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		n.t.Fatal(err)
	}
	return pid
}

// addRecorder adds an OCI runtime that stores the configuration of each container before it becomes runc.
// recorded returns the annotations in the configuration of a container.
func (n *node) addRecorder(name string) (recorded func(id string) map[string]string) {
	n.t.Helper()
	dir := n.path("recorded")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	n.addRuntime(name, func(runc string) string {
		script := fmt.Sprintf(`#!/bin/sh
bundle='' previous='' last=''
for arg; do
	case $previous in --bundle | -b) bundle=$arg ;; esac
	previous=$arg last=$arg
done
[ -z "$bundle" ] || cp "$bundle/config.json" "%s/$last.json"
exec %s "$@"
`, dir, runc)
		path := n.path("recorder")
		if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
			n.t.Fatal(err)
		}
		return path
	})
	return func(id string) map[string]string {
		n.t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, id+".json"))
		if err != nil {
			n.t.Fatal(err)
		}
		var config struct{ Annotations map[string]string }
		if err := json.Unmarshal(text, &config); err != nil {
			n.t.Fatal(err)
		}
		return config.Annotations
	}
}

// TestAnnotationsReachTheRuntime reads what a runtime gets of a pod: the standard annotations of the CRI, which
// no pod can change, and those that the operator lets through.
func TestAnnotationsReachTheRuntime(t *testing.T) {
	n := newNode(t, "--oci-annotations", "recorder=dev.live.*,another=dev.other.*")
	recorded := n.addRecorder("recorder")
	config := n.pod("annotated")
	config.Annotations = map[string]string{
		"dev.live.pod": "of the pod", "dev.other.pod": "x", "note": "x",
		"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "another", "io.containerd.runc.v2.group": "another",
	}
	r, err := n.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "recorder"})
	if err != nil {
		t.Fatal(err)
	}
	pod := r.GetPodSandboxId()
	c := shell("c", "exec sleep 1000")
	c.Annotations = map[string]string{"dev.live.container": "of the container", "note": "x", "io.kubernetes.pod.terminationGracePeriod": "7"}
	id := n.create(pod, config, c)
	ofPod, ofContainer := recorded(pod), recorded(id)
	for _, annotations := range []map[string]string{ofPod, ofContainer} {
		delete(annotations, "org.systemd.property.TimeoutStopUSec") // with the cgroup driver systemd only
		delete(annotations, "org.systemd.property.CollectMode")     // of Docker
	}
	wantPod, wantContainer := map[string]string{}, map[string]string{}
	if n.since("1.43") {
		wantPod = map[string]string{
			"dev.live.pod":                            "of the pod",
			"io.kubernetes.cri.container-type":        "sandbox",
			"io.kubernetes.cri.sandbox-name":          "annotated",
			"io.kubernetes.cri.sandbox-namespace":     "live",
			"io.kubernetes.cri.sandbox-uid":           "uid-annotated",
			"io.kubernetes.cri.sandbox-log-directory": config.GetLogDirectory(),
			"io.containerd.runc.v2.group":             ofPod["io.containerd.runc.v2.group"],
		}
		wantContainer = map[string]string{
			"dev.live.pod":                        "of the pod",
			"dev.live.container":                  "of the container",
			"io.kubernetes.cri.container-type":    "container",
			"io.kubernetes.cri.sandbox-id":        pod,
			"io.kubernetes.cri.sandbox-name":      "annotated",
			"io.kubernetes.cri.sandbox-namespace": "live",
			"io.kubernetes.cri.sandbox-uid":       "uid-annotated",
			"io.kubernetes.cri.container-name":    "c",
			"io.kubernetes.cri.image-name":        *image,
			"io.containerd.runc.v2.group":         ofContainer["io.containerd.runc.v2.group"],
		}
		if group := ofContainer["io.containerd.runc.v2.group"]; group == "" || group == "another" || group != ofPod["io.containerd.runc.v2.group"] {
			t.Errorf("the shim group of the container is %q, of the pause container %q", group, ofPod["io.containerd.runc.v2.group"])
		}
	}
	if diff := cmp.Diff(wantPod, ofPod); diff != "" && len(wantPod)+len(ofPod) > 0 {
		t.Errorf("pause container (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantContainer, ofContainer); diff != "" && len(wantContainer)+len(ofContainer) > 0 {
		t.Errorf("container (-want +got):\n%s", diff)
	}
	t.Logf("pause container: %v\ncontainer: %v", ofPod, ofContainer)
	const warning = "an option has no effect with this docker"
	if got := strings.Contains(n.log.String(), warning); got != !n.since("1.43") {
		t.Errorf("warned: %v", got)
	}
	n.remove(pod)
	n.removeLeftovers()
}

// addShim installs containerd's shim for runc under another name, where the Engine's containerd finds programs.
func addShim(t *testing.T, program string) {
	t.Helper()
	comms, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, comm := range comms {
		if text, err := os.ReadFile(comm); err != nil || string(text) != "containerd\n" {
			continue
		}
		proc := filepath.Dir(comm)
		environ, err := os.ReadFile(filepath.Join(proc, "environ"))
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut("\x00"+string(environ), "\x00PATH=")
		paths, _, _ := strings.Cut(after, "\x00")
		for _, dir := range filepath.SplitList(paths) {
			in := filepath.Join(proc, "root", dir)
			if _, err := os.Stat(filepath.Join(in, "containerd-shim-runc-v2")); err != nil {
				continue
			}
			link := filepath.Join(in, program)
			os.Remove(link) // of a test that was killed
			if err := os.Symlink("containerd-shim-runc-v2", link); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.Remove(link) })
			return
		}
	}
	t.Skip("the shim of the Engine's containerd is not found")
}

// TestShimIsARuntimeHandler runs a pod with a shim that daemon.json does not name.
func TestShimIsARuntimeHandler(t *testing.T) {
	n := newNode(t, "--shim-runtimes", "lively=io.containerd.berth-live.v1,io.containerd.runc.v2")
	request := func(handler string) (string, error) {
		r, err := n.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.pod("shim"), RuntimeHandler: handler})
		return r.GetPodSandboxId(), err
	}
	if _, err := request("io.containerd.berth-live.v1"); codeOf(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "shim-runtimes") {
		t.Errorf("a shim that is allowed under another name only: %v", err)
	}
	if !n.since("1.42") {
		if _, err := request("lively"); codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "Docker 23 or newer") {
			t.Errorf("an Engine that takes no shims: %v", err)
		} else {
			t.Log(err)
		}
		if slices.Contains(n.handlers(), "lively") {
			t.Error("the shim is reported as a runtime handler")
		}
		n.removeLeftovers()
		return
	}
	addShim(t, "containerd-shim-berth-live-v1")
	if got := n.handlers(); !slices.Contains(got, "lively") || !slices.Contains(got, "io.containerd.runc.v2") {
		t.Errorf("runtime handlers: %q", got)
	}
	for handler, runtime := range map[string]string{"lively": "io.containerd.berth-live.v1", "io.containerd.runc.v2": "io.containerd.runc.v2"} {
		pod, err := request(handler)
		if err != nil {
			t.Fatalf("%s: %v", handler, err)
		}
		id := n.create(pod, n.pod("shim"), shell("c", "exec sleep 1000"))
		for _, id := range []string{pod, id} {
			if seen, err := n.docker.ContainerInspect(t.Context(), id); err != nil || seen.HostConfig.Runtime != runtime {
				t.Errorf("%s: Docker runs it with %q, %v", handler, seen.HostConfig.Runtime, err)
			}
		}
		status, err := n.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
		if err != nil || status.GetStatus().GetRuntimeHandler() != handler {
			t.Errorf("%s: the status has the handler %q, %v", handler, status.GetStatus().GetRuntimeHandler(), err)
		}
		if got := n.exec(id, "echo", "alive"); got != "alive\n" {
			t.Errorf("%s: %q", handler, got)
		}
		n.remove(pod)
	}
	n.removeLeftovers()
}

// TestLimitsByAnnotation sets the limits that the API of Kubernetes does not have.
func TestLimitsByAnnotation(t *testing.T) {
	n := newNode(t, "--allow-annotations", "berth.ulimits=live,berth.shm-size=*,berth.writable-cgroups=live,berth.rootfs-size=live")
	config := n.pod("limits")
	config.Annotations = map[string]string{"berth.ulimits": "nofile=1000:2000,sigpending=100:200", "berth.ulimits/b": "nofile=3000", "berth.shm-size": "128Mi"}
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	// Of the first process: runc 1.1.5 raises the soft limit of open files of others to the hard one.
	const script = "awk '/Max open files/ { print $4, $5 } /Max pending signals/ { print $4 == 100, $5 == 200 }' /proc/1/limits; df -k /dev/shm | awk 'END { print $2 }'"
	for name, want := range map[string]string{"a": "1000 2000\n1 1\n131072\n", "b": "3000 3000\n0 0\n131072\n"} {
		id := n.create(pod, config, shell(name, "exec sleep 1000"))
		if got := n.exec(id, "sh", "-c", script); got != want {
			t.Errorf("container %s: %q, want %q", name, got, want)
		}
	}
	n.remove(pod)

	refused := func(key, value, namespace string, code codes.Code, text string) {
		t.Helper()
		config := n.pod("refused")
		config.Metadata.Namespace, config.Annotations = namespace, map[string]string{key: value}
		_, err := n.run(t.Context(), config)
		if codeOf(err) != code || !strings.Contains(err.Error(), text) {
			t.Errorf("%s %q in namespace %s: %v, want %v and %q", key, value, namespace, err, code, text)
		} else {
			t.Log(err)
		}
	}
	refused("berth.ulimits", "core=0", "other", codes.PermissionDenied, "add berth.ulimits=other to the option allow-annotations")
	refused("berth.ulimits/c", "files=1", "live", codes.InvalidArgument, "annotation berth.ulimits/c")
	refused("berth.shm-size", "big", "other", codes.InvalidArgument, "from 1Mi to 1Pi")
	info := n.info()
	switch {
	case !n.since("1.48"):
		refused("berth.writable-cgroups", "true", "live", codes.FailedPrecondition, "need Docker 28 or newer")
	case info.CgroupVersion != "2":
		refused("berth.writable-cgroups", "true", "live", codes.FailedPrecondition, "need cgroup v2")
	default:
		n.writableCgroup()
	}
	backing := ""
	for _, s := range info.DriverStatus {
		if s[0] == "Backing Filesystem" {
			backing = s[1]
		}
	}
	switch {
	case info.Driver == "overlayfs":
		refused("berth.rootfs-size", "1Gi", "live", codes.FailedPrecondition, "containerd image store")
	case backing == "xfs", info.Driver == "btrfs", info.Driver == "zfs":
		t.Log("the Engine may have quotas: no refusal is expected")
	default:
		refused("berth.rootfs-size", "1Gi", "live", codes.FailedPrecondition, "pquota")
	}
	n.removeLeftovers()
}

// writableCgroup creates a cgroup in a container.
func (n *node) writableCgroup() {
	n.t.Helper()
	config := n.pod("cgroups")
	config.Annotations = map[string]string{"berth.writable-cgroups/w": "true"}
	pod, err := n.run(n.t.Context(), config)
	if err != nil {
		n.t.Fatal(err)
	}
	for name, want := range map[string]string{"w": "created\n", "r": "read-only\n"} {
		id := n.create(pod, config, shell(name, "exec sleep 1000"))
		if got := n.exec(id, "sh", "-c", "mkdir /sys/fs/cgroup/x 2>/dev/null && echo created || echo read-only"); got != want {
			n.t.Errorf("container %s: %q, want %q", name, got, want)
		}
	}
	n.remove(pod)
}
