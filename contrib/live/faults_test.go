package live

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var faultTests = flag.Bool("faults", false, "run TestFaults, which needs an Engine that is started again when it ends (contrib/e2e/faults.sh)")

// TestFaults breaks what berthd depends on, one way in each subtest, while pods are run as a kubelet runs them, and audits the
// node afterwards.
func TestFaults(t *testing.T) {
	if !*faultTests {
		t.Skip("takes ten minutes: make test-faults")
	}
	for _, group := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"audit", testAuditFindsWhatIsPlanted},
		{"berthd", testFaultsOfBerthd},
		{"Docker", testFaultsOfDocker},
		{"hanging Docker", testNoProbeTimesOutWhileDockerHangs},
		{"slow Docker", testSlowDocker},
		{"endpoints", testFaultsOfEndpoints},
		{"random endpoints", testRandomFaults},
		{"events", testFaultsOfEvents},
		{"plugins", testFaultsOfPlugins},
		{"kill -9 while a plugin works", testKillsWhilePluginWorks},
		{"few addresses", testFewAddresses},
		{"network configuration", testConfigurationComesAndGoes},
		{"disks", testFaultsOfDisks},
		{"few descriptors", testFewDescriptors},
		{"logs", testOddLogs},
		{"clients", testFaultsOfClients},
		{"user namespaces", testFaultsOfUserNamespaces},
	} {
		t.Run(group.name, group.run)
	}
}

// A trial is a node under faults.
type trial struct {
	*node
	ch     *churn
	before usage

	dockerForgets bool // Docker may forget containers that it was starting, see withoutForgotten
	forgotten     int  // how many it has forgotten
}

// newTrial starts a node and runs one pod without a fault.
func newTrial(t *testing.T, misbehaving bool, flags ...string) *trial {
	t.Helper()
	tr := prepareTrial(t, misbehaving, flags...)
	tr.begin(t)
	return tr
}

// prepareTrial is newTrial without starting berthd.
func prepareTrial(t *testing.T, misbehaving bool, flags ...string) *trial {
	t.Helper()
	addr, more := flagsForAudit(t)
	n := prepareNode(t, append(more, flags...)...)
	if misbehaving {
		n.installFaultyPlugin()
	}
	n.metrics = addr
	n.systemd = n.info().CgroupDriver == "systemd"
	return &trial{node: n, ch: newChurn(n, 20*time.Second)}
}

// begin starts berthd and runs one pod.
func (tr *trial) begin(t *testing.T) {
	t.Helper()
	tr.start()
	tr.ch.runPod("warm", 4)
	tr.check(t, "after one pod")
	var err error
	if tr.before, err = tr.usage(); err != nil {
		t.Fatal(err)
	}
}

// check audits the node while no call is running.
func (tr *trial) check(t *testing.T, when string) {
	t.Helper()
	tr.ch.quiet.Lock()
	defer tr.ch.quiet.Unlock()
	lines := append(tr.ch.faults(), tr.audit(tr.ch)...)
	if tr.dockerForgets {
		var n int
		lines, n = tr.withoutForgotten(lines)
		tr.forgotten += n
	}
	tr.report(t, when, lines)
}

func (tr *trial) report(t *testing.T, when string, lines []string) {
	t.Helper()
	for _, line := range lines {
		t.Errorf("%s: %s", when, line)
	}
}

// finish audits a node without pods, and the usage of berthd.
func (tr *trial) finish(t *testing.T) {
	t.Helper()
	tr.check(t, "at the end")
	if left := tr.leftovers(); len(left) > 0 {
		tr.report(t, "left behind", left)
	}
	tr.report(t, "at the end", tr.waitStable(tr.before, 45*time.Second))
	now, err := tr.usage()
	if err != nil {
		t.Error(err)
	}
	t.Logf("%s; now %v, before %v; Docker has forgotten %d containers", tr.ch.summary(), now, tr.before, tr.forgotten)
}

// under runs pods for d while do is called repeatedly, and for three seconds more.
func (tr *trial) under(t *testing.T, workers int, d time.Duration, do func(end time.Time)) {
	t.Helper()
	tr.ch.pace = 200 * time.Millisecond
	tr.ch.setFaulty(true)
	end := time.Now().Add(d)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tr.ch.run(workers, d+3*time.Second, 8)
	}()
	for time.Now().Before(end) {
		do(end)
	}
	tr.ch.setFaulty(false)
	<-done
	tr.finish(t)
}

// testAuditFindsWhatIsPlanted shows that the audit finds each kind of leftover.
func testAuditFindsWhatIsPlanted(t *testing.T) {
	tr := newTrial(t, false)
	sandbox, _, err := tr.whole(tr.pod("planted"))
	if err != nil {
		t.Fatal(err)
	}
	stranger := strings.Repeat("0123456789abcdef", 4)
	file := func(elem ...string) func() error {
		return func() error {
			path := tr.path(elem...)
			return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(stranger), 0o600))
		}
	}
	drop := func(elem ...string) func() error { return func() error { return os.Remove(tr.path(elem...)) } }
	group := faultParent
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		group = "memory/" + group
	}
	group = filepath.Join("/sys/fs/cgroup", group, "pod-planted", stranger)
	mount := tr.path("run", "pods", stranger)
	for _, p := range []struct {
		want        string
		plant, away func() error
	}{
		{"a network namespace is left", file("run", "netns", "berth-"+stranger), drop("run", "netns", "berth-"+stranger)},
		{"an address is left", file("ipam", "live", "10.87.200.1"), drop("ipam", "live", "10.87.200.1")},
		{"an address (IPv6) is left", file("ipam", "live", "fd87::200:1"), drop("ipam", "live", "fd87::200:1")},
		{"a CNI result in the cache is left", file("cache", "results", "live-"+stranger+"-eth0"), drop("cache", "results", "live-"+stranger+"-eth0")},
		{"a checkpoint is left", file("root", "sandbox", stranger), drop("root", "sandbox", stranger)},
		{"an intent is left", file("root", "berth", "v1", "sandboxes", "planted"), drop("root", "berth", "v1", "sandboxes", "planted")},
		{"a record (failed-starts) is left", file("root", "berth", "v1", "failed-starts", stranger), drop("root", "berth", "v1", "failed-starts", stranger)},
		{"a cgroup is left", func() error { return os.MkdirAll(group, 0o755) }, func() error { return os.Remove(group) }},
		{"a mount is left", func() error {
			return errors.Join(os.Mkdir(mount, 0o755), unix.Mount("planted", mount, "tmpfs", 0, ""))
		}, func() error { return errors.Join(unix.Unmount(mount, 0), os.Remove(mount)) }},
		{"links", func() error {
			return exec.Command("ip", "link", "add", "plant0", "type", "veth", "peer", "plant1").Run()
		},
			func() error { return exec.Command("ip", "link", "del", "plant0").Run() }},
		{"was reported ready", func() error { tr.ch.pods["no"] = &churnPod{sandbox: stranger}; return nil }, func() error { delete(tr.ch.pods, "no"); return nil }},
		{"was reported removed", func() error { tr.ch.pods["no"] = &churnPod{old: []string{sandbox}}; return nil }, func() error { delete(tr.ch.pods, "no"); return nil }},
	} {
		if err := p.plant(); err != nil {
			t.Fatalf("%s: %v", p.want, err)
		}
		if lines := strings.Join(tr.auditOnce(tr.ch), "\n"); !strings.Contains(lines, p.want) {
			t.Errorf("the audit returns %q, want %q", lines, p.want)
		}
		if err := p.away(); err != nil {
			t.Fatalf("%s: %v", p.want, err)
		}
	}
	log := tr.path("logs", "log")
	docker := map[string]bool{"line 0\n": true, "line 2\n": true} // what it has kept of lines 0 to 2 and the end
	for _, planted := range []struct {
		text string
		kept map[string]bool
		want string
	}{
		{"line 0\nline 1\nend 2\n", nil, ""}, {"line 0\nline 2\n", nil, "want line 1"}, {"line 0\nline 0\n", nil, "want line 1"}, {"line 0\n", nil, "the end is missing"},
		{"line 0\nend 1\nline 1\n", nil, "after its end"}, {"line 0\nline 2\n", docker, ""}, {"line 2\n", docker, "want line 0"},
	} {
		text, want := planted.text, planted.want
		if err := errors.Join(os.MkdirAll(tr.path("logs"), 0o755), os.WriteFile(log, []byte("now stdout F "+strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\nnow stdout F ")+"\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
		tr.ch.complete("planted", log, 0, planted.kept)
		if got := fmt.Sprint(tr.ch.faults()); want == "" && got != "[]" || !strings.Contains(got, want) {
			t.Errorf("log %q: %s, want %q", text, got, want)
		}
	}
	os.Remove(log)
	tr.removeAll()
	tr.finish(t)
}

// testFaultsOfBerthd kills berthd.
func testFaultsOfBerthd(t *testing.T) {
	t.Run("kill -9 under churn", func(t *testing.T) {
		tr := newTrial(t, false)
		kills := 0
		tr.under(t, 6, 30*time.Second, func(time.Time) {
			time.Sleep(300*time.Millisecond + rand.N(1700*time.Millisecond))
			tr.restart()
			kills++
		})
		t.Logf("%d kills", kills)
	})
}

// engine signals Docker's process.
func engine(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pidIn(t, "pid"), s); err != nil {
		t.Fatal(err)
	}
}

// engineEnds ends Docker's process by a signal, and waits until another one answers.
func (n *node) engineEnds(t *testing.T, s syscall.Signal) {
	t.Helper()
	pid := pidIn(t, "pid")
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
	n.until(30*time.Second, "Docker does not end", func() bool { return syscall.Kill(pid, 0) != nil })
	n.engineBack()
}

// engineBack waits until Docker, which the test script starts again, answers.
func (n *node) engineBack() {
	n.t.Helper()
	n.until(60*time.Second, "Docker is not back", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, err := n.docker.Ping(ctx)
		return err == nil
	})
}

// testFaultsOfDocker stops and kills Docker's processes.
func testFaultsOfDocker(t *testing.T) {
	// Not through the proxy, which would respond for a dead Docker.
	direct := []string{"--docker-endpoint", *host}
	for _, disruption := range []struct {
		name  string
		apply func(t *testing.T, n *node)
		flags []string
	}{
		{"STOP under churn", func(t *testing.T, n *node) {
			engine(t, syscall.SIGSTOP)
			time.Sleep(2*time.Second + rand.N(9*time.Second))
			engine(t, syscall.SIGCONT)
		}, nil},
		{"TERM under churn", func(t *testing.T, n *node) { n.engineEnds(t, syscall.SIGTERM) }, nil},
		{"KILL under churn", func(t *testing.T, n *node) { n.engineEnds(t, syscall.SIGKILL) }, nil},
		{"KILL under churn, log driver json-file", func(t *testing.T, n *node) { n.engineEnds(t, syscall.SIGKILL) }, []string{"--log-buffer=json-file"}},
		{"containerd killed under churn", func(t *testing.T, n *node) {
			_ = syscall.Kill(pidIn(t, "exec", "containerd", "containerd.pid"), syscall.SIGKILL)
		}, nil},
	} {
		t.Run(disruption.name, func(t *testing.T) {
			tr := newTrial(t, false, append(disruption.flags, direct...)...)
			tr.dockerForgets = disruption.name != "STOP under churn"
			tr.ch.dockerForgets = tr.dockerForgets
			times := 0
			tr.under(t, 4, 25*time.Second, func(end time.Time) {
				time.Sleep(2*time.Second + rand.N(3*time.Second))
				if time.Now().Before(end) {
					disruption.apply(t, tr.node)
					times++
				}
			})
			t.Logf("%d times", times)
		})
	}
}

// testFaultsOfUserNamespaces kills berthd, the OCI runtime, containerd and Docker while pods in user namespaces are run.
func testFaultsOfUserNamespaces(t *testing.T) {
	tr := newTrial(t, false, "--docker-endpoint", *host)
	tr.installOCI()
	before := tr.berthMounts(t)
	tr.dockerForgets, tr.ch.dockerForgets, tr.ch.mapped = true, true, true
	times := map[string]int{}
	disruptions := []struct {
		name  string
		apply func()
	}{
		{"berthd killed", tr.restart},
		{"runtimes killed", func() { times["processes of runtimes"] += tr.killRuntimes() }},
		{"containerd killed", func() { _ = syscall.Kill(pidIn(t, "exec", "containerd", "containerd.pid"), syscall.SIGKILL) }},
		{"runtimes killed", func() { times["processes of runtimes"] += tr.killRuntimes() }},
		{"Docker restarted", func() { tr.engineEnds(t, syscall.SIGTERM) }},
	}
	next := 0
	tr.under(t, 4, 40*time.Second, func(end time.Time) {
		time.Sleep(time.Second + rand.N(2*time.Second))
		if time.Now().Before(end) {
			d := disruptions[next%len(disruptions)]
			next++
			d.apply()
			times[d.name]++
		}
	})
	t.Logf("%v", times)
	tr.until(20*time.Second, "mounts of berth-oci are left", func() bool { return tr.berthMounts(t) <= before })
}

// killRuntimes kills the processes of low-level runtimes that the Engine has called, also berth-oci, and returns how many there
// were.
func (n *node) killRuntimes() (killed int) {
	root := filepath.Join(filepath.Dir(strings.TrimPrefix(*host, "unix://")), "exec", "runtime-")
	for end := time.Now().Add(2 * time.Second); killed == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil || !strings.Contains(string(text), "\x00--root\x00"+root) {
				continue
			}
			var pid int
			if _, err := fmt.Sscanf(file, "/proc/%d/", &pid); err == nil && syscall.Kill(pid, syscall.SIGKILL) == nil {
				killed++
			}
		}
	}
	return killed
}

// berthMounts counts the mounts of berth-oci that the Engine sees: root file systems of containers in user namespaces.
func (n *node) berthMounts(t *testing.T) (count int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", n.enginePID()))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), " - overlay berth ")
}
