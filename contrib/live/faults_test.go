package live

import (
	"context"
	"flag"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"
)

var faultTests = flag.Bool("faults", false, "run TestFaults, which needs an Engine that is started again when it ends (contrib/e2e/faults.sh)")

// TestFaults breaks what berthd stands on, one way in each subtest, while pods are lived
// as by a kubelet, and audits the node afterwards.
func TestFaults(t *testing.T) {
	if !*faultTests {
		t.Skip("takes ten minutes: make test-faults")
	}
	for _, group := range []struct {
		name string
		run  func(*testing.T)
	}{
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
	} {
		t.Run(group.name, group.run)
	}
}

// A trial is a node under faults.
type trial struct {
	*node
	ch     *churn
	before usage
}

// newTrial starts a node and lives one pod without a fault.
func newTrial(t *testing.T, misbehaving bool, flags ...string) *trial {
	t.Helper()
	tr := prepareTrial(t, misbehaving, flags...)
	tr.begin(t)
	return tr
}

// prepareTrial is newTrial, but for starting berthd.
func prepareTrial(t *testing.T, misbehaving bool, flags ...string) *trial {
	t.Helper()
	addr, more := flagsForAudit(t)
	n := prepareNode(t, append(more, flags...)...)
	if misbehaving {
		n.installMisbehaving()
	}
	n.metrics = addr
	n.systemd = n.info().CgroupDriver == "systemd"
	return &trial{node: n, ch: newChurn(n, 20*time.Second)}
}

// begin starts berthd and lives one pod.
func (tr *trial) begin(t *testing.T) {
	t.Helper()
	tr.start()
	tr.ch.life("warm", 4)
	tr.check(t, "after one pod")
	var err error
	if tr.before, err = tr.usage(); err != nil {
		t.Fatal(err)
	}
}

// check audits the node at a quiet moment.
func (tr *trial) check(t *testing.T, when string) {
	t.Helper()
	tr.ch.quiet.Lock()
	defer tr.ch.quiet.Unlock()
	tr.say(t, when, append(tr.ch.faults(), tr.audit(tr.ch)...))
}

func (tr *trial) say(t *testing.T, when string, lines []string) {
	t.Helper()
	for _, line := range lines {
		t.Errorf("%s: %s", when, line)
	}
}

// finish audits a node whose pods are gone, and what berthd takes of it.
func (tr *trial) finish(t *testing.T) {
	t.Helper()
	tr.check(t, "at the end")
	if left := tr.leftovers(); len(left) > 0 {
		tr.say(t, "left behind", left)
	}
	tr.say(t, "at the end", tr.settled(tr.before, 45*time.Second))
	now, err := tr.usage()
	if err != nil {
		t.Error(err)
	}
	t.Logf("%s; now %v, before %v", tr.ch.summary(), now, tr.before)
}

// under lives pods for d while do is called again and again, and for some seconds after.
func (tr *trial) under(t *testing.T, workers int, d time.Duration, do func(end time.Time)) {
	t.Helper()
	tr.ch.pace = 200 * time.Millisecond
	tr.ch.troubled(true)
	end := time.Now().Add(d)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tr.ch.run(workers, d+3*time.Second, 8)
	}()
	for time.Now().Before(end) {
		do(end)
	}
	tr.ch.troubled(false)
	<-done
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

// engineBack waits until Docker, which something starts again, answers.
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
	// Not through the proxy, which would answer for a dead Docker.
	direct := []string{"--docker-endpoint", *host}
	for _, blow := range []struct {
		name string
		does func(t *testing.T, n *node)
	}{
		{"STOP under churn", func(t *testing.T, n *node) {
			engine(t, syscall.SIGSTOP)
			time.Sleep(2*time.Second + rand.N(9*time.Second))
			engine(t, syscall.SIGCONT)
		}},
		{"TERM under churn", func(t *testing.T, n *node) { engine(t, syscall.SIGTERM); time.Sleep(time.Second); n.engineBack() }},
		{"KILL under churn", func(t *testing.T, n *node) { engine(t, syscall.SIGKILL); time.Sleep(time.Second); n.engineBack() }},
		{"containerd killed under churn", func(t *testing.T, n *node) {
			_ = syscall.Kill(pidIn(t, "exec", "containerd", "containerd.pid"), syscall.SIGKILL)
		}},
	} {
		t.Run(blow.name, func(t *testing.T) {
			tr := newTrial(t, false, direct...)
			blows := 0
			tr.under(t, 4, 25*time.Second, func(end time.Time) {
				time.Sleep(2*time.Second + rand.N(3*time.Second))
				if time.Now().Before(end) {
					blow.does(t, tr.node)
					blows++
				}
			})
			t.Logf("%d times", blows)
		})
	}
}
