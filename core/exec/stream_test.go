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

// serve serves streams of room until t ends.
func serve(t *testing.T, room *exec.Service) *streaming.Server {
	t.Helper()
	s, err := streaming.Listen("", streaming.KeyPair{}, room)
	if err != nil {
		t.Fatal(err)
	}
	enginetest.Background(t, s.Run)
	return s
}

// A caller is a client that has its streams.
type caller struct {
	io.Reader              // stdout
	stdin     func() error // closes stdin only
	say       func() error // closes the connection as the protocol has it
	conn      net.Conn     // what is below
}

// bySPDY dials a URL as kubelets and apiservers do.
func bySPDY(t *testing.T, at string, stdin, tty bool) caller {
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
	for head := []byte{}; !bytes.HasSuffix(head, []byte("\r\n\r\n")); { // and not a byte more
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
	c := caller{say: conn.Close, conn: raw}
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
			c.stdin = stream.Close
		}
	}
	return c
}

// byWebSocket dials a URL as kubectl does.
func byWebSocket(t *testing.T, at string, _, _ bool) caller {
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
	half := func() error { _, err := ws.Write([]byte{255, 0}); return err }
	return caller{Reader: out, stdin: half, say: func() error { return ws.WriteClose(1000) }, conn: raw}
}

func host(at string) string {
	rest, _, _ := strings.Cut(strings.TrimPrefix(at, "http://"), "/")
	return rest
}

// A killer counts the signals that processes get. What does not care goes on
// until it is killed.
type killer struct {
	e *enginetest.Engine

	mu   sync.Mutex // guards following
	pids []string   // session by process
	sent []unix.Signal
}

func (k *killer) pid(session string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if at := slices.Index(k.pids, session); at >= 0 {
		return at + 1<<22
	}
	k.pids = append(k.pids, session)
	return len(k.pids) - 1 + 1<<22
}

func (k *killer) signal(_ string, pid int, signal unix.Signal) error {
	k.mu.Lock()
	session := k.pids[pid-1<<22]
	k.sent = append(k.sent, signal)
	k.mu.Unlock()
	for _, s := range k.e.Execs() {
		if s.ID == session && s.Running && (signal == unix.SIGKILL || s.Order.Cmd[0] != "stubborn") {
			k.e.EndExec(session, 128+int(signal))
		}
	}
	return nil
}

func (k *killer) signals() []unix.Signal {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.sent)
}

// What a client leaves behind that goes, in whatever way, is ended.
func TestAbandoned(t *testing.T) {
	t.Parallel()
	clients := map[string]func(t *testing.T, at string, stdin, tty bool) caller{"SPDY": bySPDY, "WebSocket": byWebSocket}
	goes := map[string]func(c caller) error{
		"breaks": func(c caller) error { return c.conn.Close() },
		"is reset": func(c caller) error {
			if err := c.conn.(*net.TCPConn).SetLinger(0); err != nil {
				return err
			}
			return c.conn.Close()
		},
		"says goodbye": func(c caller) error { return c.say() },
	}
	for protocol, dial := range clients {
		for how, leave := range goes {
			for _, command := range []string{"prints", "silent", "stubborn"} {
				for _, streams := range []string{"stdout", "stdin", "terminal"} {
					tty, stdin := streams == "terminal", streams != "stdout"
					if command == "stubborn" && (!tty || how != "breaks") {
						continue
					}
					t.Run(strings.Join([]string{protocol, how, command, streams}, "/"), func(t *testing.T) {
						t.Parallel()
						room, e, _, id := newRoom(t)
						k := &killer{e: e}
						e.PID = k.pid
						room.OnSignal(k.signal)
						silent := func(p *enginetest.Process) int {
							_, _ = io.WriteString(p.Stdout, "begun\n")
							<-p.Context().Done()
							return 1
						}
						e.Program("silent", silent)
						e.Program("stubborn", silent)
						e.Program("prints", func(p *enginetest.Process) int {
							for p.Context().Err() == nil {
								_, _ = io.WriteString(p.Stdout, "begun\n") // nobody tells it that nobody reads
								time.Sleep(10 * time.Millisecond)
							}
							return 1
						})
						told, err := serve(t, room).Exec(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{command}, Stdin: stdin, Stdout: true, Tty: tty})
						if err != nil {
							t.Fatal(err)
						}
						c := dial(t, told.GetUrl(), stdin, tty)
						defer c.conn.Close()
						if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
							t.Fatal(err)
						}
						if stdin { // it may be at its end, and the command goes on
							if err := c.stdin(); err != nil {
								t.Fatal(err)
							}
							time.Sleep(100 * time.Millisecond)
						}
						if got := k.signals(); len(got) > 0 || !running(e) {
							t.Fatalf("the command is sent %v while its client is there", got)
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
						if got := k.signals(); !slices.Equal(got, want) {
							t.Errorf("it is sent %v, want %v", got, want)
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

// When the daemon ends, so does what it has a client for.
func TestStoppedWhileAttended(t *testing.T) {
	t.Parallel()
	room, e, _, id := newRoom(t)
	k := &killer{e: e}
	e.PID = k.pid
	room.OnSignal(k.signal)
	s, err := streaming.Listen("", streaming.KeyPair{}, room)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	told, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo begun; sleep 1000"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	c := bySPDY(t, told.GetUrl(), false, false)
	if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if running(e) {
		t.Error("the server has ended before the command")
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Error(err)
	}
}

// stacks counts the goroutines in which a function is being called.
func stacks(function string) int {
	text := make([]byte, 16<<20)
	return strings.Count(string(text[:runtime.Stack(text, true)]), function+"(")
}

// A client that has stopped reading holds up neither the container nor anything
// here.
func TestAStalledAttachIsCut(t *testing.T) {
	t.Parallel()
	for _, dial := range []func(t *testing.T, at string, stdin, tty bool) caller{bySPDY, byWebSocket} {
		room, _, _, id := newRoom(t, func(p *enginetest.Process) int {
			line := bytes.Repeat([]byte("x"), 16<<10)
			for range 4096 {
				if _, err := p.Stdout.Write(line); err != nil || p.Context().Err() != nil {
					return 1
				}
				time.Sleep(50 * time.Microsecond)
			}
			<-p.Context().Done()
			return 0
		})
		told, err := serve(t, room).Attach(&runtimeapi.AttachRequest{ContainerId: id, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		c := dial(t, told.GetUrl(), false, false)
		defer c.conn.Close()
		if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
	}
	// Goroutines of parallel tests are counted too; those tests end in less time than a client
	// that does not read is waited for.
	for limit := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		left := 0
		for _, function := range []string{"remotecommand.ServeAttach", "streaming.(*Buffer).hand", "streaming.translator.channels"} {
			left += stacks(function)
		}
		if left == 0 {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%d goroutines wait for clients that do not read", left)
		}
	}
}

// A pod that resets a connection has ended that one, and not all that a client
// forwards: kubectl gives up at the first word of an error.
func TestPortForwardTakesAResetForAnEnd(t *testing.T) {
	t.Parallel()
	room, _, c, _ := newRoom(t)
	said := labels.Set{Kind: labels.Sandbox, Config: `{"metadata":{"name":"web","namespace":"ns","uid":"u"}}`}
	made, err := c.ContainerCreate(t.Context(), &container.Config{Image: "server", Cmd: []string{"serve"}, Labels: said.Encode()}, nil, nil, nil, "k8s_POD_web_ns_u_0")
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
			_ = conn.(*net.TCPConn).SetLinger(0) // what is not read is answered with a reset
			conn.Close()
		}
	}()
	room.OnDial(func() (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) })
	forward := func() error {
		ours, theirs := net.Pipe()
		defer ours.Close()
		go ours.Write(make([]byte, 1000))
		return room.PortForward(t.Context(), made.ID, 80, theirs)
	}
	enginetest.Until(t, "the sandbox does not get ready", func() bool { return forward() == nil })
	for range 3 {
		if err := forward(); err != nil {
			t.Errorf("a reset: %v, want the end of the connection", err)
		}
	}
	l.Close()
	if err := forward(); err == nil {
		t.Error("nobody listens, and it is no error")
	}
}

// What cannot be run exits with 126 or 127, and Docker's reason is in its output.
func TestExecOfWhatCannotBeRun(t *testing.T) {
	t.Parallel()
	room, _, _, id := newRoom(t)
	var out bytes.Buffer
	err := room.Exec(t.Context(), id, []string{"missing"}, nil, closer{&out}, nil, false, nil)
	//nolint:errorlint // this is how cri-streaming looks at it
	if e, ok := err.(utilexec.ExitError); !ok || e.ExitStatus() != 126 && e.ExitStatus() != 127 || !strings.Contains(out.String(), "not found") {
		t.Errorf("%v with the output %q, want 126 or 127 and the reason", err, out.String())
	}
}

type closer struct{ io.Writer }

func (closer) Close() error { return nil }

// An attach or exec that Docker does not answer ends with its client.
func TestStreamsEndWhenDockerHangs(t *testing.T) {
	t.Parallel()
	for route, call := range map[string]func(*exec.Service, context.Context, string) error{
		"POST /exec/{id}/start": func(room *exec.Service, ctx context.Context, id string) error {
			return room.Exec(ctx, id, []string{"sleep", "1000"}, nil, closer{io.Discard}, nil, false, nil)
		},
		"POST /containers/{id}/attach": func(room *exec.Service, ctx context.Context, id string) error {
			return room.Attach(ctx, id, nil, closer{io.Discard}, nil, false, nil)
		},
	} {
		t.Run(route, func(t *testing.T) {
			room, e, _, id := newRoom(t)
			release := e.Hang(route)
			defer release()
			ctx, hangUp := context.WithCancel(t.Context())
			e.On(route, hangUp)
			done := make(chan error, 1)
			go func() { done <- call(room, ctx, id) }()
			select {
			case err := <-done:
				if err == nil {
					t.Error("it is a success")
				}
			case <-time.After(enginetest.Patience):
				t.Fatal("it goes on after its client has gone")
			}
		})
	}
}
