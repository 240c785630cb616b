package live

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"berth/core/premount"
)

// standIn is a program that is called as the OCI runtime of berth is, and changes nothing.
const standIn = `#!/bin/sh
below=runc
while :; do
	case $1 in
	--berth-runtime=*) below=${1#*=} ;;
	--berth-instructions=*) ;;
	*) break ;;
	esac
	shift
done
exec "$below" "$@"
`

// An installer calls berthd runtime for one Engine.
type installer struct {
	n            *node
	host, config string
}

func (i installer) run(args ...string) (string, error) {
	i.n.t.Helper()
	cmd := exec.Command(*program, append([]string{
		"runtime", args[0], "--docker-endpoint", i.host, "--docker-config", i.config, "--runtime-program", i.n.path("package", "berth-oci"),
		"--runtime-dir", i.n.path("oci"), "--run-dir", i.n.path("run"),
	}, args[1:]...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	i.n.t.Logf("berthd runtime %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	if err != nil && strings.Count(stderr.String(), "\n") != 1 {
		i.n.t.Errorf("the error is not one line: %q", stderr.String())
	}
	return string(out) + stderr.String(), err
}

// must runs a command that succeeds and prints each text.
func (i installer) must(command string, want ...string) {
	i.n.t.Helper()
	out, err := i.run(strings.Fields(command)...)
	for _, text := range want {
		if err != nil || !strings.Contains(out, text) {
			i.n.t.Errorf("runtime %s: %v, want %q", command, err, text)
		}
	}
}

// refused runs a command that fails with each text and leaves the file as it is.
func (i installer) refused(command string, want ...string) {
	i.n.t.Helper()
	before, _ := os.ReadFile(i.config)
	out, err := i.run(strings.Fields(command)...)
	for _, text := range want {
		if err == nil || !strings.Contains(out, text) {
			i.n.t.Errorf("runtime %s: %v, want %q", command, err, text)
		}
	}
	if after, _ := os.ReadFile(i.config); !bytes.Equal(before, after) {
		i.n.t.Errorf("runtime %s has changed the file to %s", command, after)
	}
}

// dockerExec runs a command in a container that is not a pod's, and returns its output.
func (n *node) dockerExec(id string, command ...string) string {
	n.t.Helper()
	out, err := exec.Command("docker", append([]string{"--host", *host, "exec", id}, command...)...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("docker exec: %v\n%s", err, out)
	}
	return string(out)
}

func (n *node) put(path, text string, mode os.FileMode) {
	n.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		n.t.Fatal(err)
	}
}

// TestRuntimeInstall installs a runtime under running pods, uses it, replaces it and removes it.
func TestRuntimeInstall(t *testing.T) {
	n := newNode(t)
	pid := n.enginePID()
	if premount.InOtherMountNS(pid) {
		t.Skip("this Engine has a mount namespace of its own, and does not see the program where berthd puts it")
	}
	i := installer{n, *host, filepath.Join(filepath.Dir(strings.TrimPrefix(*host, "unix://")), "daemon.json")}
	before, err := os.ReadFile(i.config)
	if err != nil {
		t.Skip("needs an Engine whose configuration is beside its socket:", err)
	}
	t.Cleanup(func() {
		if now, _ := os.ReadFile(i.config); !bytes.Equal(now, before) {
			n.put(i.config, string(before), 0o644)
			syscall.Kill(pid, syscall.SIGHUP)
		}
	})
	handler := "berth"
	if bytes.Contains(before, []byte("clamp")) {
		handler = "berth-clamp" // the default of this Engine, which may not do what runc alone does
	}
	n.put(n.path("package", "berth-oci"), standIn, 0o755)
	running, c := n.begin(n.pod("before"), shell("c", "exec sleep 1000"))
	processOf := func(id string) int {
		t.Helper()
		seen, err := n.docker.ContainerInspect(t.Context(), id)
		if err != nil || !seen.State.Running {
			t.Fatalf("%v, %v; want a running container", seen.State, err)
		}
		return seen.State.Pid
	}
	process := processOf(c)

	i.must("status", "not installed; to install it: berthd runtime install")
	i.must("install --dry-run", "+++ "+i.config, "would send SIGHUP to dockerd, process "+strconv.Itoa(pid))
	if now, _ := os.ReadFile(i.config); !bytes.Equal(now, before) {
		t.Fatalf("a dry run has changed the file to %s", now)
	}
	i.must("install", "installed berth-oci in", "changed the runtimes in", "Docker knows berth")
	i.must("install", "nothing to do")
	if slices.Contains(n.handlers(), handler) {
		t.Error("the runtime is a handler, which pods could name")
	}

	made, err := n.docker.ContainerCreate(t.Context(), &container.Config{Image: *image, Cmd: []string{"sleep", "1000"}}, &container.HostConfig{Runtime: handler, NetworkMode: "none"}, nil, nil, "used")
	if err != nil {
		t.Fatal(err)
	}
	id := made.ID
	t.Cleanup(func() { n.docker.ContainerRemove(context.Background(), id, container.RemoveOptions{Force: true}) })
	if err := n.docker.ContainerStart(t.Context(), id, container.StartOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := n.dockerExec(id, "echo", "x"); got != "x\n" {
		t.Errorf("exec: %q", got)
	}
	i.must("status", handler, "used")

	n.put(n.path("package", "berth-oci"), standIn+"# newer\n", 0o755)
	i.must("status", "which is not the one of the package -> berthd runtime install")
	installed, _ := os.ReadFile(i.config)
	i.must("install", "installed berth-oci in")
	if now, _ := os.ReadFile(i.config); !bytes.Equal(now, installed) {
		t.Errorf("an upgrade has changed the file to %s", now)
	}
	if got := n.dockerExec(id, "echo", "x"); got != "x\n" {
		t.Errorf("exec after the upgrade: %q", got)
	}
	i.refused("remove", "the runtime, running or not: remove", ": used")
	if err := n.docker.ContainerRemove(t.Context(), id, container.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	i.must("remove --dry-run", "--- "+i.config, "would remove")
	i.must("remove", "removed berth", "removed "+n.path("oci", "berth-oci"))
	if now, _ := os.ReadFile(i.config); !bytes.Equal(now, before) {
		t.Errorf("after remove the file is %s, want %s", now, before)
	}
	info, err := n.docker.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name := range info.Runtimes {
		if strings.HasPrefix(name, "berth") {
			t.Errorf("Docker still has %s", name)
		}
	}
	if got := processOf(c); got != process {
		t.Errorf("the container from before runs as %d, want %d", got, process)
	}
	if got := n.exec(c, "echo", "x"); got != "x\n" {
		t.Errorf("exec in the container from before: %q", got)
	}
	i.must("status", "not installed")
	i.must("remove", "nothing to do")
	n.remove(running)
	n.clean()
}

// An extraEngine is one more dockerd, of the same version as the Engine of the tests.
type extraEngine struct {
	installer
	cmd    *exec.Cmd
	docker *client.Client
	ended  chan struct{}
}

// extraEngine starts a dockerd with that configuration and further flags.
func (n *node) extraEngine(config string, flags ...string) *extraEngine {
	n.t.Helper()
	dir, err := os.MkdirTemp(n.dir, "e")
	if err != nil {
		n.t.Fatal(err)
	}
	e := &extraEngine{installer{n, "unix://" + dir + "/s", dir + "/daemon.json"}, nil, nil, make(chan struct{})}
	n.put(e.config, config, 0o644)
	log, err := os.Create(dir + "/log")
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	e.cmd = exec.Command("nsenter", append([]string{"--target", strconv.Itoa(n.enginePID()), "--mount", "dockerd", "--data-root", dir + "/data", "--exec-root", dir + "/exec",
		"--pidfile", dir + "/pid", "-H", e.host, "--bridge", "none", "--iptables=false", "--ip-masq=false", "--config-file", e.config}, flags...)...)
	e.cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/usr/bin:/sbin:/bin")
	e.cmd.Stdout, e.cmd.Stderr = log, log
	if err := e.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	go func() { e.cmd.Wait(); close(e.ended) }()
	if e.docker, err = client.NewClientWithOpts(client.WithHost(e.host), client.WithAPIVersionNegotiation()); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		e.docker.Close()
		e.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-e.ended:
		case <-time.After(30 * time.Second):
			e.cmd.Process.Kill()
		}
		if n.t.Failed() {
			text, _ := os.ReadFile(dir + "/log")
			n.t.Logf("the end of its log:\n%s", text[max(0, len(text)-3000):])
		}
		// The containerd of a dockerd that has crashed goes on.
		if text, err := os.ReadFile(dir + "/exec/containerd/containerd.pid"); err == nil {
			if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		exec.Command("umount", "-l", dir+"/data").Run()
	})
	n.until(60*time.Second, "the extra Engine does not answer", func() bool {
		_, err := e.docker.Ping(n.t.Context())
		return err == nil || e.over()
	})
	if e.over() {
		text, _ := os.ReadFile(dir + "/log")
		n.t.Fatalf("it has ended:\n%s", text)
	}
	return e
}

// over reports whether the process has ended.
func (e *extraEngine) over() bool {
	select {
	case <-e.ended:
		return true
	default:
		return false
	}
}

// TestRuntimeInstallRefusesWhatCrashesDocker: Docker 20.10 crashes if it reads runtimes, and its default is not among them.
func TestRuntimeInstallRefusesWhatCrashesDocker(t *testing.T) {
	n := newNode(t)
	n.put(n.path("package", "berth-oci"), standIn, 0o755)
	e := n.extraEngine("{}", "--add-runtime", "clamp=/usr/sbin/runc", "--default-runtime", "clamp")
	e.refused("install", "dockerd is started with --add-runtime clamp=/usr/sbin/runc: it would replace or ignore runtimes", "instead of the flag, and restart Docker")
	e.refused("remove", "dockerd is started with --add-runtime")
	other := installer{n, e.host, n.path("other.json")}
	other.refused("install", "dockerd is started with --")
	if _, err := e.docker.Info(t.Context()); err != nil {
		t.Errorf("it does not answer any more: %v", err)
	}
	// What install does not do.
	n.put(e.config, `{"runtimes": {"berth": {"path": "/usr/sbin/runc"}}}`, 0o644)
	if err := e.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	crashed := false
	for limit := time.Now().Add(10 * time.Second); time.Now().Before(limit) && !crashed; time.Sleep(100 * time.Millisecond) {
		e.docker.Info(t.Context())
		crashed = e.over()
	}
	t.Logf("with both it has crashed: %v", crashed)
	if old := !n.since("1.42"); crashed != old {
		t.Errorf("crashed: %v, want %v", crashed, old)
	}

	e = n.extraEngine(`{"default-runtime": "clamp", "runtimes": {"clamp": {"path": "/usr/sbin/runc"}}}`)
	n.put(e.config, "{}", 0o644) // by the operator, who has not restarted Docker yet
	e.refused("install", `the default runtime "clamp" of Docker `, "is not among the runtimes in "+e.config)
	// dockerd does not start with an unknown key, nor does it read the rest of the file.
	n.put(e.config, `{"default-runtime": "clamp", "runtimes": {"clamp": {"path": "/usr/sbin/runc"}}, "no-such-option": true}`, 0o644)
	e.refused("install", "docker has not read its configuration within 30s after SIGHUP", e.config+" is as before")
	if _, err := e.docker.Info(t.Context()); err != nil {
		t.Errorf("it does not answer any more: %v", err)
	}
}
