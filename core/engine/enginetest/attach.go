package enginetest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/docker/docker/api/types/events"
)

// A hijackedConn is a connection that was taken over from net/http.
type hijackedConn struct {
	net.Conn
	r *bufio.Reader
}

func (t *hijackedConn) Read(p []byte) (int, error) { return t.r.Read(p) }

// hijack takes the connection over, as clients request with the header Upgrade.
func (c *call) hijack(mediaType string) (*hijackedConn, error) {
	conn, buf, err := http.NewResponseController(c.ResponseWriter).Hijack()
	if err != nil {
		return nil, err
	}
	c.responded = true
	status, header := "200 OK", "Content-Type: application/vnd.docker.raw-stream\r\n"
	if c.Request.Header.Get("Upgrade") != "" {
		status, header = "101 UPGRADED", "Content-Type: "+mediaType+"\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
	}
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 %s\r\n%s\r\n", status, header); err != nil {
		return nil, err
	}
	return &hijackedConn{conn, buf.Reader}, nil
}

// attach is POST /containers/{id}/attach.
func (e *Engine) attach(c *call) error {
	e.mu.Lock()
	b, err := e.findContainerLocked(c.name)
	if err == nil && b.state.Paused {
		err = errorf(http.StatusConflict, "Container %s is paused, unpause the container before attach.", c.name)
	}
	multiplexed := e.supportsLocked("1.42")
	e.mu.Unlock()
	if err != nil {
		return err
	}
	conn, err := c.hijack(streamType(b.config.Tty, multiplexed))
	if err != nil {
		return errHangUp
	}
	defer conn.Close()
	f := &follower{hangUp: func() { _ = conn.Close() }, done: make(chan struct{})}
	out, errs := stdStreams(conn, b.config.Tty)
	if c.boolParam("stdout") {
		f.out = out
	}
	if c.boolParam("stderr") {
		f.err = errs
	}
	if c.boolParam("logs") {
		b.output.replay(f)
	}
	if !c.boolParam("stream") {
		return nil
	}
	b.output.follow(f)
	defer b.output.unfollow(f)
	e.mu.Lock()
	e.emitLocked(b, events.ActionAttach, nil)
	// An exited container has no more output; a created one will have.
	ended, input := b.process == nil && b.state.StartedAt != zeroTime, b.stdin
	e.mu.Unlock()
	if ended {
		return nil
	}
	go func() {
		if !c.boolParam("stdin") || !b.config.OpenStdin {
			_, _ = io.Copy(io.Discard, conn)
			return
		}
		_, _ = io.Copy(input, conn)
		if b.config.StdinOnce {
			input.closeWrite()
		}
	}()
	select {
	case <-f.done:
	case <-b.removed:
	case <-c.server.ctx.Done():
	}
	return nil
}

// replay writes the log so far to f.
func (o *output) replay(f *follower) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range o.lines {
		w := f.out
		if l.Stream == stderr {
			w = f.err
		}
		if w != nil {
			_, _ = io.WriteString(w, l.Log)
		}
	}
}
