package exec_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"golang.org/x/net/websocket"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	utilexec "k8s.io/utils/exec"

	"berth/core/engine/enginetest"
	"berth/core/exec"
	"berth/core/labels"
	"berth/streaming"
)

// serve runs a streaming server of service until the test ends.
func serve(t *testing.T, service *exec.Service) *streaming.Server {
	t.Helper()
	s, err := streaming.Listen("", streaming.TLSFiles{}, service)
	if err != nil {
		t.Fatal(err)
	}
	enginetest.Background(t, s.Run)
	return s
}

// A streamClient is a client of an exec or attach.
type streamClient struct {
	io.Reader     // stdout
	closeStdin    func() error
	closeProtocol func() error // closes the connection as the protocol requires
	conn          net.Conn     // below the protocol
}

// dialSPDY opens the streams of a URL like a kubelet or an API server.
func dialSPDY(t *testing.T, at string, stdin, tty bool) streamClient {
	t.Helper()
	raw, err := net.Dial("tcp", host(at))
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, at, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header = http.Header{
		httpstream.HeaderConnection: {httpstream.HeaderUpgrade}, httpstream.HeaderUpgrade: {spdy.HeaderSpdy31},
		httpstream.HeaderProtocolVersion: {remotecommand.StreamProtocolV4Name},
	}
	if err := request.Write(raw); err != nil {
		t.Fatal(err)
	}
	for head := []byte{}; !bytes.HasSuffix(head, []byte("\r\n\r\n")); { // without reading ahead
		b := make([]byte, 1)
		if _, err := raw.Read(b); err != nil {
			t.Fatal(err)
		}
		head = append(head, b...)
	}
	conn, err := spdy.NewClientConnection(raw)
	if err != nil {
		t.Fatal(err)
	}
	c := streamClient{closeProtocol: conn.Close, conn: raw}
	kinds := []string{remotecommand.StreamTypeError, remotecommand.StreamTypeStdout}
	if stdin {
		kinds = append(kinds, remotecommand.StreamTypeStdin)
	}
	if tty {
		kinds = append(kinds, remotecommand.StreamTypeResize)
	}
	for _, kind := range kinds {
		stream, err := conn.CreateStream(http.Header{remotecommand.StreamType: {kind}})
		if err != nil {
			t.Fatal(err)
		}
		switch kind {
		case remotecommand.StreamTypeStdout:
			c.Reader = stream
		case remotecommand.StreamTypeStdin:
			c.closeStdin = stream.Close
		}
	}
	return c
}

// dialWebSocket opens the streams of a URL like kubectl.
func dialWebSocket(t *testing.T, at string, _, _ bool) streamClient {
	t.Helper()
	raw, err := net.Dial("tcp", host(at))
	if err != nil {
		t.Fatal(err)
	}
	config, err := websocket.NewConfig(strings.Replace(at, "http", "ws", 1), "http://127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{remotecommand.StreamProtocolV5Name}
	ws, err := websocket.NewClient(config, raw)
	if err != nil {
		t.Fatal(err)
	}
	ws.PayloadType = websocket.BinaryFrame
	out, in := io.Pipe()
	go func() {
		for {
			var message []byte
			if err := websocket.Message.Receive(ws, &message); err != nil {
				in.CloseWithError(err)
				return
			}
			if len(message) > 1 && message[0] == 1 {
				in.Write(message[1:])
			}
		}
	}()
	t.Cleanup(func() { out.Close() })
	closeStdin := func() error { _, err := ws.Write([]byte{255, 0}); return err }
	return streamClient{Reader: out, closeStdin: closeStdin, closeProtocol: func() error { return ws.WriteClose(1000) }, conn: raw}
}

func host(at string) string {
	rest, _, _ := strings.Cut(strings.TrimPrefix(at, "http://"), "/")
	return rest
}

// fakeSignals records signals to processes of the fake Engine and ends their execs; a command
// named stubborn ends only on SIGKILL.
type fakeSignals struct {
	e *enginetest.Engine

	mu   sync.Mutex // guards following
	pids []string   // exec session by pid - firstPID
	sent []unix.Signal
}

// firstPID is above /proc/sys/kernel/pid_max, so that no process of the node is signalled.
const firstPID = 1 << 22

func (f *fakeSignals) pid(session string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.Index(f.pids, session); i >= 0 {
		return firstPID + i
	}
	f.pids = append(f.pids, session)
	return firstPID + len(f.pids) - 1
}

func (f *fakeSignals) signal(_ string, pid int, signal unix.Signal) error {
	f.mu.Lock()
	session := f.pids[pid-firstPID]
	f.sent = append(f.sent, signal)
	f.mu.Unlock()
	for _, s := range f.e.Execs() {
		if s.ID == session && s.Running && (signal == unix.SIGKILL || s.Options.Cmd[0] != "stubborn") {
			f.e.EndExec(session, 128+int(signal))
		}
	}
	return nil
}

func (f *fakeSignals) signals() []unix.Signal {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.sent)
}

// However a client goes, its command is terminated.
func TestCommandIsTerminatedWhenClientGoes(t *testing.T) {
	t.Parallel()
	clients := map[string]func(t *testing.T, at string, stdin, tty bool) streamClient{"SPDY": dialSPDY, "WebSocket": dialWebSocket}
	departures := map[string]func(c streamClient) error{
		"breaks": func(c streamClient) error { return c.conn.Close() },
		"is reset": func(c streamClient) error {
			if err := c.conn.(*net.TCPConn).SetLinger(0); err != nil {
				return err
			}
			return c.conn.Close()
		},
		"closes": func(c streamClient) error { return c.closeProtocol() },
	}
	for protocol, dial := range clients {
		for how, leave := range departures {
			for _, command := range []string{"prints", "silent", "stubborn"} {
				for _, streams := range []string{"stdout", "stdin", "terminal"} {
					tty, stdin := streams == "terminal", streams != "stdout"
					if command == "stubborn" && (!tty || how != "breaks") {
						continue
					}
					t.Run(strings.Join([]string{protocol, how, command, streams}, "/"), func(t *testing.T) {
						t.Parallel()
						service, e, _, id := newService(t)
						signals := &fakeSignals{e: e}
						e.PID = signals.pid
						service.SetSignal(signals.signal)
						silent := func(p *enginetest.Process) int {
							_, _ = io.WriteString(p.Stdout, "begun\n")
							<-p.Context().Done()
							return 1
						}
						e.Program("silent", silent)
						e.Program("stubborn", silent)
						e.Program("prints", func(p *enginetest.Process) int {
							for p.Context().Err() == nil {
								_, _ = io.WriteString(p.Stdout, "begun\n") // does not notice that nobody reads
								time.Sleep(10 * time.Millisecond)
							}
							return 1
						})
						response, err := serve(t, service).Exec(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{command}, Stdin: stdin, Stdout: true, Tty: tty})
						if err != nil {
							t.Fatal(err)
						}
						c := dial(t, response.GetUrl(), stdin, tty)
						defer c.conn.Close()
						if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
							t.Fatal(err)
						}
						if stdin { // its end must not terminate the command
							if err := c.closeStdin(); err != nil {
								t.Fatal(err)
							}
							time.Sleep(100 * time.Millisecond)
						}
						if got := signals.signals(); len(got) > 0 || !running(e) {
							t.Fatalf("the command gets %v while its client is connected", got)
						}
						if err := leave(c); err != nil {
							t.Fatal(err)
						}
						enginetest.Until(t, "the command goes on", func() bool { return !running(e) })
						want := []unix.Signal{unix.SIGKILL}
						switch {
						case command == "stubborn":
							want = []unix.Signal{unix.SIGHUP, unix.SIGKILL}
						case tty:
							want = []unix.Signal{unix.SIGHUP}
						}
						if got := signals.signals(); !slices.Equal(got, want) {
							t.Errorf("the command gets %v, want %v", got, want)
						}
					})
				}
			}
		}
	}
}

func running(e *enginetest.Engine) bool {
	return slices.ContainsFunc(e.Execs(), func(s enginetest.ExecSession) bool { return s.Running })
}

func TestServerStopTerminatesCommands(t *testing.T) {
	t.Parallel()
	service, e, _, id := newService(t)
	signals := &fakeSignals{e: e}
	e.PID = signals.pid
	service.SetSignal(signals.signal)
	s, err := streaming.Listen("", streaming.TLSFiles{}, service)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	response, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo begun; sleep 1000"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	c := dialSPDY(t, response.GetUrl(), false, false)
	if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if running(e) {
		t.Error("Run returned before the command was terminated")
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Error(err)
	}
}

// stacks counts the goroutines in which each of the functions is being called, and returns the sum.
func stacks(functions ...string) (n int) {
	text := make([]byte, 1<<20)
	for {
		size := runtime.Stack(text, true)
		if size < len(text) {
			text = text[:size]
			break
		}
		text = make([]byte, 2*len(text))
	}
	for _, function := range functions {
		n += bytes.Count(text, []byte(function+"("))
	}
	return n
}

// attachOnce is a service that closes ended when its only Attach returns.
type attachOnce struct {
	*exec.Service
	ended chan struct{}
}

func (s attachOnce) Attach(ctx context.Context, id string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	defer close(s.ended)
	return s.Service.Attach(ctx, id, in, out, errs, tty, resize)
}

// A client that has stopped reading blocks neither the container nor a goroutine here.
func TestStalledAttachIsDisconnected(t *testing.T) {
	// Not parallel to other tests, because it counts goroutines of the whole process.
	for _, dial := range []func(t *testing.T, at string, stdin, tty bool) streamClient{dialSPDY, dialWebSocket} {
		ended := make(chan struct{})
		service, _, _, id := newService(t, func(p *enginetest.Process) int {
			line := bytes.Repeat([]byte("x"), 16<<10)
			for range 4096 {
				if _, err := p.Stdout.Write(line); err != nil || p.Context().Err() != nil {
					return 1
				}
				select {
				case <-ended: // more output would show nothing and costs CPU
					<-p.Context().Done()
					return 0
				case <-time.After(50 * time.Microsecond):
				}
			}
			<-p.Context().Done()
			return 0
		})
		server, err := streaming.Listen("", streaming.TLSFiles{}, attachOnce{service, ended})
		if err != nil {
			t.Fatal(err)
		}
		server.LingerTimeout = 100 * time.Millisecond
		enginetest.Background(t, server.Run)
		response, err := server.Attach(&runtimeapi.AttachRequest{ContainerId: id, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		c := dial(t, response.GetUrl(), false, false)
		defer c.conn.Close()
		if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
	}
	functions := []string{"remotecommand.ServeAttach", "streaming.(*Buffer).flushLoop", "streaming.translator.serveV5"}
	for limit := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		left := stacks(functions...)
		if left == 0 {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%d goroutines still wait for clients that do not read", left)
		}
	}
}

// kubectl ends the whole port-forward at the first error, so a reset of one connection must
// not be one.
func TestPortForwardReturnsNoErrorOnReset(t *testing.T) {
	t.Parallel()
	service, _, c, _ := newService(t)
	set := labels.Set{Kind: labels.Sandbox, Config: `{"metadata":{"name":"web","namespace":"ns","uid":"u"}}`}
	made, err := c.ContainerCreate(t.Context(), &container.Config{Image: "server", Cmd: []string{"serve"}, Labels: set.Encode()}, nil, nil, nil, "k8s_POD_web_ns_u_0")
	if err == nil {
		err = c.ContainerStart(t.Context(), made.ID, container.StartOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 1))
			_ = conn.(*net.TCPConn).SetLinger(0) // Close resets the connection
			conn.Close()
		}
	}()
	service.SetDial(func() (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) })
	forward := func() error {
		ours, theirs := net.Pipe()
		defer ours.Close()
		go ours.Write(make([]byte, 1000))
		return service.PortForward(t.Context(), made.ID, 80, theirs)
	}
	enginetest.Until(t, "the sandbox does not get ready", func() bool { return forward() == nil })
	for range 3 {
		if err := forward(); err != nil {
			t.Errorf("after a reset: %v, want nil", err)
		}
	}
	l.Close()
	if err := forward(); err == nil {
		t.Error("nothing listens, and it is no error")
	}
}

func TestExecOfMissingCommandExitsWith126Or127(t *testing.T) {
	t.Parallel()
	service, _, _, id := newService(t)
	var out bytes.Buffer
	err := service.Exec(t.Context(), id, []string{"missing"}, nil, closer{&out}, nil, false, nil)
	//nolint:errorlint // cri-streaming v0.37 does the same
	if e, ok := err.(utilexec.ExitError); !ok || e.ExitStatus() != 126 && e.ExitStatus() != 127 || !strings.Contains(out.String(), "not found") {
		t.Errorf("%v with the output %q, want 126 or 127 and the reason", err, out.String())
	}
}

type closer struct{ io.Writer }

func (closer) Close() error { return nil }

func TestStreamsEndWithClientWhenDockerHangs(t *testing.T) {
	t.Parallel()
	for route, call := range map[string]func(*exec.Service, context.Context, string) error{
		"POST /exec/{id}/start": func(service *exec.Service, ctx context.Context, id string) error {
			return service.Exec(ctx, id, []string{"sleep", "1000"}, nil, closer{io.Discard}, nil, false, nil)
		},
		"POST /containers/{id}/attach": func(service *exec.Service, ctx context.Context, id string) error {
			return service.Attach(ctx, id, nil, closer{io.Discard}, nil, false, nil)
		},
	} {
		t.Run(route, func(t *testing.T) {
			service, e, _, id := newService(t)
			release := e.Hang(route)
			defer release()
			ctx, cancel := context.WithCancel(t.Context())
			e.On(route, cancel)
			done := make(chan error, 1)
			go func() { done <- call(service, ctx, id) }()
			select {
			case err := <-done:
				if err == nil {
					t.Error("got nil, want an error")
				}
			case <-time.After(enginetest.WaitTimeout):
				t.Fatal("the call does not return after its client has gone")
			}
		})
	}
}
