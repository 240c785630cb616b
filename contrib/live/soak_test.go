package live

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"
)

var (
	soak     = flag.Duration("soak", 0, "run TestSoak for this `long`, on an Engine that is started again when it ends (contrib/e2e/faults.sh)")
	soakSeed = flag.Uint64("seed", 0, "`number` that makes TestSoak choose the same faults again, 0 for another each time")
)

// TestSoak runs pods at a kubelet's pace under random faults. It prints the usage of berthd each minute, and audits the node every
// five minutes.
func TestSoak(t *testing.T) {
	if *soak == 0 {
		t.Skip("takes an hour: make soak")
	}
	seed := *soakSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1e9
	}
	random := rand.New(rand.NewPCG(seed, 0))
	tr := newTrial(t, true, "--runtime-request-timeout", "30s")
	tr.dockerForgets, tr.ch.dockerForgets = true, true
	tr.ch.callTimeout, tr.ch.pace = 45*time.Second, time.Second
	begin := time.Now()
	say := func(format string, args ...any) {
		t.Logf("%8v  %s", time.Since(begin).Round(time.Second), fmt.Sprintf(format, args...))
	}
	say("seed %d, at the start %v", seed, tr.before)

	randomTime := func(limit time.Duration) time.Duration {
		return time.Duration(random.Int64N(int64(limit))) + 200*time.Millisecond
	}
	plugins := []pluginFault{
		pluginGarbage, pluginGarbageAfter, pluginTruncates, pluginSilent, pluginNoIP, pluginHang, pluginHangAfter, pluginCrash, pluginCrashAfter, pluginFail, pluginFailAfter,
	}
	events := []faultKind{eventsDrop, eventsDouble, eventsReorder, eventsLate, eventsClosed, eventsGarbage}
	choices := []struct {
		name string
		does func()
	}{
		{"berthd: kill -9", tr.restart},
		{"berthd: kill -9", tr.restart},
		{"dockerd: STOP", func() {
			engine(t, syscall.SIGSTOP)
			time.Sleep(randomTime(9 * time.Second))
			engine(t, syscall.SIGCONT)
		}},
		{"dockerd: KILL", func() { tr.engineEnds(t, syscall.SIGKILL) }},
		{"dockerd: TERM", func() { tr.engineEnds(t, syscall.SIGTERM) }},
		{"containerd: KILL", func() { _ = syscall.Kill(pidIn(t, "exec", "containerd", "containerd.pid"), syscall.SIGKILL) }},
		{"endpoints", func() {
			tr.proxy.inject(randomFaults(0.05)...)
			time.Sleep(randomTime(8 * time.Second))
			tr.proxy.lift()
		}},
		{"events", func() {
			f := &fault{path: endpoint("/events"), kind: events[random.IntN(len(events))], wait: time.Second}
			say("%v", f)
			tr.proxy.inject(f)
			time.Sleep(randomTime(10 * time.Second))
			tr.proxy.lift()
		}},
		{"network plugin", func() {
			command, fault := []string{"ADD", "DEL"}[random.IntN(2)], plugins[random.IntN(len(plugins))]
			if command == "DEL" && (fault == pluginGarbage || fault == pluginNoIP) {
				fault = pluginFail // a DEL that does nothing and succeeds leaks the address, whatever a runtime does
			}
			o := pluginFaults{command: fault}
			say("%v", o)
			tr.setPluginFaults(o)
			time.Sleep(randomTime(6 * time.Second))
			tr.setPluginFaults(nil)
		}},
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		tr.ch.run(8, *soak, 10)
	}()
	end := begin.Add(*soak)
	minute, audit := begin.Add(time.Minute), begin.Add(min(5*time.Minute, *soak/2))
	for now := time.Now(); now.Before(end); now = time.Now() {
		time.Sleep(randomTime(20 * time.Second))
		tr.ch.setFaulty(true)
		choice := choices[random.IntN(len(choices))]
		say("%s", choice.name)
		choice.does()
		tr.ch.setFaulty(false)
		if time.Now().After(minute) {
			minute = time.Now().Add(time.Minute)
			now, err := tr.usage()
			say("%v, %v, %d pods have ended", now, err, tr.ch.count())
		}
		if time.Now().After(audit) {
			audit = time.Now().Add(5 * time.Minute)
			time.Sleep(time.Second)
			tr.engineBack()
			tr.waitReady(30 * time.Second)
			tr.check(t, time.Since(begin).Round(time.Second).String())
			say("audited")
		}
	}
	say("no more faults")
	<-done
	tr.finish(t)
	if now, err := tr.usage(); err != nil || now.rss > 2*tr.before.rss+32 {
		t.Errorf("memory: %v, %v; at the start %v", now, err, tr.before)
	}
}

// count returns how many pods have ended.
func (ch *churn) count() int {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.done
}
