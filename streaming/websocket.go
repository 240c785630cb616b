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

// KEP-4006 (https://kep.k8s.io/4006) moves the streams of kubectl from SPDY to WebSocket.
// cri-streaming v0.37 speaks SPDY and an older WebSocket protocol, which cannot signal the
// end of stdin and which these clients refuse. So each WebSocket request is served by a SPDY
// session of the library, at the other end of a pipe within this process:
//
//	client ── TCP ──> translator ── net.Pipe ──> the same http.Server ──> cri-streaming ──> Runtime
//	       WebSocket               SPDY/3.1
//
//	exec, attach:  protocol v5.channel.k8s.io; serveV5 copies between the channels of the
//	               WebSocket and the streams of the SPDY session
//	port-forward:  protocol SPDY/3.1+portforward.k8s.io; serveTunnel copies the bytes of the
//	               SPDY session, which the client opens itself, in and out of messages
//
// Each end of the path closes the next: the trackedConn of the pipe has that of the client
// as its parent, and so the context of the Runtime's call ends with the client.

// tunnelProtocol is the WebSocket protocol of port-forward.
const tunnelProtocol = "SPDY/3.1+" + portforward.ProtocolV1Name

// A translator serves the WebSocket protocols of KEP-4006 by SPDY sessions of next, and
// passes all other requests on to next.
type translator struct {
	next http.Handler
	pipe *pipeListener // where next is served too
}

func (t translator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer closeUpgraded(r.Context())
	switch {
	case wsstream.IsWebSocketRequestWithTunnelingProtocol(r):
		t.serveTunnel(w, r)
	case wsstream.IsWebSocketRequestWithStreamCloseProtocol(r):
		t.serveV5(w, r)
	default:
		t.next.ServeHTTP(w, r)
	}
}

// serveTunnel copies the SPDY session that comes in a WebSocket to next.
func (t translator) serveTunnel(w http.ResponseWriter, r *http.Request) {
	conn, ok := t.dialSPDY(w, r, portforward.ProtocolV1Name)
	if !ok {
		return
	}
	defer conn.Close()
	websocket.Server{
		Handshake: func(config *websocket.Config, _ *http.Request) error {
			if !slices.Contains(config.Protocol, tunnelProtocol) {
				return fmt.Errorf("none of the protocols %v is %s", config.Protocol, tunnelProtocol)
			}
			config.Protocol = []string{tunnelProtocol}
			return nil
		},
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			var copies sync.WaitGroup
			copies.Go(func() {
				defer ws.Close()
				io.Copy(ws, conn) //nolint:errcheck // an error is the end of the connection
			})
			copies.Go(func() {
				defer conn.Close()
				io.Copy(conn, ws) //nolint:errcheck // an error is the end of the connection
			})
			copies.Wait()
		},
	}.ServeHTTP(w, r)
}

// The channels of v5.channel.k8s.io, by number.
const (
	stdinChannel = iota
	stdoutChannel
	stderrChannel
	statusChannel
	resizeChannel
	numChannels
)

// serveV5 copies between the channels of a WebSocket and the streams of a SPDY session of next.
func (t translator) serveV5(w http.ResponseWriter, r *http.Request) {
	raw, ok := t.dialSPDY(w, r, remotecommand.StreamProtocolV4Name)
	if !ok {
		return
	}
	session, err := spdy.NewClientConnection(raw)
	if err != nil {
		raw.Close()
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer session.Close()
	params := r.URL.Query()
	ws := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: channelTypes(params)},
	})
	_, channels, err := ws.Open(w, r)
	if err != nil {
		return // Open has written the response
	}
	defer ws.Close()

	var streams [numChannels]httpstream.Stream
	for _, channel := range []int{statusChannel, stdinChannel, stdoutChannel, stderrChannel, resizeChannel} {
		if channel != statusChannel && !params.Has(streamNames[channel]) {
			continue
		}
		streams[channel], err = session.CreateStream(http.Header{remotecommand.StreamType: {streamNames[channel]}})
		if err != nil {
			return // next has closed the session, because its token has expired
		}
	}
	for _, channel := range []int{stdinChannel, resizeChannel} {
		if stream := streams[channel]; stream != nil {
			go func() {
				io.Copy(stream, channels[channel]) //nolint:errcheck // either side may close
				stream.Close()                     // closes this direction only
			}()
		}
	}
	defer context.AfterFunc(r.Context(), func() { session.Close() })() // the client has gone
	var output sync.WaitGroup
	for _, channel := range []int{stdoutChannel, stderrChannel, statusChannel} {
		if stream := streams[channel]; stream != nil {
			output.Go(func() {
				if _, err := io.Copy(channels[channel], stream); err != nil {
					session.Close() // the other streams cannot be written to the client either
				}
			})
		}
	}
	output.Wait()
}

// channelTypes returns the direction of each channel of an exec or attach.
func channelTypes(params url.Values) []wsstream.ChannelType {
	types := make([]wsstream.ChannelType, numChannels)
	types[statusChannel], types[resizeChannel] = wsstream.WriteChannel, wsstream.ReadChannel
	for channel, direction := range map[int]wsstream.ChannelType{
		stdinChannel: wsstream.ReadChannel, stdoutChannel: wsstream.WriteChannel, stderrChannel: wsstream.WriteChannel,
	} {
		if types[channel] = wsstream.IgnoreChannel; params.Has(streamNames[channel]) {
			types[channel] = direction
		}
	}
	return types
}

// streamNames are the library's names of the streams, by channel. They are also the query
// parameters that say which streams an exec or attach has.
var streamNames = [numChannels]string{
	stdinChannel: remotecommand.StreamTypeStdin, stdoutChannel: remotecommand.StreamTypeStdout, stderrChannel: remotecommand.StreamTypeStderr,
	statusChannel: remotecommand.StreamTypeError, resizeChannel: remotecommand.StreamTypeResize,
}

// appendStreamParams sets query parameters of the URL of an exec or attach: the streams that
// it has, which serveV5 cannot find out from the token.
func appendStreamParams(rawURL string, stdin, stdout, stderr, tty bool) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return rawURL
	}
	q := url.Values{}
	for channel, has := range map[int]bool{stdinChannel: stdin, stdoutChannel: stdout, stderrChannel: stderr && !tty, resizeChannel: tty} {
		if has {
			q.Set(streamNames[channel], "1")
		}
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// dialSPDY opens a SPDY session with next for the request r. If next refuses, its response
// is passed on to the client and ok is false.
func (t translator) dialSPDY(w http.ResponseWriter, r *http.Request, protocol string) (_ net.Conn, ok bool) {
	conn, err := t.pipe.dial(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return nil, false
	}
	request := &http.Request{Method: http.MethodPost, URL: r.URL, Host: r.Host, Header: http.Header{
		httpstream.HeaderConnection:      {httpstream.HeaderUpgrade},
		httpstream.HeaderUpgrade:         {spdy.HeaderSpdy31},
		httpstream.HeaderProtocolVersion: {protocol},
	}}
	reader := bufio.NewReader(conn)
	err = request.Write(conn)
	var response *http.Response
	if err == nil {
		response, err = http.ReadResponse(reader, request)
	}
	if err != nil {
		conn.Close()
		http.Error(w, err.Error(), http.StatusBadGateway)
		return nil, false
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		defer conn.Close()
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1024)) // an error leaves a shorter text
		http.Error(w, strings.TrimSpace(string(text)), response.StatusCode)
		return nil, false
	}
	return bufferedConn{conn, reader}, true
}

// A bufferedConn is a connection with a reader that may have read ahead.
type bufferedConn struct {
	net.Conn
	reader *bufio.Reader
}

func (c bufferedConn) Read(p []byte) (int, error) { return c.reader.Read(p) }

// A pipeListener is a listener that only this process can dial.
type pipeListener struct {
	conns     chan net.Conn
	closeOnce sync.Once
	closed    chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// dial connects to the listener on behalf of the client of ctx, which becomes the parent of
// the connection.
func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	dialled, accepted := net.Pipe()
	parent, _ := ctx.Value(connKey{}).(*trackedConn)
	select {
	case l.conns <- newTrackedConn(accepted, parent):
		return dialled, nil
	case <-l.closed:
		return nil, errStopped
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept implements net.Listener.
func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *pipeListener) Close() error {
	l.closeOnce.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "inside", Net: "pipe"} }
