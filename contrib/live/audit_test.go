package live

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// anID matches the ID of a container or a sandbox.
var anID = regexp.MustCompile(`[0-9a-f]{64}`)

// faultParent is the cgroup of all pods of this run: another run on the same machine has its own.
var faultParent = fmt.Sprintf("kubepodsfaults%d", time.Now().UnixNano()%1e9)

func (n *node) faultCgroup(pod string) string {
	if n.systemd {
		return faultParent + "-" + strings.ReplaceAll(pod, "-", "_") + ".slice"
	}
	return "/" + faultParent + "/pod-" + pod
}

// flagsForAudit returns flags with which the daemon serves its goroutines, and the address.
func flagsForAudit(t testing.TB) (addr string, flags []string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr = l.Addr().String()
	return addr, []string{"--metrics-bind-addr", addr, "--profiling"}
}

// usage is the daemon's resource usage.
type usage struct {
	fds, goroutines int
	rss             int // MiB
}

func (u usage) String() string {
	return fmt.Sprintf("%d fds, %d goroutines, RSS %d MiB", u.fds, u.goroutines, u.rss)
}

func (n *node) usage() (u usage, err error) {
	text, err := n.scrape()
	if err != nil {
		return u, err
	}
	number := func(name string) int {
		_, rest, _ := strings.Cut(text, "\n"+name+" ")
		value, _, _ := strings.Cut(rest, "\n")
		f, _ := strconv.ParseFloat(value, 64)
		return int(f)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.cmd.Process.Pid))
	return usage{len(fds), number("go_goroutines"), number("process_resident_memory_bytes") >> 20}, err
}

// stacks returns the goroutines of the daemon, the most frequent first.
func (n *node) stacks() string {
	out, err := exec.Command("curl", "-sS", "-m", "10", "http://"+n.metrics+"/debug/pprof/goroutine?debug=1").CombinedOutput()
	if err != nil {
		return err.Error()
	}
	return string(out[:min(len(out), 6000)])
}

// descriptors counts what the daemon has open, by kind.
func (n *node) descriptors() string {
	dir := fmt.Sprintf("/proc/%d/fd", n.cmd.Process.Pid)
	kinds := map[string]int{}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		to, _ := os.Readlink(filepath.Join(dir, e.Name()))
		to, _, _ = strings.Cut(strings.Replace(to, n.dir, "", 1), "[")
		kinds[anID.ReplaceAllString(to, "ID")]++
	}
	return fmt.Sprint(kinds)
}

// audit compares Docker, berthd and the node, and returns a line for each difference. No call may be running. Differences that
// end within ten seconds do not count.
func (n *node) audit(ch *churn) []string {
	var lines []string
	for range 50 {
		if lines = n.auditOnce(ch); len(lines) == 0 {
			return nil
		}
		time.Sleep(200 * time.Millisecond)
	}
	return lines
}

func (n *node) auditOnce(ch *churn) (lines []string) {
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	n.strays = nil
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	// Docker and berthd's lists.
	ps, err := n.docker.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return []string{"docker ps: " + err.Error()}
	}
	docker, running := map[string]string{}, map[string]bool{}
	for _, c := range ps {
		docker[c.ID] = c.State
		running[c.ID] = c.State == "running"
	}
	pods, err := n.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return []string{"ListPodSandbox: " + err.Error()}
	}
	containers, err := n.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return []string{"ListContainers: " + err.Error()}
	}
	listed := map[string]string{}
	ready, sandboxes := map[string]bool{}, map[string]bool{}
	for _, s := range pods.GetItems() {
		sandboxes[s.GetId()] = true
		listed[s.GetId()] = "not running"
		if s.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY {
			ready[s.GetId()] = true
			listed[s.GetId()] = "running"
		}
	}
	known := maps.Clone(sandboxes)
	for _, c := range containers.GetContainers() {
		known[c.GetId()] = true
		listed[c.GetId()] = strings.ToLower(strings.TrimPrefix(c.GetState().String(), "CONTAINER_"))
		if !sandboxes[c.GetPodSandboxId()] {
			say("container %s is listed, its sandbox %s is not", c.GetId(), c.GetPodSandboxId())
		}
	}
	stopping := maps.Clone(sandboxes) // their stop was requested, and may have failed after the network was released
	if ch == nil {
		clear(stopping)
	} else {
		ch.mu.Lock()
		for _, p := range ch.pods {
			delete(stopping, p.sandbox)
		}
		ch.mu.Unlock()
	}
	for id, state := range docker {
		switch is := listed[id]; {
		case is == "not running" && stopping[id]:
		case is == "":
			say("docker ps has container %s (%s), berthd does not list it", id, state)
		case is == state, is == "not running" && state != "running", is == "exited" && state == "created": // a failed start
		default:
			say("container %s is %s for docker ps, %s for berthd", id, state, is)
		}
	}
	for id, state := range listed {
		if docker[id] == "" {
			say("berthd lists %s (%s), docker ps does not", id, state)
		}
	}
	// What berthd has reported to clients.
	if ch != nil {
		ch.mu.Lock()
		for name, p := range ch.pods {
			if p.sandbox != "" && !ready[p.sandbox] {
				say("pod %s: sandbox %s was reported ready, it is %q, for Docker %q", name, p.sandbox, listed[p.sandbox], docker[p.sandbox])
			}
			if p.container != "" && listed[p.container] != "running" {
				say("pod %s: container %s was reported running, it is %q, for Docker %q", name, p.container, listed[p.container], docker[p.container])
			}
			for _, id := range p.old {
				if docker[id] != "" || listed[id] != "" {
					say("pod %s: sandbox %s was reported removed, docker ps: %q, berthd: %q", name, id, docker[id], listed[id])
				}
			}
		}
		ch.mu.Unlock()
	}
	// Files, by the sandbox or container that they name. There must be one for each ID in wanted.
	files := func(what, pattern string, allowed, wanted map[string]bool) {
		found, _ := filepath.Glob(pattern)
		have := map[string]bool{}
		for _, path := range found {
			id := anID.FindString(strings.TrimPrefix(path, n.dir))
			if strings.Contains(what, "address") {
				text, err := os.ReadFile(path)
				if err != nil {
					continue
				}
				id = anID.FindString(string(text))
			}
			have[id] = true
			if !allowed[id] {
				say("%s is left: %s (%s)", what, strings.TrimPrefix(path, n.dir), id)
			}
		}
		for id := range wanted {
			if !have[id] {
				say("%s is missing for sandbox %s", what, id)
			}
		}
	}
	files("a network namespace", n.path("run", "netns", "*"), ready, ready)
	files("an address", n.path("ipam", "live", "*.*.*.*"), ready, ready)
	files("an address (IPv6)", n.path("ipam", "live", "*:*"), ready, ready)
	files("a CNI result in the cache", n.path("cache", "results", "*"), ready, ready)
	files("a directory of a pod", n.path("run", "pods", "*"), sandboxes, ready)
	files("an instruction for the OCI runtime", n.path("run", "oci", "*"), known, nil)
	files("a checkpoint", n.path("root", "sandbox", "*"), sandboxes, ready)
	files("an intent", n.path("root", "berth", "v1", "sandboxes", "*"), nil, nil)
	for _, bucket := range []string{"failed-starts", "updates", "sandbox-updates", "logs", "oom"} {
		files("a record ("+bucket+")", n.path("root", "berth", "v1", bucket, "*"), known, nil)
	}
	// Mounts.
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	for line := range strings.Lines(string(mounts)) {
		path := strings.Fields(line)[4]
		if !strings.HasPrefix(path, n.path("run")+"/") || path == n.path("run", "netns") {
			continue
		}
		if id := anID.FindString(path); !sandboxes[id] {
			say("a mount is left: %s", strings.TrimPrefix(path, n.dir))
		}
	}
	// Links: one for each pod, on the bridge.
	out, err := exec.Command("ip", "-j", "link", "show", "type", "veth").Output()
	var links []struct{ Ifname, Master string }
	if err == nil && len(bytes.TrimSpace(out)) > 0 {
		err = json.Unmarshal(out, &links)
	}
	if err != nil {
		say("ip link: %v", err)
	}
	if len(links) != len(ready) {
		say("%d links %v for %d ready sandboxes", len(links), links, len(ready))
	}
	for _, l := range links {
		if l.Master != "live0" {
			say("link %s is on no bridge (%q)", l.Ifname, l.Master)
		}
	}
	// cgroups, and the processes in them.
	groups := map[string]string{}
	tops, _ := filepath.Glob("/sys/fs/cgroup/" + faultParent + "*")
	more, _ := filepath.Glob("/sys/fs/cgroup/*/" + faultParent + "*")
	for _, top := range append(tops, more...) {
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				if id := anID.FindString(d.Name()); id != "" {
					groups[id] = path
				}
			}
			return nil
		})
	}
	for id, path := range groups {
		if running[id] {
			continue
		}
		var processes []string
		pids, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for pid := range strings.FieldsSeq(string(pids)) {
			line, _ := os.ReadFile("/proc/" + pid + "/cmdline")
			processes = append(processes, pid+" "+string(bytes.ReplaceAll(line, []byte{0}, []byte(" "))))
		}
		if docker[id] == "" {
			n.strays = append(n.strays, stray{path, 0})
		}
		say("a cgroup is left: %s of a container that is %q for Docker, with processes %q", path, docker[id], processes)
	}
	for id := range running {
		if running[id] && groups[id] == "" {
			say("container %s runs and has no cgroup below %s", id, faultParent)
		}
	}
	// Shims.
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range all {
		text, err := os.ReadFile(path)
		if err != nil || !bytes.HasPrefix(text, []byte("/")) && !bytes.HasPrefix(text, []byte("containerd-shim")) || !bytes.Contains(text[:min(len(text), 100)], []byte("containerd-shim")) {
			continue
		}
		// A shim has the ID of the first of its containers, which may have been removed before the others.
		if id := anID.FindString(string(text)); id != "" && !running[id] && !n.serves(strings.Split(path, "/")[2], running) {
			if docker[id] == "" {
				pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
				n.strays = append(n.strays, stray{"", pid})
			}
			say("a shim runs for container %s, which is %q for Docker", id, docker[id])
		}
	}
	slices.Sort(lines)
	return lines
}

// A stray is a cgroup or a shim of a container that Docker does not have.
type stray struct {
	cgroup string
	shim   int
}

// withoutForgotten returns the lines of an audit without those about strays, and ends the strays. A dockerd that ends or loses its
// containerd during a start forgets the container: 20.10 left "runc init" in the cgroup or, once, the process of the
// pod. Or the next dockerd reports what was just started as "exited".
func (n *node) withoutForgotten(lines []string) (left []string, count int) {
	for _, line := range lines {
		// It may keep the container as "created" while its process runs, see "dockerd killed" in open.md.
		created := strings.HasSuffix(line, `"created" for Docker`) || strings.HasPrefix(line, "a cgroup is left: ") && strings.Contains(line, ` is "created" for Docker`)
		if strings.Contains(line, `"" for Docker`) || strings.HasSuffix(line, `, for Docker "exited"`) || created {
			count++
		} else {
			left = append(left, line)
		}
	}
	for _, s := range n.strays {
		if s.shim != 0 {
			_ = syscall.Kill(s.shim, syscall.SIGKILL)
			continue
		}
		pids, _ := os.ReadFile(filepath.Join(s.cgroup, "cgroup.procs"))
		for pid := range strings.FieldsSeq(string(pids)) {
			number, _ := strconv.Atoi(pid)
			_ = syscall.Kill(number, syscall.SIGKILL)
		}
		name := filepath.Base(s.cgroup)
		end := time.Now().Add(2 * time.Second)
		for _, top := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			found, _ := filepath.Glob(filepath.Join(top, faultParent+"*", "*", name))
			for _, dir := range found {
				for os.Remove(dir) != nil && time.Now().Before(end) {
					time.Sleep(20 * time.Millisecond)
				}
			}
		}
	}
	n.strays = nil
	return left, count
}

// waitStable waits until the daemon uses about as much as before, and returns a line if it does not within limit.
func (n *node) waitStable(before usage, limit time.Duration) []string {
	var now usage
	var err error
	for end := time.Now().Add(limit); ; time.Sleep(250 * time.Millisecond) {
		now, err = n.usage()
		// Idle connections to Docker are kept, with two goroutines each.
		if err == nil && now.fds <= before.fds+8 && now.goroutines <= before.goroutines+16 {
			return nil
		}
		if time.Now().After(end) {
			break
		}
	}
	if err != nil {
		return []string{"usage of berthd: " + err.Error()}
	}
	return []string{fmt.Sprintf("berthd has %v, before %v; open: %s; goroutines:\n%s", now, before, n.descriptors(), n.stacks())}
}
