package enginetest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/pkg/stdcopy"
)

const (
	stdout = "stdout"
	stderr = "stderr"
	// maxLogLine is where Engines cut a line of a log, in bytes.
	maxLogLine = 16 << 10
)

// An output is what a container writes: to its log and to those attached.
type output struct {
	tty bool

	mu      sync.Mutex // guards following; held while those attached are written to
	file    *os.File   // json-file; nil without one
	lines   []logLine
	partial map[string]*partial // by stream
	changed chan struct{}       // closed and replaced at every change
	running bool

	followersMu sync.Mutex // guards followers; never held while writing
	followers   []*follower
}

// A partial is a line that has begun.
type partial struct {
	bytes.Buffer           // what has not been logged
	since        time.Time // when it was first logged from, zero for not yet
}

// A logLine is one line of a log, with its end if it has one.
type logLine struct {
	Log    string    `json:"log"`
	Stream string    `json:"stream"`
	Time   time.Time `json:"time"`
}

// A follower is a client attached to an output.
type follower struct {
	out, err io.Writer // nil for those not wanted
	hangUp   func()
	done     chan struct{} // closed when there is no more
}

func newOutput(tty bool) *output {
	return &output{tty: tty, partial: map[string]*partial{stdout: {}, stderr: {}}, changed: make(chan struct{})}
}

// open begins the log of a process, in the file at path too unless it is "".
func (o *output) open(path string) (err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.running = true
	o.notifyLocked()
	if path != "" {
		o.file, err = os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	}
	return err
}

// notifyLocked wakes those who wait for something new. o.mu is held.
func (o *output) notifyLocked() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// close ends the log of a process and lets those attached go.
func (o *output) close() {
	o.followersMu.Lock()
	followers := o.followers
	o.followers = nil
	o.followersMu.Unlock()
	for _, f := range followers {
		f.hangUp() // a write to one that does not read would keep o.mu
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.running = false
	o.flushLocked(stdout)
	o.flushLocked(stderr)
	if o.file != nil {
		_ = o.file.Close()
		o.file = nil
	}
	o.notifyLocked()
	for _, f := range followers {
		close(f.done)
	}
}

// follow has f get all that is written from now on.
func (o *output) follow(f *follower) {
	o.followersMu.Lock()
	defer o.followersMu.Unlock()
	o.followers = append(o.followers, f)
}

// unfollow takes f off again.
func (o *output) unfollow(f *follower) {
	o.followersMu.Lock()
	defer o.followersMu.Unlock()
	o.followers = slices.DeleteFunc(o.followers, func(g *follower) bool { return f == g })
}

// writer is the end at which a process writes. As with a real Engine, one
// attached client that does not read holds up all of it.
func (o *output) writer(stream string) io.Writer {
	if o.tty {
		stream = stdout
	}
	return writerFunc(func(given []byte) (int, error) {
		p := given
		if o.tty {
			p = bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		if !o.running {
			return 0, io.ErrClosedPipe
		}
		buf := o.partial[stream]
		for _, b := range p {
			buf.WriteByte(b)
			if b == '\n' || buf.Len() == maxLogLine {
				o.flushLocked(stream)
			}
		}
		o.notifyLocked()
		o.followersMu.Lock()
		followers := slices.Clone(o.followers)
		o.followersMu.Unlock()
		for _, f := range followers {
			w := f.out
			if stream == stderr {
				w = f.err
			}
			if w == nil {
				continue
			}
			if _, err := w.Write(p); err != nil {
				o.unfollow(f)
			}
		}
		return len(given), nil
	})
}

// flushLocked writes down what there is of a line. o.mu is held.
func (o *output) flushLocked(stream string) {
	buf := o.partial[stream]
	if buf.Len() == 0 {
		return
	}
	continued := !buf.since.IsZero()
	if !continued {
		buf.since = time.Now().UTC()
	}
	line := logLine{Log: buf.String(), Stream: stream, Time: buf.since}
	if strings.HasSuffix(line.Log, "\n") || !o.running {
		buf.since = time.Time{} // else the next piece is of the same line
	}
	buf.Reset()
	switch {
	case o.file != nil:
		line.Log = asJSON(line.Log)
		_ = json.NewEncoder(o.file).Encode(line)
	case continued:
		// As the log driver local of Docker 20.10, which has none after a long line.
		line.Log = strings.TrimSuffix(line.Log, "\n")
	}
	o.lines = append(o.lines, line)
}

// asJSON is what is left of text in JSON: U+FFFD for each byte that is not UTF-8.
func asJSON(text string) string {
	var out strings.Builder
	for _, r := range text {
		out.WriteRune(r)
	}
	return out.String()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// logs is GET /containers/{id}/logs.
func (e *Engine) logs(c *call) error {
	wants := map[string]bool{stdout: c.boolParam("stdout"), stderr: c.boolParam("stderr")}
	if !wants[stdout] && !wants[stderr] {
		return errorf(http.StatusBadRequest, "Bad parameters: you must choose at least one stream")
	}
	e.mu.Lock()
	b, err := e.findContainerLocked(c.name)
	if err != nil {
		e.mu.Unlock()
		return err
	}
	driver, multiplexed := b.host.LogConfig.Type, e.supportsLocked("1.42")
	e.mu.Unlock()
	if driver == "none" {
		return errorf(http.StatusNotImplemented, "configured logging driver does not support reading")
	}
	since, _, err := parseTime(c.query.Get("since"))
	if err != nil {
		return errorf(http.StatusBadRequest, "%v", err)
	}
	c.responded = true
	c.Header().Set("Content-Type", streamType(b.config.Tty, multiplexed))
	c.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(c.ResponseWriter)
	out, errs := stdStreams(c.ResponseWriter, b.config.Tty)
	for at := -1; ; {
		b.output.mu.Lock()
		lines, changed, running := b.output.lines, b.output.changed, b.output.running
		b.output.mu.Unlock()
		if at < 0 {
			at = 0
			if n, err := strconv.Atoi(c.query.Get("tail")); err == nil {
				at = max(0, len(lines)-n)
			}
		}
		for _, l := range lines[at:] {
			if !wants[l.Stream] || l.Time.Before(since) {
				continue
			}
			w, text := out, l.Log
			if l.Stream == stderr {
				w = errs
			}
			if c.boolParam("timestamps") {
				text = l.Time.Format("2006-01-02T15:04:05.000000000Z07:00") + " " + text
			}
			if _, err := io.WriteString(w, text); err != nil {
				return errHangUp
			}
		}
		at = len(lines)
		if err := flush.Flush(); err != nil {
			return errHangUp
		}
		if !c.boolParam("follow") || !running {
			return nil
		}
		select {
		case <-changed:
		case <-b.removed:
			return nil
		case <-c.Context().Done():
			return errHangUp
		case <-c.server.ctx.Done():
			return errHangUp
		}
	}
}

// stdStreams are the two streams of a process on one connection.
func stdStreams(w io.Writer, tty bool) (out, errs io.Writer) {
	if tty {
		return w, w
	}
	return stdcopy.NewStdWriter(w, stdcopy.Stdout), stdcopy.NewStdWriter(w, stdcopy.Stderr)
}

// streamType is the media type of such a connection.
func streamType(tty, multiplexed bool) string {
	if tty || !multiplexed {
		return "application/vnd.docker.raw-stream"
	}
	return "application/vnd.docker.multiplexed-stream"
}

// Log returns what the container id has written to its log, without being a call.
func (e *Engine) Log(id string) string {
	e.t.Helper()
	var o *output
	e.editContainer(id, func(b *fakeContainer) { o = b.output })
	if o == nil {
		return ""
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	var text strings.Builder
	for _, l := range o.lines {
		text.WriteString(l.Log)
	}
	return text.String()
}
