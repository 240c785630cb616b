package streaming

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	utilexec "k8s.io/utils/exec"
)

// A streamClient is a client of an exec or attach with stdin and stdout.
type streamClient struct {
	stdout     io.Reader
	status     io.Reader
	writeStdin func() error // sends a byte
}

// upgradeRequest returns the request of a SPDY client.
func upgradeRequest(t *testing.T, at string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, at, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{
		httpstream.HeaderConnection: {httpstream.HeaderUpgrade}, httpstream.HeaderUpgrade: {spdy.HeaderSpdy31},
		httpstream.HeaderProtocolVersion: {remotecommand.StreamProtocolV4Name},
	}
	return r
}

// overSPDY opens the streams of an exec or attach on conn.
func overSPDY(t *testing.T, conn net.Conn, at string) streamClient {
	t.Helper()
	if err := upgradeRequest(t, at).Write(conn); err != nil {
		t.Fatal(err)
	}
	for head := []byte{}; !bytes.HasSuffix(head, []byte("\r\n\r\n")); { // without reading ahead
		b := make([]byte, 1)
		if _, err := conn.Read(b); err != nil {
			t.Fatal(err)
		}
		head = append(head, b...)
	}
	session, err := spdy.NewClientConnection(conn)
	if err != nil {
		t.Fatal(err)
	}
	streams := map[string]httpstream.Stream{}
	for _, kind := range []string{remotecommand.StreamTypeError, remotecommand.StreamTypeStdin, remotecommand.StreamTypeStdout} {
		if streams[kind], err = session.CreateStream(http.Header{remotecommand.StreamType: {kind}}); err != nil {
			t.Fatal(err)
		}
	}
	return streamClient{streams[remotecommand.StreamTypeStdout], streams[remotecommand.StreamTypeError], func() error {
		_, err := streams[remotecommand.StreamTypeStdin].Write([]byte("x"))
		return err
	}}
}

// overWebSocket opens the channels of an exec or attach on conn.
func overWebSocket(t *testing.T, conn net.Conn, at string) streamClient {
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
	out, outWriter := io.Pipe()
	statusReader, statusWriter := io.Pipe()
	go func() {
		defer conn.Close()
		var text bytes.Buffer
		for {
			var message []byte
			if err := websocket.Message.Receive(ws, &message); err != nil {
				outWriter.Close()
				statusWriter.Write(text.Bytes())
				statusWriter.CloseWithError(err)
				return
			}
			switch {
			case len(message) == 0:
			case message[0] == stdoutChannel:
				outWriter.Write(message[1:])
			case message[0] == statusChannel:
				text.Write(message[1:])
			}
		}
	}()
	return streamClient{out, statusReader, func() error { _, err := ws.Write([]byte{stdinChannel, 'x'}); return err }}
}

var protocols = map[string]func(*testing.T, net.Conn, string) streamClient{"SPDY": overSPDY, "WebSocket": overWebSocket}

// readStatus reads the error stream: "Success", an exit code or a message.
func readStatus(status io.Reader) string {
	text, _ := io.ReadAll(status)
	var got struct {
		Status, Message string
		Details         struct{ Causes []struct{ Message string } }
	}
	if err := json.Unmarshal(text, &got); err != nil {
		return fmt.Sprintf("no status (%q)", text)
	}
	for _, cause := range got.Details.Causes {
		return cause.Message
	}
	return got.Status + got.Message
}

// printingCommands is a Runtime whose commands write size bytes and exit with 5.
type printingCommands struct {
	echoRuntime
	size  int
	ended chan struct{} // has an element for each command that has ended
}

func (p printingCommands) Exec(_ context.Context, _ string, _ []string, _ io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
	defer func() { p.ended <- struct{}{} }()
	for left := p.size; left > 0; left -= 32 << 10 {
		if _, err := out.Write(make([]byte, 32<<10)); err != nil {
			return err
		}
	}
	return utilexec.CodeExitError{Err: errors.New("exit status 5"), Code: 5}
}

// start runs a Server of a Runtime until stop is called or the test ends.
func start(t *testing.T, runtime Runtime) (s *Server, stop func()) {
	t.Helper()
	s, err := Listen("", TLSFiles{}, runtime)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return s, stop
}

func execURL(t *testing.T, s *Server) string {
	t.Helper()
	response, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"x"}, Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	return response.GetUrl()
}

// A client may still be sending, and reading slowly, when the command has ended.
func TestSlowClientGetsAllOutputAndExitCode(t *testing.T) {
	for name, open := range protocols {
		t.Run(name, func(t *testing.T) {
			runtime := printingCommands{size: 8 << 20, ended: make(chan struct{}, 1)}
			s, _ := start(t, runtime)
			conn, err := net.Dial("tcp", s.listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
				t.Fatal(err)
			}
			p := open(t, conn, execURL(t, s))
			got, ended := 0, false
			for buffer := make([]byte, 32<<10); ; {
				n, err := p.stdout.Read(buffer)
				got += n
				if err != nil {
					break
				}
				select {
				case <-runtime.ended:
					ended = true // the rest of the output is in the sockets
				default:
				}
				if ended {
					_ = p.writeStdin() // must not reset the connection
					time.Sleep(time.Millisecond)
				}
			}
			if status := readStatus(p.status); got != runtime.size || status != "5" {
				t.Errorf("got %d of %d bytes and the status %s, want all and exit code 5", got, runtime.size, status)
			}
		})
	}
}

// waitingCommands has execs and attaches that print something and wait for the end of
// their context.
type waitingCommands struct{ echoRuntime }

func (waitingCommands) Exec(ctx context.Context, _ string, _ []string, _ io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
	if _, err := io.WriteString(out, "ready\n"); err != nil {
		return err
	}
	<-ctx.Done()
	return nil // like a command that exits with 0
}

func (l waitingCommands) Attach(ctx context.Context, id string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return l.Exec(ctx, id, nil, in, out, errs, tty, resize)
}

func TestStopSendsClientsAFailure(t *testing.T) {
	for name, open := range protocols {
		for _, kind := range []string{"exec", "attach"} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				s, stop := start(t, waitingCommands{})
				at := execURL(t, s)
				if kind == "attach" {
					response, err := s.Attach(&runtimeapi.AttachRequest{ContainerId: "c", Stdin: true, Stdout: true})
					if err != nil {
						t.Fatal(err)
					}
					at = response.GetUrl()
				}
				conn, err := net.Dial("tcp", s.listener.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				p := open(t, conn, at)
				if _, err := io.ReadFull(p.stdout, make([]byte, 6)); err != nil {
					t.Fatal(err)
				}
				stopped := make(chan struct{})
				go func() { stop(); close(stopped) }()
				if status := readStatus(p.status); !strings.HasPrefix(status, "Failure") || !strings.Contains(status, "shutting down") {
					t.Errorf("the client gets the status %s, want a failure", status)
				}
				conn.Close()
				<-stopped
			})
		}
	}
}

func TestStopDoesNotWaitForClientThatDoesNotRead(t *testing.T) {
	s, stop := start(t, printingCommands{size: 64 << 20, ended: make(chan struct{}, 1)})
	conn, err := net.Dial("tcp", s.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	overSPDY(t, &blockedConn{conn, 2000}, execURL(t, s))
	started := time.Now()
	stop()
	if took := time.Since(started); took > stopGrace+5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// blockedConn is a connection of which only a limited number of bytes is read.
type blockedConn struct {
	net.Conn
	left int
}

func (b *blockedConn) Read(p []byte) (int, error) {
	if b.left <= 0 {
		select {} // as if the client had stopped
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// serveOnPipes runs a Server on connections within this process, which synctest requires.
func serveOnPipes(t *testing.T, runtime Runtime) (s *Server, dial func() net.Conn) {
	t.Helper()
	s, err := Listen("", TLSFiles{}, runtime)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.listener.Close(); err != nil {
		t.Fatal(err)
	}
	l := newPipeListener()
	s.pending.Listener = l
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, func() net.Conn {
		conn, err := l.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
}

// requireClosedWithin fails the test unless the server closes conn within d.
func requireClosedWithin(t *testing.T, conn net.Conn, d time.Duration, what string) {
	t.Helper()
	started := time.Now()
	if err := conn.SetReadDeadline(started.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) || time.Since(started) > d {
		t.Errorf("%s: the connection is open after %v", what, time.Since(started))
	}
}

func TestConnectionsWithoutTokenAreClosed(t *testing.T) {
	for name, send := range map[string]func(conn net.Conn){
		"silent": func(net.Conn) {},
		"idle": func(conn net.Conn) {
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		},
		"slow header": func(conn net.Conn) {
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n")
			for i := range 1000 {
				if _, err := fmt.Fprintf(conn, "X-%d: x\r\n", i); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		},
		"slow body": func(conn net.Conn) {
			io.WriteString(conn, "POST /exec/none HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n")
			for {
				if _, err := io.WriteString(conn, "x"); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		},
		"large header": func(conn net.Conn) {
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nX: ")
			for {
				if _, err := io.WriteString(conn, strings.Repeat("x", 1024)); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, dial := serveOnPipes(t, echoRuntime{})
				conn := dial()
				var sender sync.WaitGroup
				sender.Go(func() { send(conn) })
				requireClosedWithin(t, conn, requestTimeout+idleTimeout, name)
				conn.Close()
				sender.Wait()
			})
		})
	}
}

// A client may do nothing after the upgrade.
func TestConnectionWithoutStreamsIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, dial := serveOnPipes(t, echoRuntime{})
		conn := dial()
		defer conn.Close()
		if err := upgradeRequest(t, execURL(t, s)).Write(conn); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
			t.Fatal(response, err)
		}
		requireClosedWithin(t, conn, 35*time.Second, "no streams")
	})
}

func TestClientWithTokenIsServedBesideManyWithout(t *testing.T) {
	s, _ := start(t, echoRuntime{})
	var open []net.Conn
	for range maxPending + 200 {
		conn, err := net.Dial("tcp", s.listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		open = append(open, conn)
	}
	// The oldest are closed.
	for _, conn := range open[:100] {
		if err := conn.SetReadDeadline(time.Now().Add(requestTimeout / 2)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Fatalf("a connection without a token is open beside %d others: %v", len(open), err)
		}
	}
	conn, err := net.Dial("tcp", s.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p := overSPDY(t, conn, execURL(t, s))
	if err := p.writeStdin(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(p.stdout, make([]byte, 1)); err != nil {
		t.Errorf("a client with a token: %v", err)
	}
}

func TestErrorLogIsLimitedToOneLineASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines bytes.Buffer
		l := newErrorLog(slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelDebug})))
		for range 5 {
			for range 100 {
				l.Print("http: TLS handshake error")
			}
			time.Sleep(time.Second)
		}
		got := lines.String()
		if n := strings.Count(got, "level=DEBUG"); n != 5 || strings.Count(got, "\n") != 5 || !strings.Contains(got, "99") {
			t.Errorf("%d lines at debug level, want 5 that count 99 more each:\n%s", n, got)
		}
	})
}
