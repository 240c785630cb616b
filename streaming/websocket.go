package streaming

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// tunnelProtocol is what clients of port-forward ask for over WebSocket: the
// messages are the bytes of a SPDY connection (KEP-4006).
const tunnelProtocol = "SPDY/3.1+" + portforward.ProtocolV1Name

// translator serves what today's clients speak over WebSocket (KEP-4006), and
// leaves all else to next. The library knows SPDY, and of WebSocket a protocol
// that cannot tell the end of stdin, which those clients refuse.
type translator struct {
	next   http.Handler
	inside *inside // where next is served to ourselves
}

func (t translator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer finish(r.Context())
	switch {
	case wsstream.IsWebSocketRequestWithTunnelingProtocol(r):
		t.tunnel(w, r)
	case wsstream.IsWebSocketRequestWithStreamCloseProtocol(r):
		t.channels(w, r)
	default:
		t.next.ServeHTTP(w, r)
	}
}

// tunnel carries the SPDY connection that comes in a WebSocket to next.
func (t translator) tunnel(w http.ResponseWriter, r *http.Request) {
	conn, ok := t.upgrade(w, r, portforward.ProtocolV1Name)
	if !ok {
		return
	}
	defer conn.Close()
	websocket.Server{
		Handshake: func(config *websocket.Config, _ *http.Request) error {
			if !slices.Contains(config.Protocol, tunnelProtocol) {
				return fmt.Errorf("of the protocols %v none is %s", config.Protocol, tunnelProtocol)
			}
			config.Protocol = []string{tunnelProtocol}
			return nil
		},
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			var both sync.WaitGroup
			both.Go(func() {
				defer ws.Close()
				io.Copy(ws, conn) //nolint:errcheck // a connection that breaks has ended
			})
			both.Go(func() {
				defer conn.Close()
				io.Copy(conn, ws) //nolint:errcheck // a connection that breaks has ended
			})
			both.Wait()
		},
	}.ServeHTTP(w, r)
}

// The channels of an exec or attach over WebSocket, by number.
const (
	stdin = iota
	stdout
	stderr
	status
	resize
)

// channels carries the streams of an exec or attach between the channels of a
// WebSocket and next.
func (t translator) channels(w http.ResponseWriter, r *http.Request) {
	raw, ok := t.upgrade(w, r, remotecommand.StreamProtocolV4Name)
	if !ok {
		return
	}
	conn, err := spdy.NewClientConnection(raw)
	if err != nil {
		raw.Close()
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	asked := r.URL.Query()
	kinds := make([]wsstream.ChannelType, resize+1)
	kinds[status], kinds[resize] = wsstream.WriteChannel, wsstream.ReadChannel
	for channel, kind := range map[int]wsstream.ChannelType{stdin: wsstream.ReadChannel, stdout: wsstream.WriteChannel, stderr: wsstream.WriteChannel} {
		if kinds[channel] = wsstream.IgnoreChannel; asked.Has(streamNames[channel]) {
			kinds[channel] = kind
		}
	}
	ws := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: kinds},
	})
	_, client, err := ws.Open(w, r)
	if err != nil {
		return // the client has been told
	}
	defer ws.Close()

	streams := make([]httpstream.Stream, len(kinds))
	for _, channel := range []int{status, stdin, stdout, stderr, resize} {
		if channel != status && !asked.Has(streamNames[channel]) {
			continue
		}
		stream, err := conn.CreateStream(http.Header{remotecommand.StreamType: {streamNames[channel]}})
		if err != nil {
			return // next has gone, as it does when its token is not used in time
		}
		streams[channel] = stream
	}
	if streams[stdin] != nil {
		go func() {
			io.Copy(streams[stdin], client[stdin]) //nolint:errcheck // either side may go
			streams[stdin].Close()                 // its other direction stays
		}()
	}
	if streams[resize] != nil {
		go func() {
			io.Copy(streams[resize], client[resize]) //nolint:errcheck // either side may go
			streams[resize].Close()
		}()
	}
	defer context.AfterFunc(r.Context(), func() { conn.Close() })() // the client has gone
	var output sync.WaitGroup
	for _, channel := range []int{stdout, stderr, status} {
		if streams[channel] != nil {
			output.Go(func() {
				if _, err := io.Copy(client[channel], streams[channel]); err != nil {
					conn.Close() // what is left of the others cannot be passed on either
				}
			})
		}
	}
	output.Wait()
}

// streamNames are the library's names of the streams by channel, and the
// parameters of a URL that tell which of them an exec or attach has.
var streamNames = map[int]string{
	stdin: remotecommand.StreamTypeStdin, stdout: remotecommand.StreamTypeStdout, stderr: remotecommand.StreamTypeStderr,
	status: remotecommand.StreamTypeError, resize: remotecommand.StreamTypeResize,
}

// tell writes into the URL of an exec or attach which streams it has.
func tell(at string, hasStdin, hasStdout, hasStderr, tty bool) string {
	u, err := url.Parse(at)
	if err != nil {
		return at
	}
	q := url.Values{}
	for channel, has := range map[int]bool{stdin: hasStdin, stdout: hasStdout, stderr: hasStderr && !tty, resize: tty} {
		if has {
			q.Set(streamNames[channel], "1")
		}
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// upgrade asks next for a SPDY connection on behalf of r. If it refuses, the client
// is told so as next has put it, and ok is false.
func (t translator) upgrade(w http.ResponseWriter, r *http.Request, protocol string) (_ net.Conn, ok bool) {
	conn, err := t.inside.dial(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return nil, false
	}
	ask := &http.Request{Method: http.MethodPost, URL: r.URL, Host: r.Host, Header: http.Header{
		httpstream.HeaderConnection:      {httpstream.HeaderUpgrade},
		httpstream.HeaderUpgrade:         {spdy.HeaderSpdy31},
		httpstream.HeaderProtocolVersion: {protocol},
	}}
	from := bufio.NewReader(conn)
	err = ask.Write(conn)
	var answer *http.Response
	if err == nil {
		answer, err = http.ReadResponse(from, ask)
	}
	if err != nil {
		conn.Close()
		http.Error(w, err.Error(), http.StatusBadGateway)
		return nil, false
	}
	if answer.StatusCode != http.StatusSwitchingProtocols {
		defer conn.Close()
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 1024)) // as much as there is
		http.Error(w, strings.TrimSpace(string(text)), answer.StatusCode)
		return nil, false
	}
	return buffered{conn, from}, true
}

// buffered is a connection of which something has been read already.
type buffered struct {
	net.Conn
	from *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.from.Read(p) }

// inside is a listener that only this process can dial.
type inside struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newInside() *inside {
	return &inside{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *inside) dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	outer, _ := ctx.Value(clientKey{}).(*client)
	select {
	case l.conns <- newClient(theirs, outer):
		return ours, nil
	case <-l.done:
		return nil, errStopped
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept is of net.Listener.
func (l *inside) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close is of net.Listener.
func (l *inside) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr is of net.Listener.
func (l *inside) Addr() net.Addr { return &net.UnixAddr{Name: "inside", Net: "pipe"} }
