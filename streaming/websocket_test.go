package streaming

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// echoRuntime sends back what it receives.
type echoRuntime struct {
	hungUp chan struct{} // closed at the end of the resize stream
	sizes  chan remotecommand.TerminalSize
}

func (e echoRuntime) Exec(_ context.Context, _ string, command []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	if tty {
		for size := range resize {
			e.sizes <- size
		}
		close(e.hungUp)
		return nil
	}
	if errs != nil {
		io.WriteString(errs, strings.Join(command, " "))
	}
	if in != nil {
		_, err := io.Copy(out, in)
		return err
	}
	return nil
}

func (e echoRuntime) Attach(ctx context.Context, id string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return e.Exec(ctx, id, []string{"attached"}, in, out, errs, tty, resize)
}

func (e echoRuntime) PortForward(_ context.Context, _ string, port int32, stream io.ReadWriteCloser) error {
	if err := binary.Write(stream, binary.BigEndian, port); err != nil {
		return err
	}
	_, err := io.Copy(stream, stream)
	return err
}

// serve runs a Server of e until the test ends.
func serve(t *testing.T, e echoRuntime, pair TLSFiles) *Server {
	t.Helper()
	s, err := Listen("", pair, e)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// dial opens a WebSocket.
func dial(at, protocol string) (*websocket.Conn, error) {
	ws, err := websocket.Dial(strings.Replace(at, "http", "ws", 1), protocol, "http://127.0.0.1")
	if err == nil {
		ws.PayloadType = websocket.BinaryFrame
		err = ws.SetDeadline(time.Now().Add(20 * time.Second))
	}
	return ws, err
}

// received returns what comes on each channel until the server closes the connection.
func received(ws *websocket.Conn) map[byte]string {
	got := map[byte]string{}
	for {
		var message []byte
		if err := websocket.Message.Receive(ws, &message); err != nil {
			return got
		}
		if len(message) > 0 {
			got[message[0]] += string(message[1:])
		}
	}
}

func TestWebSocketPassesEndOfStdin(t *testing.T) {
	s := serve(t, echoRuntime{}, TLSFiles{})
	exec, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"cat", "-"}, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	attach, err := s.Attach(&runtimeapi.AttachRequest{ContainerId: "c", Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	for at, stderr := range map[string]string{exec.Url: "cat -", attach.Url: ""} {
		ws, err := dial(at, "v5.channel.k8s.io")
		if err != nil {
			t.Fatal(err)
		}
		const much = 200
		var want strings.Builder
		go func() {
			for range much {
				ws.Write(append([]byte{stdinChannel}, bytes.Repeat([]byte("x"), 4096)...))
			}
			ws.Write([]byte{255, stdinChannel})
		}()
		want.WriteString(strings.Repeat("x", 4096*much))
		got := received(ws)
		if got[stdoutChannel] != want.String() || got[stderrChannel] != stderr || !strings.Contains(got[statusChannel], "Success") {
			t.Errorf("%d bytes out, %q, %q", len(got[stdoutChannel]), got[stderrChannel], got[statusChannel])
		}
		ws.Close()
		if _, err := dial(at, "v5.channel.k8s.io"); err == nil {
			t.Error("a URL was accepted twice")
		}
	}
}

func TestWebSocketCloseEndsResizeStream(t *testing.T) {
	e := echoRuntime{make(chan struct{}), make(chan remotecommand.TerminalSize, 1)}
	s := serve(t, e, TLSFiles{})
	exec, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"sh"}, Stdin: true, Stdout: true, Tty: true})
	if err != nil {
		t.Fatal(err)
	}
	ws, err := dial(exec.Url, "v5.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ws.Write(append([]byte{resizeChannel}, `{"Width":80,"Height":25}`...)); err != nil {
		t.Fatal(err)
	}
	if size := <-e.sizes; size.Width != 80 || size.Height != 25 {
		t.Errorf("%+v", size)
	}
	ws.Close()
	select {
	case <-e.hungUp:
	case <-time.After(10 * time.Second):
		t.Error("the resize stream of the command does not end after its client has gone")
	}
}

// dialTunnel opens a port-forward like kubectl: SPDY in the messages of a WebSocket.
func dialTunnel(t *testing.T, s *Server) httpstream.Connection {
	t.Helper()
	forward, err := s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "s", Port: []int32{80}})
	if err != nil {
		t.Fatal(err)
	}
	ws, err := dial(forward.Url, tunnelProtocol)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := spdy.NewClientConnection(ws)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestPortForwardThroughWebSocket(t *testing.T) {
	s := serve(t, echoRuntime{}, TLSFiles{})
	conn := dialTunnel(t, s)
	defer conn.Close()
	for _, port := range []int32{80, 8080} {
		headers := http.Header{portforward.PortHeader: {map[int32]string{80: "80", 8080: "8080"}[port]}, portforward.PortForwardRequestIDHeader: {"1"}}
		headers.Set(portforward.StreamType, portforward.StreamTypeError)
		if _, err := conn.CreateStream(headers); err != nil {
			t.Fatal(err)
		}
		headers.Set(portforward.StreamType, portforward.StreamTypeData)
		stream, err := conn.CreateStream(headers)
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Repeat([]byte("0123456789"), 30000)
		go func() {
			stream.Write(want)
			stream.Close()
		}()
		var to int32
		if err := binary.Read(stream, binary.BigEndian, &to); err != nil || to != port {
			t.Errorf("%d, %v; want %d", to, err, port)
		}
		if got, err := io.ReadAll(stream); !bytes.Equal(got, want) || err != nil {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
}

// The library gives a port-forward a context that never ends; the server must end it.
func TestPortForwardEndsWithServer(t *testing.T) {
	e := waitingRuntime{called: make(chan struct{})}
	s, err := Listen("", TLSFiles{}, e)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	conn := dialTunnel(t, s)
	for _, kind := range []string{portforward.StreamTypeError, portforward.StreamTypeData} {
		if _, err := conn.CreateStream(http.Header{portforward.StreamType: {kind}, portforward.PortHeader: {"80"}, portforward.PortForwardRequestIDHeader: {"1"}}); err != nil {
			t.Fatal(err)
		}
	}
	<-e.called
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	select {
	case <-conn.CloseChan():
	case <-time.After(10 * time.Second):
		t.Error("the connection of the client is not closed")
	}
}

// waitingRuntime has port-forwards that wait for the end of their context.
type waitingRuntime struct {
	echoRuntime
	called chan struct{}
}

func (w waitingRuntime) PortForward(ctx context.Context, _ string, _ int32, _ io.ReadWriteCloser) error {
	close(w.called)
	<-ctx.Done()
	return ctx.Err()
}

func TestWebSocketWithoutTokenIsNotFound(t *testing.T) {
	s := serve(t, echoRuntime{}, TLSFiles{})
	for path, protocol := range map[string]string{"exec/none?stdout=1": "v5.channel.k8s.io", "portforward/none": tunnelProtocol} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL()+"/"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==", "Sec-WebSocket-Protocol": protocol, "Origin": "http://127.0.0.1"} {
			request.Header.Set(k, v)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, response.Status)
		}
	}
}

func TestClosedPipeListenerRefusesDialAndAccept(t *testing.T) {
	l := newPipeListener()
	l.Close()
	if _, err := l.dial(t.Context()); err == nil {
		t.Error("a closed listener was dialled")
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

func TestTLSCertificateIsReloaded(t *testing.T) {
	pair := TLSFiles{Cert: filepath.Join(t.TempDir(), "crt"), Key: filepath.Join(t.TempDir(), "key")}
	if _, err := Listen("", pair, nil); err == nil {
		t.Error("a missing certificate is no error")
	}
	certificate(t, pair)
	s := serve(t, echoRuntime{}, pair)
	if !strings.HasPrefix(s.URL(), "https://127.0.0.1:") {
		t.Error(s.URL())
	}
	for range 2 {
		text, err := os.ReadFile(pair.Cert)
		if err != nil {
			t.Fatal(err)
		}
		trusted := x509.NewCertPool()
		trusted.AppendCertsFromPEM(text)
		exec, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"ls"}, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		config, err := websocket.NewConfig(strings.Replace(exec.Url, "https", "wss", 1), "http://127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		config.Protocol, config.TlsConfig = []string{"v5.channel.k8s.io"}, &tls.Config{RootCAs: trusted}
		ws, err := config.DialContext(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := received(ws); got[stderrChannel] != "ls" {
			t.Errorf("%q", got)
		}
		ws.Close()
		certificate(t, pair) // the next connection uses the new one
	}
}

// certificate makes the files of a pair.
func certificate(t *testing.T, pair TLSFiles) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{pair.Cert: {Type: "CERTIFICATE", Bytes: der}, pair.Key: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
