package live

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// testFaultsOfPlugins gives the network plugin one fault for one pod at a time.
func testFaultsOfPlugins(t *testing.T) {
	tr := newTrial(t, true)
	tr.ch.callTimeout = 5 * time.Second
	count := 0
	one := func(command string, f pluginFault, while time.Duration) {
		t.Helper()
		what := command + " " + string(f)
		count++
		begin := time.Now()
		name := fmt.Sprintf("plugin-%d", count)
		tr.ch.setFaulty(true)
		if command == "ADD" {
			tr.setPluginFaults(pluginFaults{command: f})
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			tr.ch.runPod(name, 2)
		}()
		if command == "DEL" {
			tr.until(30*time.Second, "no pod", func() bool {
				tr.ch.mu.Lock()
				defer tr.ch.mu.Unlock()
				return tr.ch.pods[name] != nil && tr.ch.pods[name].sandbox != ""
			})
			tr.setPluginFaults(pluginFaults{command: f})
		}
		time.Sleep(while)
		tr.setPluginFaults(nil)
		tr.ch.setFaulty(false)
		<-done
		tr.check(t, what)
		if now, err := tr.usage(); err == nil && now.rss > tr.before.rss+100 {
			t.Errorf("%s: %v, before %v", what, now, tr.before)
		}
		t.Logf("%s: %v", what, time.Since(begin).Round(time.Millisecond))
	}
	for _, f := range []pluginFault{
		pluginGarbage, pluginGarbageAfter, pluginTruncates, pluginSilent, pluginNull, pluginNoIP, pluginHuge, pluginHang, pluginHangAfter, pluginCrash,
		pluginCrashAfter, pluginFail, pluginFailAfter,
	} {
		one("ADD", f, 2*time.Second)
	}
	for _, f := range []pluginFault{pluginCrash, pluginCrashAfter, pluginFail, pluginFailAfter, pluginHuge, pluginHang, pluginHangAfter} {
		one("DEL", f, 4*time.Second)
	}
	tr.finish(t)
}

// testKillsWhilePluginWorks kills berthd while a plugin hangs before or after its work.
func testKillsWhilePluginWorks(t *testing.T) {
	tr := newTrial(t, true)
	tr.ch.callTimeout = 5 * time.Second
	for i, o := range []pluginFaults{{"ADD": pluginHang}, {"ADD": pluginHangAfter}, {"IPAM ADD": pluginHang}, {"DEL": pluginHang}, {"DEL": pluginHangAfter}} {
		tr.ch.setFaulty(true)
		tr.setPluginFaults(o)
		done := make(chan struct{})
		go func() {
			defer close(done)
			tr.ch.runPod(fmt.Sprintf("killed-%d", i), 2)
		}()
		time.Sleep(3 * time.Second)
		tr.restart()
		time.Sleep(3 * time.Second) // the rollback of the next berthd comes before the plugin of the killed one could go on
		tr.setPluginFaults(nil)
		tr.ch.setFaulty(false)
		<-done
		tr.check(t, fmt.Sprint(o))
	}
	if !strings.Contains(tr.log.String(), "killed a plugin that an earlier berthd has left behind") {
		t.Error("no plugin of a killed berthd was killed")
	}
	tr.finish(t)
}

// networkConfiguration returns the path and the content of the network configuration.
func (tr *trial) networkConfiguration(t *testing.T) (path string, text []byte) {
	t.Helper()
	path = tr.path("net.d", "10-live.conflist")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, text
}

// testFewAddresses runs more pods than there are addresses.
func testFewAddresses(t *testing.T) {
	tr := newTrial(t, false)
	conf, text := tr.networkConfiguration(t)
	few := bytes.Replace(text, []byte(`"subnet": "10.87.0.0/16"`), []byte(`"subnet": "10.87.0.0/16", "rangeStart": "10.87.9.10", "rangeEnd": "10.87.9.14"`), 1)
	if err := os.WriteFile(conf, few, 0o600); err != nil {
		t.Fatal(err)
	}
	tr.ch.setFaulty(true)
	defer time.AfterFunc(time.Minute, func() { tr.ch.setFaulty(false) }).Stop()
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() { tr.ch.runPod(fmt.Sprintf("few-%d", i), 2) })
	}
	all.Wait()
	tr.finish(t)
}

// testConfigurationComesAndGoes removes, truncates and doubles the network configuration.
func testConfigurationComesAndGoes(t *testing.T) {
	tr := newTrial(t, false)
	conf, text := tr.networkConfiguration(t)
	tr.under(t, 3, 8*time.Second, func(time.Time) {
		for _, now := range [][]byte{nil, text[:len(text)/2], append(bytes.Clone(text), text...)} {
			if now == nil {
				_ = os.Remove(conf)
			} else if err := os.WriteFile(conf, now, 0o600); err != nil {
				t.Error(err)
			}
			time.Sleep(30 * time.Millisecond)
		}
		if err := os.WriteFile(conf, text, 0o600); err != nil {
			t.Error(err)
		}
		time.Sleep(100 * time.Millisecond)
	})
}

// testFaultsOfDisks puts the root directory, and that of logs, on a disk that is full, without inodes or read-only for a while.
func testFaultsOfDisks(t *testing.T) {
	for _, d := range []struct {
		name   string
		broken func(t *testing.T, dir string) (mended func())
	}{
		{"no space", fill},
		{"no inodes", func(t *testing.T, dir string) func() {
			var made []string
			for i := 0; ; i++ {
				path := filepath.Join(dir, fmt.Sprintf(".inode-%d", i))
				f, err := os.Create(path)
				if err != nil {
					break
				}
				f.Close()
				made = append(made, path)
			}
			return func() {
				for _, path := range made {
					os.Remove(path)
				}
			}
		}},
		{"read-only", func(t *testing.T, dir string) func() {
			remount := func(flags uintptr) {
				if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""); err != nil {
					t.Fatal(err)
				}
			}
			remount(unix.MS_RDONLY)
			return func() { remount(0) }
		}},
	} {
		t.Run("root directory with "+d.name, func(t *testing.T) {
			tr := prepareTrial(t, false)
			tmpfs(t, tr.path("root"), "size=2m,nr_inodes=300")
			tr.begin(t)
			tr.ch.callTimeout = 5 * time.Second
			sandbox, _, err := tr.whole(tr.pod("before")) // it is removed while the disk is broken
			if err != nil {
				t.Fatal(err)
			}
			mended := d.broken(t, tr.path("root"))
			again := sync.OnceFunc(mended)
			defer again()
			tr.ch.setFaulty(true)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if _, err := tr.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox}); err != nil {
				t.Errorf("stop: %v", err)
			}
			_, err = tr.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox})
			if err != nil && d.name != "read-only" {
				t.Errorf("remove: %v", err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				tr.ch.runPod("meanwhile", 4)
			}()
			time.Sleep(2 * time.Second)
			tr.restart()
			time.Sleep(2 * time.Second)
			again()
			tr.ch.setFaulty(false)
			<-done
			tr.remove(sandbox)
			tr.restart() // the garbage collection deletes records that could not be deleted
			tr.waitReady(20 * time.Second)
			tr.finish(t)
		})
	}
	t.Run("logs without space", func(t *testing.T) {
		tr := prepareTrial(t, false)
		tmpfs(t, tr.path("logs"), "size=1m")
		tr.begin(t)
		tr.ch.setFaulty(true)
		done := make(chan struct{})
		go func() {
			defer close(done)
			tr.ch.runPod("full", 24) // its output of that time is in its log afterwards
		}()
		tr.ch.pace = 300 * time.Millisecond
		time.Sleep(2 * time.Second)
		mended := fill(t, tr.path("logs"))
		time.Sleep(2 * time.Second)
		tr.restart()
		time.Sleep(time.Second)
		mended()
		tr.ch.setFaulty(false)
		<-done
		tr.finish(t)
	})
}

// fill leaves no space on a disk.
func fill(t *testing.T, dir string) (mended func()) {
	t.Helper()
	path := filepath.Join(dir, ".full")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for {
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			break
		}
	}
	return func() { os.Remove(path) }
}

// tmpfs mounts a small disk at dir.
func tmpfs(t *testing.T, dir, options string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("faults", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// testFewDescriptors limits the open files of berthd while clients use them up.
func testFewDescriptors(t *testing.T) {
	for _, most := range []uint64{64, 128} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			tr := newTrial(t, false)
			tr.ch.callTimeout = 5 * time.Second
			pid := tr.cmd.Process.Pid
			if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: most, Max: 4096}, nil); err != nil {
				t.Fatal(err)
			}
			tr.ch.setFaulty(true)
			var conns []net.Conn
			for range most {
				if conn, err := net.Dial("unix", tr.path("cri.sock")); err == nil {
					conns = append(conns, conn)
				}
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				tr.ch.runPod("few", 4)
			}()
			time.Sleep(3 * time.Second)
			for _, conn := range conns {
				conn.Close()
			}
			tr.ch.setFaulty(false)
			<-done
			tr.finish(t)
		})
	}
}

// testOddLogs puts something else at the path of a log.
func testOddLogs(t *testing.T) {
	elsewhere := func(tr *trial) string { return tr.path("elsewhere") }
	for _, odd := range []struct {
		name string
		make func(tr *trial, log string) error
	}{
		{"FIFO", func(_ *trial, log string) error { return unix.Mkfifo(log, 0o600) }},
		{"directory", func(_ *trial, log string) error { return os.Mkdir(log, 0o700) }},
		{"symlink", func(tr *trial, log string) error { return os.Symlink(elsewhere(tr), log) }},
		{"socket", func(_ *trial, log string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: log, Net: "unix"})
			if err == nil {
				l.SetUnlinkOnClose(false)
				l.Close()
			}
			return err
		}},
	} {
		for _, when := range []string{"at create", "at reopen"} {
			t.Run(odd.name+" "+when, func(t *testing.T) {
				tr := newTrial(t, false)
				pod := tr.pod("odd")
				id, err := tr.run(t.Context(), pod)
				if err != nil {
					t.Fatal(err)
				}
				dir := filepath.Join(pod.GetLogDirectory(), "c")
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(elsewhere(tr), []byte("untouched"), 0o600); err != nil {
					t.Fatal(err)
				}
				log := filepath.Join(dir, "0.log")
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				record := func(call string, err error) {
					if codeOf(err) == codes.DeadlineExceeded {
						t.Errorf("%s: no response within 10 s", call)
					}
					t.Logf("%s: %v", call, err)
				}
				if when == "at create" {
					if err := odd.make(tr, log); err != nil {
						t.Fatal(err)
					}
				}
				made, err := tr.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: shell("c", churnScript), SandboxConfig: pod})
				record("create", err)
				if err == nil {
					_, err = tr.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made.GetContainerId()})
					record("start", err)
				}
				if when == "at reopen" && err == nil {
					tr.until(10*time.Second, "no log", func() bool { _, err := os.Stat(log); return err == nil })
					if err := os.Rename(log, log+".1"); err != nil {
						t.Fatal(err)
					}
					if err := odd.make(tr, log); err != nil {
						t.Fatal(err)
					}
					_, err = tr.runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: made.GetContainerId()})
					record("reopen", err)
				}
				if text, err := os.ReadFile(elsewhere(tr)); err != nil || string(text) != "untouched" {
					t.Errorf("a file of the node was written: %.100q, %v", text, err)
				}
				// It ends on SIGTERM.
				if err := tr.cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				select {
				case <-tr.done:
				case <-time.After(20 * time.Second):
					t.Error("berthd does not end within 20 s after SIGTERM")
					_ = tr.cmd.Process.Kill()
					<-tr.done
				}
				tr.spawn(*program, tr.ownFlags()...)
				tr.waitReady(20 * time.Second)
				tr.remove(id)
				os.RemoveAll(tr.path("logs"))
				tr.finish(t)
			})
		}
	}
	t.Run("directory was gone when berthd started", func(t *testing.T) {
		tr := newTrial(t, false)
		pod := tr.pod("gone")
		id, err := tr.run(t.Context(), pod)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(pod.GetLogDirectory(), "c")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		tr.create(id, pod, shell("c", churnScript))
		log := filepath.Join(dir, "0.log")
		tr.until(10*time.Second, "no log", func() bool { _, err := os.Stat(log); return err == nil })
		if err := os.RemoveAll(pod.GetLogDirectory()); err != nil {
			t.Fatal(err)
		}
		tr.restart()
		tr.waitReady(20 * time.Second)
		time.Sleep(2 * time.Second) // berthd notices meanwhile that the directory is missing
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		tr.until(10*time.Second, "the log is not written again", func() bool { _, err := os.Stat(log); return err == nil })
		tr.remove(id)
		os.RemoveAll(tr.path("logs"))
		tr.finish(t)
	})
}

// testFaultsOfClients has clients that hang up, are silent or send garbage.
func testFaultsOfClients(t *testing.T) {
	t.Run("hang up under churn", func(t *testing.T) {
		tr := newTrial(t, false)
		tr.ch.cancelsEarly = true
		tr.under(t, 4, 15*time.Second, func(time.Time) { time.Sleep(time.Second) })
	})
	t.Run("all run the same pod", func(t *testing.T) {
		tr := newTrial(t, false)
		pod := tr.pod("same")
		ids := map[string]int{}
		var mu sync.Mutex
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				id, err := tr.run(t.Context(), pod)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
				}
				ids[id]++
			})
		}
		all.Wait()
		if len(ids) != 1 {
			t.Errorf("sandboxes %v, want one", ids)
		}
		tr.removeAll()
		tr.finish(t)
	})
	t.Run("stops whose callers have left", func(t *testing.T) {
		tr := newTrial(t, false)
		_, c, err := tr.whole(tr.pod("stops"))
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for range 30 {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				defer cancel()
				_, _ = tr.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c, Timeout: 86400})
			})
		}
		all.Wait()
		tr.report(t, "while the first stop goes on", tr.waitStable(tr.before, 10*time.Second))
		tr.removeAll()
		tr.finish(t)
	})
	t.Run("idle connections, and garbage in place of gRPC", func(t *testing.T) {
		tr := newTrial(t, false)
		var conns []net.Conn
		for range 1000 {
			conn, err := net.Dial("unix", tr.path("cri.sock"))
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
		}
		tr.ch.runPod("beside", 4)
		for i, conn := range conns {
			garbage := make([]byte, 100+i)
			_, _ = rand.Read(garbage)
			if i%2 == 0 {
				_, _ = io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
			}
			_, _ = conn.Write(garbage)
		}
		tr.ch.runPod("beside-2", 4)
		for _, conn := range conns {
			conn.Close()
		}
		tr.finish(t)
	})
	t.Run("messages of random bytes", func(t *testing.T) {
		tr := newTrial(t, false)
		conn, err := grpc.NewClient("unix:"+tr.path("cri.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, service := range []grpc.ServiceDesc{runtimeapi.RuntimeService_ServiceDesc, runtimeapi.ImageService_ServiceDesc} {
			for _, m := range service.Methods {
				for i := range 20 {
					message := make([]byte, i*i)
					_, _ = rand.Read(message)
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					err := conn.Invoke(ctx, "/"+service.ServiceName+"/"+m.MethodName, message, new([]byte))
					cancel()
					if code := codeOf(err); code == codes.DeadlineExceeded || code == codes.Unknown {
						t.Errorf("%s: %v", m.MethodName, err)
					}
				}
			}
		}
		if strings.Contains(tr.log.String(), "panic") {
			t.Error("a call panicked")
		}
		tr.finish(t)
	})
	for _, protocol := range []string{"SPDY", "WebSocket"} {
		t.Run("streams that are never created, "+protocol, func(t *testing.T) {
			tr := newTrial(t, false)
			_, c, err := tr.whole(tr.pod("streams"))
			if err != nil {
				t.Fatal(err)
			}
			for range 60 {
				r, err := tr.runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: c, Stdout: true})
				if err != nil {
					t.Fatal(err)
				}
				if err := upgradeAndLeave(r.GetUrl(), protocol); err != nil {
					t.Fatal(err)
				}
			}
			tr.removeAll()
			tr.finish(t)
		})
	}
	t.Run("tokens that are not used", func(t *testing.T) {
		tr := newTrial(t, false)
		_, c, err := tr.whole(tr.pod("tokens"))
		if err != nil {
			t.Fatal(err)
		}
		refused := 0
		for range 1100 {
			_, err := tr.runtime.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: c, Cmd: []string{"true"}, Stdout: true})
			if code := codeOf(err); code == codes.ResourceExhausted {
				refused++
			} else if err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%d refused", refused)
		if got := tr.exec(c, "echo", "well"); got != "well\n" {
			t.Errorf("a probe meanwhile: %q", got)
		}
		tr.removeAll()
		tr.finish(t)
	})
}

// upgradeAndLeave upgrades a connection to streams, reads the response, and closes it.
func upgradeAndLeave(at, protocol string) error {
	where, err := url.Parse(at)
	if err != nil {
		return err
	}
	conn, err := net.Dial("tcp", where.Host)
	if err != nil {
		return err
	}
	defer conn.Close()
	r, err := http.NewRequest(http.MethodPost, at, nil)
	if err != nil {
		return err
	}
	r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, "X-Stream-Protocol-Version": {"v4.channel.k8s.io"}}
	if protocol == "WebSocket" {
		r.Method = http.MethodGet
		r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="},
			"Sec-Websocket-Version": {"13"}, "Sec-Websocket-Protocol": {"v5.channel.k8s.io"}, "Origin": {"http://127.0.0.1"}}
	}
	if err := r.Write(conn); err != nil {
		return err
	}
	head := make([]byte, 12)
	if _, err := io.ReadFull(conn, head); err != nil {
		return err
	}
	if !bytes.HasSuffix(head, []byte("101")) {
		return errors.New(string(head))
	}
	return nil
}

// raw is a codec that sends bytes as they are.
type raw struct{}

func (raw) Name() string { return "proto" }
func (raw) Marshal(v any) ([]byte, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("%T", v)
	}
	return b, nil
}
func (raw) Unmarshal([]byte, any) error { return nil }
