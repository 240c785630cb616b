package live

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/pkg/stdcopy"
	"golang.org/x/sys/unix"

	"berth/core/ociedit"
)

// podMapping is a user namespace as the kubelet gives it to a pod.
var podMapping = []ociedit.IDMapping{{HostID: 200000, Size: 65536}}

// An ociNode is an Engine with the runtime berth-oci, which is used through the Engine's API alone: no berthd runs.
type ociNode struct {
	*node
	before map[string]int // mounts
}

// newOCINode registers berth-oci as the runtime "berth". wrap returns the entry of daemon.json for the program and its arguments.
func newOCINode(t *testing.T, wrap func(n *node, program string, args []string) map[string]any) *ociNode {
	t.Helper()
	n := prepareNode(t)
	program := n.ociProgram()
	n.register("berth", func(runc string) map[string]any {
		return wrap(n, program, []string{"--berth-instructions", n.path("oci"), "--berth-runtime", runc})
	})
	return &ociNode{node: n, before: n.mounts()}
}

// ociProgram returns the path of the berth-oci to test.
func (n *node) ociProgram() string {
	n.t.Helper()
	if *ociPath != "" {
		return *ociPath
	}
	program := n.path("berth-oci")
	build := exec.CommandContext(n.t.Context(), "go", "build", "-o", program, "berth/cmd/berth-oci")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		n.t.Fatalf("build berth-oci: %v\n%s", err, out)
	}
	return program
}

func plainEntry(_ *node, program string, args []string) map[string]any {
	return map[string]any{"path": program, "runtimeArgs": args}
}

// mounts counts the mount points that dockerd and this process have.
func (n *node) mounts() map[string]int {
	n.t.Helper()
	count := map[string]int{}
	for _, pid := range []string{"self", strconv.Itoa(n.enginePID())} {
		text, err := os.ReadFile("/proc/" + pid + "/mountinfo")
		if err != nil {
			n.t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if path := strings.Fields(line)[4]; !strings.HasSuffix(path, "/netns/default") { // of Docker, for the host's network
				count[path]++
			}
		}
	}
	return count
}

// create creates a container of the runtime.
func (o *ociNode) create(config container.Config, host container.HostConfig) string {
	o.t.Helper()
	host.Runtime = "berth"
	if config.Image == "" {
		config.Image = *image
	}
	if config.Cmd == nil {
		config.Cmd = []string{"sleep", "1000"}
	}
	c, err := o.docker.ContainerCreate(o.t.Context(), &config, &host, nil, nil, "")
	if err != nil {
		o.t.Fatal(err)
	}
	return c.ID
}

// start writes the instructions and starts the container.
func (o *ociNode) start(id string, i ociedit.Instructions) {
	o.t.Helper()
	o.write(id, i)
	if err := o.docker.ContainerStart(o.t.Context(), id, container.StartOptions{}); err != nil {
		o.t.Fatal(err)
	}
}

func (o *ociNode) write(id string, i ociedit.Instructions) {
	o.t.Helper()
	i.ContainerID = id
	if err := ociedit.Write(o.path("oci"), i); err != nil {
		o.t.Fatal(err)
	}
}

func (o *ociNode) pid(id string) int {
	o.t.Helper()
	c, err := o.docker.ContainerInspect(o.t.Context(), id)
	if err != nil {
		o.t.Fatal(err)
	}
	return c.State.Pid
}

// sandbox returns instructions for containers of the pod of a pause container.
func (o *ociNode) sandbox(pause string) ociedit.Instructions {
	o.t.Helper()
	p, err := ociedit.FindProcess(o.pid(pause))
	if err != nil {
		o.t.Fatal(err)
	}
	return ociedit.Instructions{Sandbox: &p, UserNamespace: podNamespace()}
}

func podNamespace() *ociedit.UserNamespace {
	return &ociedit.UserNamespace{UIDMappings: podMapping, GIDMappings: podMapping, IDMapOthers: true}
}

// shell runs a command with "docker exec" and returns its output, and its exit code if that is not 0.
func (o *ociNode) shell(id, command string) string {
	o.t.Helper()
	ctx := o.t.Context()
	e, err := o.docker.ContainerExecCreate(ctx, id, container.ExecOptions{Cmd: []string{"sh", "-c", command}, AttachStdout: true, AttachStderr: true})
	if err != nil {
		o.t.Fatal(err)
	}
	stream, err := o.docker.ContainerExecAttach(ctx, e.ID, container.ExecAttachOptions{})
	if err != nil {
		o.t.Fatal(err)
	}
	defer stream.Close()
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &out, stream.Reader); err != nil {
		o.t.Fatal(err)
	}
	result, err := o.docker.ContainerExecInspect(ctx, e.ID)
	if err != nil {
		o.t.Fatal(err)
	}
	if result.ExitCode != 0 {
		fmt.Fprintf(&out, "exit code %d", result.ExitCode)
	}
	return strings.TrimSpace(out.String())
}

// want runs commands in a container and compares what they print.
func (o *ociNode) want(id string, commands map[string]string) {
	o.t.Helper()
	for _, command := range slices.Sorted(maps.Keys(commands)) {
		if got := strings.Join(strings.Fields(o.shell(id, command)), " "); got != commands[command] {
			o.t.Errorf("%s: got %q, want %q", command, got, commands[command])
		}
	}
}

// removeAll removes the containers and checks that no mount is left.
func (o *ociNode) removeAll(ids ...string) {
	o.t.Helper()
	for _, id := range ids {
		if err := o.docker.ContainerRemove(o.t.Context(), id, container.RemoveOptions{Force: true, RemoveVolumes: true}); err != nil {
			o.t.Error(err)
		}
	}
	if after := o.mounts(); !maps.Equal(o.before, after) {
		maps.DeleteFunc(after, func(path string, count int) bool { return o.before[path] == count })
		o.t.Errorf("mounts that are left or gone: %v", after)
	}
}

// ownedImage builds an image whose files have owners, and a volume.
func (o *ociNode) ownedImage() string {
	o.t.Helper()
	ctx := o.t.Context()
	c, err := o.docker.ContainerCreate(ctx, &container.Config{Image: *image, Cmd: []string{"sh", "-c", `
		mkdir -p /data /lower/sub /anonymous && touch /etc/web /etc/gone /lower/sub/file /anonymous/file &&
		chown 33:34 /etc/web /anonymous/file && cp /bin/busybox /etc/suid && chmod 4755 /etc/suid`}},
		&container.HostConfig{NetworkMode: "none"}, nil, nil, "")
	if err != nil {
		o.t.Fatal(err)
	}
	done, failed := o.docker.ContainerWait(ctx, c.ID, container.WaitConditionNextExit)
	if err := o.docker.ContainerStart(ctx, c.ID, container.StartOptions{}); err != nil {
		o.t.Fatal(err)
	}
	select {
	case r := <-done:
		if r.StatusCode != 0 {
			o.t.Fatal("the image cannot be made: exit code", r.StatusCode)
		}
	case err := <-failed:
		o.t.Fatal(err)
	}
	const name = "berth-owned:1"
	if _, err := o.docker.ContainerCommit(ctx, c.ID, container.CommitOptions{Reference: name, Changes: []string{"VOLUME /anonymous", "WORKDIR /work"}}); err != nil {
		o.t.Fatal(err)
	}
	if err := o.docker.ContainerRemove(ctx, c.ID, container.RemoveOptions{}); err != nil {
		o.t.Fatal(err)
	}
	return name
}

// TestOCIRuntimeGivesPodsUserNamespaces runs a pod in a user namespace, by the Engine's API and instructions alone.
func TestOCIRuntimeGivesPodsUserNamespaces(t *testing.T) {
	o := newOCINode(t, plainEntry)
	image := o.ownedImage()
	o.before = o.mounts()

	pause := o.create(container.Config{Hostname: "pod"}, container.HostConfig{NetworkMode: "none", IpcMode: "shareable"})
	err := o.docker.ContainerStart(t.Context(), pause, container.StartOptions{})
	if err == nil || !strings.Contains(err.Error(), "has no instructions of berthd in "+o.path("oci")) {
		t.Fatalf("a container without instructions: %v", err)
	}
	o.start(pause, ociedit.Instructions{UserNamespace: podNamespace()})

	volume, plain := o.path("volume"), o.path("plain")
	for _, dir := range []string{volume, plain} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := o.create(container.Config{Image: image}, container.HostConfig{
		NetworkMode: container.NetworkMode("container:" + pause), IpcMode: container.IpcMode("container:" + pause), PidMode: container.PidMode("container:" + pause),
		Mounts: []mount.Mount{
			{Type: mount.TypeBind, Source: volume, Target: "/data", BindOptions: &mount.BindOptions{Propagation: mount.PropagationRSlave}},
			{Type: mount.TypeBind, Source: volume, Target: "/ro", ReadOnly: true},
			{Type: mount.TypeBind, Source: plain, Target: "/plain"},
			{Type: mount.TypeTmpfs, Target: "/tmpfs"},
		},
	})
	i := o.sandbox(pause)
	i.UserNamespace.Mounts = []ociedit.MountMapping{{Destination: "/plain"}}
	i.JoinNamespaces = []string{"uts"}
	o.start(c, i)

	o.checkNamespaces(pause, c)
	o.want(c, map[string]string{
		"cat /proc/self/uid_map": "0 200000 65536",
		"id -u":                  "0",
		"hostname":               "pod",
		"stat -c '%u:%g %a' /etc/web /etc/suid / /work /anonymous/file /etc/hosts /dev/shm": "33:34 644 0:0 4755 0:0 755 0:0 755 33:34 644 0:0 644 0:0 1777",
		"echo new >> /etc/web && stat -c %u:%g /etc/web":                                    "33:34",
		"mv /lower /renamed && stat -c %u /renamed/sub/file":                                "0",
		"rm /etc/gone; ls /etc/gone 2>/dev/null":                                            "exit code 1",
		"touch /etc/mine && chown 65535 /etc/mine && stat -c %u /etc/mine":                  "65535",
		"chown 70000 /etc/web 2>/dev/null":                                                  "exit code 1",
		"stat -c %u /data/file && echo x > /data/new && stat -c %u /data/new":               "0 0",
		"stat -c %u /plain/file; touch /plain/file 2>/dev/null":                             "65534 exit code 1",
		"touch /ro/file 2>/dev/null":                                                        "exit code 1",
		"mount -t tmpfs none /renamed 2>/dev/null":                                          "exit code 1",
		"touch /tmpfs/a && stat -c %u /tmpfs/a":                                             "0",
		"cat /proc/sys/net/ipv4/ping_group_range":                                           "0 65535",
		"cat /proc/sysrq-trigger 2>/dev/null":                                               "exit code 1",
	})
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(volume, "new"), &st); err != nil || st.Uid != 0 {
		t.Errorf("a file of the volume belongs to %d on the host, %v, want root", st.Uid, err)
	}
	o.checkCopy(c)
	changes, err := o.docker.ContainerDiff(t.Context(), c)
	if err != nil || !slices.ContainsFunc(changes, func(c container.FilesystemChange) bool { return c.Path == "/etc/mine" }) {
		t.Errorf("diff: %v, %v", changes, err)
	}
	after := map[string]string{"stat -c '%u:%g' /etc/web /etc/suid /etc/mine /etc/copied /renamed/sub/file": "33:34 0:0 65535:0 65534:65534 0:0", "cat /etc/web": "new", "cat /proc/self/uid_map": "0 200000 65536"}
	zero := 0
	if err := o.docker.ContainerRestart(t.Context(), c, container.StopOptions{Timeout: &zero}); err != nil {
		t.Fatal(err)
	}
	o.want(c, after)
	if err := o.docker.ContainerStop(t.Context(), c, container.StopOptions{Timeout: &zero}); err != nil {
		t.Fatal(err)
	}
	o.start(c, i)
	o.want(c, after)
	o.removeAll(c, pause)
}

// checkNamespaces compares what the host sees of the user namespaces of two containers.
func (o *ociNode) checkNamespaces(pause, c string) {
	o.t.Helper()
	namespace := func(pid string) string {
		o.t.Helper()
		target, err := os.Readlink("/proc/" + pid + "/ns/user")
		if err != nil {
			o.t.Fatal(err)
		}
		return target
	}
	ofPause, ofContainer := strconv.Itoa(o.pid(pause)), strconv.Itoa(o.pid(c))
	if a, b := namespace(ofPause), namespace(ofContainer); a != b || a == namespace("self") {
		o.t.Errorf("user namespaces: pause %s, container %s, host %s", a, b, namespace("self"))
	}
	for _, pid := range []string{ofPause, ofContainer} {
		status, err := os.ReadFile("/proc/" + pid + "/status")
		if err != nil || !strings.Contains(string(status), "\nUid:\t200000\t200000\t200000\t200000\n") {
			o.t.Errorf("process %s is not user 200000 on the host: %v", pid, err)
		}
	}
}

// checkCopy copies a file into the container and back.
func (o *ociNode) checkCopy(c string) {
	o.t.Helper()
	ctx := o.t.Context()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	_ = w.WriteHeader(&tar.Header{Name: "copied", Mode: 0o644, Size: 4})
	_, _ = w.Write([]byte("text"))
	_ = w.Close()
	if err := o.docker.CopyToContainer(ctx, c, "/etc", &archive, container.CopyToContainerOptions{}); err != nil {
		o.t.Error("docker cp into the container:", err)
	}
	o.want(c, map[string]string{"cat /etc/copied": "text", "stat -c %u:%g /etc/copied": "65534:65534"})
	back, _, err := o.docker.CopyFromContainer(ctx, c, "/etc/web")
	if err != nil {
		o.t.Error("docker cp out of the container:", err)
		return
	}
	defer back.Close()
	r := tar.NewReader(back)
	if _, err := r.Next(); err != nil {
		o.t.Error(err)
	}
	if text, err := io.ReadAll(r); err != nil || string(text) != "new\n" {
		o.t.Errorf("copied out: %q, %v", text, err)
	}
}

// TestOCIRuntimeWithTheHostsNetwork runs containers in a user namespace that have the host's network, all capabilities, a terminal.
func TestOCIRuntimeWithTheHostsNetwork(t *testing.T) {
	o := newOCINode(t, plainEntry)
	pause := o.create(container.Config{Tty: true}, container.HostConfig{NetworkMode: "host", IpcMode: "shareable"})
	o.start(pause, ociedit.Instructions{UserNamespace: podNamespace()})
	c := o.create(container.Config{}, container.HostConfig{NetworkMode: container.NetworkMode("container:" + pause), IpcMode: container.IpcMode("container:" + pause), Privileged: true})
	o.start(c, o.sandbox(pause))
	o.checkNamespaces(pause, c)
	for _, id := range []string{pause, c} {
		o.want(id, map[string]string{
			"cat /proc/self/uid_map":                              "0 200000 65536",
			"ls -d /sys/class/net/lo":                             "/sys/class/net/lo",
			"touch /sys/kernel/uevent 2>/dev/null":                "exit code 1",
			"ip link set lo mtu 1500 2>/dev/null || echo refused": "refused", // it belongs to the host
		})
	}
	o.want(pause, map[string]string{"ls -l /proc/1/fd/0 | sed 's/.*-> //'": "/dev/pts/0"})
	o.removeAll(c, pause)
}

// TestOCIRuntimeRefusesMountsThatCannotBeMapped names the mount and its file system.
func TestOCIRuntimeRefusesMountsThatCannotBeMapped(t *testing.T) {
	o := newOCINode(t, plainEntry)
	c := o.create(container.Config{}, container.HostConfig{NetworkMode: "none", Binds: []string{"/proc/sys:/settings"}})
	o.write(c, ociedit.Instructions{UserNamespace: podNamespace()})
	err := o.docker.ContainerStart(t.Context(), c, container.StartOptions{})
	if err == nil || !strings.Contains(err.Error(), "mount /settings: /proc/sys cannot be id-mapped: the kernel refuses it for proc at /proc") {
		t.Errorf("got %v", err)
	}
	o.removeAll(c)
}

// TestOCIRuntimeKilledWhileItCreates kills the runtime at several moments. The next start must succeed, and nothing may be left.
func TestOCIRuntimeKilledWhileItCreates(t *testing.T) {
	var delay string // a file
	o := newOCINode(t, func(n *node, program string, args []string) map[string]any {
		delay = n.path("delay")
		script := fmt.Sprintf("#!/bin/sh\ncase \" $* \" in *' create '*) ;; *) exec %[1]s \"$@\" ;; esac\n[ -s %[2]s ] || exec %[1]s \"$@\"\n"+
			"%[1]s \"$@\" &\nsleep \"$(cat %[2]s)\"\nkill -9 $!\nwait $!\n", program+" "+strings.Join(args, " "), delay)
		path := n.path("killer")
		if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		return map[string]any{"path": path}
	})
	image := o.ownedImage()
	o.before = o.mounts()
	killed := 0
	for _, seconds := range []string{"0", "0.002", "0.005", "0.01", "0.02", "0.03", "0.05"} {
		if err := os.WriteFile(delay, []byte(seconds), 0o600); err != nil {
			t.Fatal(err)
		}
		c := o.create(container.Config{Image: image}, container.HostConfig{NetworkMode: "none"})
		o.write(c, ociedit.Instructions{UserNamespace: podNamespace()})
		if o.docker.ContainerStart(t.Context(), c, container.StartOptions{}) != nil {
			killed++
			if err := os.Truncate(delay, 0); err != nil {
				t.Fatal(err)
			}
			if err := o.docker.ContainerStart(t.Context(), c, container.StartOptions{}); err != nil {
				t.Errorf("start after a kill at %s s: %v", seconds, err)
			}
		}
		o.want(c, map[string]string{"stat -c %u:%g /etc/web /work /etc": "33:34 0:0 0:0"})
		o.removeAll(c)
	}
	if killed == 0 {
		t.Error("no start was interrupted")
	}
}

// TestOCIRuntimeEditsContainers checks the edits that need no user namespace.
func TestOCIRuntimeEditsContainers(t *testing.T) {
	o := newOCINode(t, plainEntry)
	hook, volume := o.path("hook"), o.path("volume")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\ncat > "+o.path("state")+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(volume, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(volume, 0o777); err != nil {
		t.Fatal(err)
	}
	uid := uint32(1000)
	c := o.create(container.Config{User: "1000:1000"}, container.HostConfig{
		NetworkMode: "none", Binds: []string{volume + ":/data"},
		Resources: container.Resources{Devices: []container.DeviceMapping{{PathOnHost: "/dev/zero", PathInContainer: "/dev/mine", CgroupPermissions: "r"}}},
	})
	o.start(c, ociedit.Instructions{
		Hooks:               &ociedit.Hooks{CreateRuntime: []ociedit.Hook{{Path: hook, Args: []string{hook}}}},
		Devices:             []ociedit.Device{{Path: "/dev/added", Type: "c", Major: 1, Minor: 3, Access: "rwm"}},
		DeviceOwner:         &ociedit.Owner{UID: &uid, GID: &uid, Paths: []string{"/dev"}},
		Rlimits:             []ociedit.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 78}},
		MountOptions:        []ociedit.MountOptions{{Destination: "/data", Options: []string{"noexec"}}},
		AmbientCapabilities: []string{"CAP_NET_BIND_SERVICE"},
	})
	o.want(c, map[string]string{
		"stat -c %u:%g /dev/mine /dev/added":                              "1000:1000 1000:1000",
		"echo x > /dev/added":                                             "",
		"sed -n 's/^Max open files *//p' /proc/1/limits":                  "77 78 files",
		"cp /bin/busybox /data/busybox && /data/busybox true 2>/dev/null": "exit code 126",
		"grep -h CapAmb /proc/1/status /proc/self/status":                 "CapAmb: 0000000000000400 CapAmb: 0000000000000400",
	})
	if state, err := os.ReadFile(o.path("state")); err != nil || !strings.Contains(string(state), c) {
		t.Errorf("the hook got %q, %v", state, err)
	}
	o.removeAll(c)
}
