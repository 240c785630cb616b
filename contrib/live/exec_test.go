package live

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"golang.org/x/net/websocket"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// A streamed is a client of an exec or attach that has its stdout.
type streamed struct {
	net.Conn
	stdout, status io.Reader
	ping           func() // sends something that has no effect
}

// spdyClient joins a URL of an exec or attach as kubelets do.
func spdyClient(t *testing.T, conn net.Conn, at string, tty bool) streamed {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, at, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{
		httpstream.HeaderConnection: {httpstream.HeaderUpgrade}, httpstream.HeaderUpgrade: {spdy.HeaderSpdy31},
		httpstream.HeaderProtocolVersion: {remotecommand.StreamProtocolV4Name},
	}
	if err := r.Write(conn); err != nil {
		t.Fatal(err)
	}
	for head := []byte{}; !bytes.HasSuffix(head, []byte("\r\n\r\n")); { // and not a byte more
		b := make([]byte, 1)
		if _, err := conn.Read(b); err != nil {
			t.Fatal(err)
		}
		head = append(head, b...)
	}
	session, err := spdy.NewClientConnectionWithPings(conn, 100*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	kinds := []string{remotecommand.StreamTypeError, remotecommand.StreamTypeStdout}
	if tty {
		kinds = append(kinds, remotecommand.StreamTypeResize)
	}
	streams := map[string]httpstream.Stream{}
	for _, kind := range kinds {
		if streams[kind], err = session.CreateStream(http.Header{remotecommand.StreamType: {kind}}); err != nil {
			t.Fatal(err)
		}
	}
	return streamed{conn, streams[remotecommand.StreamTypeStdout], streams[remotecommand.StreamTypeError], func() {
		_, _ = streams[remotecommand.StreamTypeError].Write([]byte("x"))
	}}
}

// webSocketClient joins a URL of an exec or attach as kubectl does.
func webSocketClient(t *testing.T, conn net.Conn, at string, _ bool) streamed {
	t.Helper()
	config, err := websocket.NewConfig(strings.Replace(at, "http", "ws", 1), "http://127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{remotecommand.StreamProtocolV5Name}
	ws, err := websocket.NewClient(config, conn)
	if err != nil {
		t.Fatal(err)
	}
	ws.PayloadType = websocket.BinaryFrame
	out, toOut := io.Pipe()
	end, toEnd := io.Pipe()
	go func() {
		var text bytes.Buffer
		for {
			var message []byte
			if err := websocket.Message.Receive(ws, &message); err != nil {
				toOut.Close()
				_, _ = toEnd.Write(text.Bytes())
				toEnd.Close()
				conn.Close()
				return
			}
			if len(message) > 1 && message[0] == 1 {
				_, _ = toOut.Write(message[1:])
			} else if len(message) > 1 && message[0] == 3 {
				text.Write(message[1:])
			}
		}
	}()
	return streamed{conn, out, end, func() { _, _ = ws.Write([]byte{4, '{', '}'}) }}
}

var clients = map[string]func(*testing.T, net.Conn, string, bool) streamed{"SPDY": spdyClient, "WebSocket": webSocketClient}

// execAs begins a command in a container and joins its stdout.
func (n *node) execAs(t *testing.T, protocol, c, script string, tty bool) streamed {
	t.Helper()
	r, err := n.runtime.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: c, Cmd: []string{"sh", "-c", script}, Stdout: true, Tty: tty})
	if err != nil {
		t.Fatal(err)
	}
	return join(t, protocol, r.GetUrl(), tty)
}

func join(t *testing.T, protocol, at string, tty bool) streamed {
	t.Helper()
	where, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", where.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return clients[protocol](t, conn, at, tty)
}

// ending is what the error stream says: an exit code, Success, or Failure with
// its message.
func (s streamed) ending() string {
	text, _ := io.ReadAll(s.status)
	var got struct {
		Status, Message string
		Details         struct{ Causes []struct{ Message string } }
	}
	if err := json.Unmarshal(text, &got); err != nil {
		return fmt.Sprintf("nothing: %q", text)
	}
	for _, cause := range got.Details.Causes {
		return cause.Message
	}
	return strings.TrimSpace(got.Status + " " + got.Message)
}

// sleeper runs a pod with one container of a script, whose first process reaps
// nothing if the script says exec.
func (n *node) sleeper(name, script string, pid runtimeapi.NamespaceMode) (pod, c string) {
	n.t.Helper()
	config := n.pod(name)
	config.Linux.SecurityContext.NamespaceOptions.Pid = pid
	pod, err := n.run(n.t.Context(), config)
	if err != nil {
		n.t.Fatal(err)
	}
	ctr := shell("c", script)
	ctr.Linux.SecurityContext.NamespaceOptions.Pid = pid
	return pod, n.create(pod, config, ctr)
}

// within calls do and fails unless it returns within d.
func within(t *testing.T, d time.Duration, what string, do func()) {
	t.Helper()
	start := time.Now()
	done := make(chan struct{})
	go func() { defer close(done); do() }()
	select {
	case <-done:
		t.Logf("%s: %v", what, time.Since(start).Round(10*time.Millisecond))
	case <-time.After(d):
		t.Errorf("%s: not over after %v", what, d)
	}
}

// TestSlowExecClientGetsAllOutputAndExitCode has a client read slowly: it gets all output and the exit code.
func TestSlowExecClientGetsAllOutputAndExitCode(t *testing.T) {
	n := newNode(t)
	_, c := n.sleeper("slow", "exec sleep 1000", runtimeapi.NamespaceMode_CONTAINER)
	for protocol := range clients {
		t.Run(protocol, func(t *testing.T) {
			s := n.execAs(t, protocol, c, "dd if=/dev/zero bs=1M count=24 2>/dev/null; exit 5", false)
			got := 0
			for buffer, start := make([]byte, 64<<10), time.Now(); ; {
				k, err := s.stdout.Read(buffer)
				if got += k; err != nil {
					break
				}
				s.ping()
				time.Sleep(time.Until(start.Add(time.Duration(got) * time.Second / (4 << 20)))) // 4 MiB/s
			}
			if end := s.ending(); got != 24<<20 || end != "5" {
				t.Errorf("%d of %d bytes, then %s; want all and exit code 5", got, 24<<20, end)
			}
		})
	}
	n.removeAll()
	n.clean()
}

// TestExecEndsWithItsContainer has a container end while commands run in it.
// Docker 20.10 leaves their streams open where the PID namespace is the pod's.
func TestExecEndsWithItsContainer(t *testing.T) {
	n := newNode(t)
	for name, mode := range map[string]runtimeapi.NamespaceMode{"private": runtimeapi.NamespaceMode_CONTAINER, "shared": runtimeapi.NamespaceMode_POD} {
		t.Run(name, func(t *testing.T) {
			_, c := n.sleeper(name, "exec sleep 1000", mode)
			const loop = "echo begun; while :; do sleep 0.2; done"
			var ends []func()
			for protocol := range clients {
				s := n.execAs(t, protocol, c, loop, false)
				if _, err := io.ReadFull(s.stdout, make([]byte, 6)); err != nil {
					t.Fatal(err)
				}
				ends = append(ends, func() {
					_, _ = io.Copy(io.Discard, s.stdout)
					if end := s.ending(); strings.HasPrefix(end, "Success") || end == "0" {
						t.Errorf("%s: %s, and the command had not ended", protocol, end)
					}
				})
			}
			ends = append(ends, func() {
				r, err := n.runtime.ExecSync(context.Background(), &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"sh", "-c", loop}})
				if err == nil && r.GetExitCode() == 0 {
					t.Errorf("ExecSync: %v, and the command had not ended", r)
				}
			})
			time.AfterFunc(time.Second, func() { _ = n.docker.ContainerKill(context.Background(), c, "KILL") })
			within(t, 20*time.Second, "all execs", func() {
				for _, end := range ends {
					end()
				}
			})
		})
	}
	n.removeAll()
	n.clean()
}

// TestDaemonStopFailsOpenExecs stops berthd while clients are connected: they must get a failure. In SPDY, no status is success.
func TestDaemonStopFailsOpenExecs(t *testing.T) {
	n := newNode(t)
	_, c := n.sleeper("stop", "while :; do echo begun; sleep 0.2; done", runtimeapi.NamespaceMode_CONTAINER)
	all := map[string]streamed{}
	for protocol := range clients {
		all[protocol+" exec"] = n.execAs(t, protocol, c, "echo begun; sleep 20; exit 7", false)
		all[protocol+" terminal"] = n.execAs(t, protocol, c, "echo begun; sleep 20; exit 7", true)
		r, err := n.runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: c, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		all[protocol+" attach"] = join(t, protocol, r.GetUrl(), false)
	}
	for what, s := range all {
		if _, err := io.ReadFull(s.stdout, make([]byte, 6)); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for what, s := range all {
		go func() { _, _ = io.Copy(io.Discard, s.stdout) }()
		within(t, 10*time.Second, what, func() {
			if end := s.ending(); !strings.HasPrefix(end, "Failure") {
				t.Errorf("%s: %s, want a failure", what, end)
			}
		})
		s.Close()
	}
	within(t, 15*time.Second, "berthd", func() { <-n.done })
	n.start()
	n.until(5*time.Second, "the commands live on", func() bool { return !strings.Contains(n.exec(c, "ps"), "sleep 20") })
	n.removeAll()
	n.clean()
}

// TestExecOfInvalidCommandExits126Or127 has no process come of an exec: there is an exit code, as
// with cri-dockerd, and the reason in the output. A probe whose command is not there
// fails, and is not as if there had been no answer.
func TestExecOfInvalidCommandExits126Or127(t *testing.T) {
	n := newNode(t)
	_, c := n.sleeper("norun", "exec sleep 1000", runtimeapi.NamespaceMode_CONTAINER)
	for _, cmd := range []string{"/nosuch", "nosuch", "/etc", "/etc/passwd"} {
		for range 5 {
			r, err := n.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{cmd}, Timeout: 10})
			if err != nil || r.GetExitCode() != 126 && r.GetExitCode() != 127 || !strings.Contains(string(r.GetStdout())+string(r.GetStderr()), cmd) {
				t.Errorf("%s: %v, %v; want 126 or 127 and the reason", cmd, r, err)
			}
		}
	}
	n.removeAll()
	n.clean()
}

// TestExecWithBackgroundChildReturnsAtOnce has a command end while a child of its keeps the output.
func TestExecWithBackgroundChildReturnsAtOnce(t *testing.T) {
	n := newNode(t)
	_, c := n.sleeper("child", "exec sleep 1000", runtimeapi.NamespaceMode_CONTAINER)
	for _, timeout := range []int64{0, 1, 5} {
		start := time.Now()
		r, err := n.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"sh", "-c", "sleep 60 & echo started; exit 7"}, Timeout: timeout})
		if err != nil || r.GetExitCode() != 7 || string(r.GetStdout()) != "started\n" || time.Since(start) > 8*time.Second {
			t.Errorf("timeout %d: %v, %v after %v; want 7 at once", timeout, r, err, time.Since(start))
		}
	}
	if got := strings.Count(n.exec(c, "ps"), "sleep 60"); got != 3 {
		t.Errorf("%d children live on, want all 3", got)
	}
	for protocol := range clients {
		within(t, 10*time.Second, protocol, func() {
			s := n.execAs(t, protocol, c, "sleep 61 & echo started; exit 7", false)
			out, _ := io.ReadAll(s.stdout)
			if end := s.ending(); string(out) != "started\n" || end != "7" {
				t.Errorf("%s: %q, then %s; want exit code 7", protocol, out, end)
			}
		})
	}
	n.removeAll()
	n.clean()
}

// TestExecLeavesNoZombies has commands run out of time, and their clients go, in a
// container whose first process reaps nothing.
func TestExecLeavesNoZombies(t *testing.T) {
	n := newNode(t)
	_, c := n.sleeper("zombies", "exec sleep 1000", runtimeapi.NamespaceMode_CONTAINER)
	scripts := map[string]string{
		"alone":  "exec sleep 60",
		"child":  "sleep 60; true",
		"pipe":   "sleep 60 | cat",
		"setsid": "setsid sleep 60; true",
		"deep":   `sh -c "sh -c 'sleep 60; true'; true"; true`,
		"many":   "sleep 60 & sleep 60 & sleep 60 & wait; true",
	}
	check := func(what string) {
		t.Helper()
		n.until(5*time.Second, what+": processes are left", func() bool { return !strings.Contains(n.exec(c, "ps"), "sleep 60") })
		count := func() (zombies int) {
			for line := range strings.Lines(n.exec(c, "sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null; true")) {
				if strings.Contains(line, ") Z ") {
					zombies++
				}
			}
			return zombies
		}
		zombies := count()
		for end := time.Now().Add(2 * time.Second); zombies > 0 && time.Now().Before(end); zombies = count() {
			time.Sleep(50 * time.Millisecond) // one that has just ended is about to be reaped
		}
		if zombies > 0 {
			t.Errorf("%s: %d zombies", what, zombies)
			if err := n.docker.ContainerRestart(context.Background(), c, container.StopOptions{Timeout: new(int)}); err != nil {
				t.Fatal(err)
			}
			n.until(5*time.Second, "the container does not run again", func() bool {
				_, err := n.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"true"}, Timeout: 5})
				return err == nil
			})
		}
	}
	for what, script := range scripts {
		for range 3 {
			// On a busy machine Docker may not have started the command within the second.
			n.until(time.Minute, what+" does not time out", func() bool {
				_, err := n.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"sh", "-c", script}, Timeout: 1})
				if code := status.Code(err); code != codes.DeadlineExceeded && code != codes.Unavailable {
					t.Fatalf("%s: %v, want DeadlineExceeded", what, err)
				}
				return status.Code(err) == codes.DeadlineExceeded
			})
		}
		check(what + ", timeout")
		for protocol := range clients {
			s := n.execAs(t, protocol, c, "echo begun; "+script, false)
			if _, err := io.ReadFull(s.stdout, make([]byte, 6)); err != nil {
				t.Fatal(err)
			}
			s.Close()
		}
		check(what + ", client gone")
	}
	n.removeAll()
	n.clean()
}
