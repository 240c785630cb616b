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

// echo answers with what it is sent.
type echo struct {
	hungUp chan struct{} // closed when the sizes of a terminal have ended
	sizes  chan remotecommand.TerminalSize
}

func (e echo) Exec(_ context.Context, _ string, command []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
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

func (e echo) Attach(ctx context.Context, id string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return e.Exec(ctx, id, []string{"attached"}, in, out, errs, tty, resize)
}

func (e echo) PortForward(_ context.Context, _ string, port int32, stream io.ReadWriteCloser) error {
	if err := binary.Write(stream, binary.BigEndian, port); err != nil {
		return err
	}
	_, err := io.Copy(stream, stream)
	return err
}

// serve runs a Server of e for the test.
func serve(t *testing.T, e echo, pair KeyPair) *Server {
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

// received collects what comes on each channel until the server hangs up.
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

func TestWebSocketTellsTheEndOfStdin(t *testing.T) {
	s := serve(t, echo{}, KeyPair{})
	exec, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"cat", "-"}, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	attach, err := s.Attach(&runtimeapi.AttachRequest{ContainerId: "c", Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	for at, said := range map[string]string{exec.Url: "cat -", attach.Url: ""} {
		ws, err := dial(at, "v5.channel.k8s.io")
		if err != nil {
			t.Fatal(err)
		}
		const much = 200
		var want strings.Builder
		go func() {
			for range much {
				ws.Write(append([]byte{stdin}, bytes.Repeat([]byte("x"), 4096)...))
			}
			ws.Write([]byte{255, stdin})
		}()
		want.WriteString(strings.Repeat("x", 4096*much))
		got := received(ws)
		if got[stdout] != want.String() || got[stderr] != said || !strings.Contains(got[status], "Success") {
			t.Errorf("%d bytes out, %q, %q", len(got[stdout]), got[stderr], got[status])
		}
		ws.Close()
		if _, err := dial(at, "v5.channel.k8s.io"); err == nil {
			t.Error("a URL is good for two uses")
		}
	}
}

func TestWebSocketClientGoes(t *testing.T) {
	e := echo{make(chan struct{}), make(chan remotecommand.TerminalSize, 1)}
	s := serve(t, e, KeyPair{})
	exec, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"sh"}, Stdin: true, Stdout: true, Tty: true})
	if err != nil {
		t.Fatal(err)
	}
	ws, err := dial(exec.Url, "v5.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ws.Write(append([]byte{resize}, `{"Width":80,"Height":25}`...)); err != nil {
		t.Fatal(err)
	}
	if size := <-e.sizes; size.Width != 80 || size.Height != 25 {
		t.Errorf("%+v", size)
	}
	ws.Close()
	select {
	case <-e.hungUp:
	case <-time.After(10 * time.Second):
		t.Error("the command is not told that its client has gone")
	}
}

// tunnel connects to a pod's ports as kubectl does: with SPDY inside a WebSocket.
func tunnel(t *testing.T, s *Server) httpstream.Connection {
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
	s := serve(t, echo{}, KeyPair{})
	conn := tunnel(t, s)
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

// A port-forward does not outlive the server, though the library gives it no
// context that ends.
func TestPortForwardEndsWithTheServer(t *testing.T) {
	e := waits{begun: make(chan struct{})}
	s, err := Listen("", KeyPair{}, e)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	conn := tunnel(t, s)
	for _, kind := range []string{portforward.StreamTypeError, portforward.StreamTypeData} {
		if _, err := conn.CreateStream(http.Header{portforward.StreamType: {kind}, portforward.PortHeader: {"80"}, portforward.PortForwardRequestIDHeader: {"1"}}); err != nil {
			t.Fatal(err)
		}
	}
	<-e.begun
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	select {
	case <-conn.CloseChan():
	case <-time.After(10 * time.Second):
		t.Error("the client is not told")
	}
}

// waits has port-forwards that wait for the end of their context.
type waits struct {
	echo
	begun chan struct{}
}

func (w waits) PortForward(ctx context.Context, _ string, _ int32, _ io.ReadWriteCloser) error {
	close(w.begun)
	<-ctx.Done()
	return ctx.Err()
}

func TestWebSocketWithoutAToken(t *testing.T) {
	s := serve(t, echo{}, KeyPair{})
	for path, protocol := range map[string]string{"exec/none?stdout=1": "v5.channel.k8s.io", "portforward/none": tunnelProtocol} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL()+"/"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==", "Sec-WebSocket-Protocol": protocol, "Origin": "http://127.0.0.1"} {
			request.Header.Set(k, v)
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, answer.Status)
		}
	}
}

func TestInsideEnds(t *testing.T) {
	l := newInside()
	l.Close()
	if _, err := l.dial(t.Context()); err == nil {
		t.Error("a closed listener is dialled")
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

func TestTLS(t *testing.T) {
	pair := KeyPair{filepath.Join(t.TempDir(), "crt"), filepath.Join(t.TempDir(), "key")}
	if _, err := Listen("", pair, nil); err == nil {
		t.Error("a certificate that is not there is none")
	}
	certificate(t, pair)
	s := serve(t, echo{}, pair)
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
		if got := received(ws); got[stderr] != "ls" {
			t.Errorf("%q", got)
		}
		ws.Close()
		certificate(t, pair) // another one is taken from the next connection on
	}
}

// certificate makes the files of a pair.
func certificate(t *testing.T, pair KeyPair) {
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
