package enginetest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/pkg/stdcopy"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	stdout = "stdout"
	stderr = "stderr"
	// maxLogLine is the size, in bytes, at which Engines split a line of a log.
	maxLogLine = 16 << 10
)

// An output is the output of a container: its log and the clients attached to it.
type output struct {
	tty bool

	mu      sync.Mutex // guards following; held while writing to attached clients
	file    *os.File   // of json-file or local; nil with another driver
	local   bool       // file is that of local
	lines   []logLine
	partial map[string]*partial // by stream
	changed chan struct{}       // closed and replaced at every change
	running bool

	followersMu sync.Mutex // guards followers; never held while writing
	followers   []*follower
}

// A partial is a line that is not complete.
type partial struct {
	bytes.Buffer           // the part that is not in the log yet
	since        time.Time // time of its first entry in the log, zero if it has none
}

// A logLine is one entry of a log.
type logLine struct {
	Log    string    `json:"log"`
	Stream string    `json:"stream"`
	Time   time.Time `json:"time"`
}

// A follower is a client attached to an output.
type follower struct {
	out, err io.Writer // nil if the client does not want the stream
	hangUp   func()
	done     chan struct{} // closed at the end of the output
}

func newOutput(tty bool) *output {
	return &output{tty: tty, partial: map[string]*partial{stdout: {}, stderr: {}}, changed: make(chan struct{})}
}

// open begins the log of a process, and the log file at path unless that is "". local is whether it is that of the
// driver local.
func (o *output) open(path string, local bool) (err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.running, o.local = true, local
	o.notifyLocked()
	if local {
		err = os.MkdirAll(filepath.Dir(path), 0o700)
	}
	if path != "" && err == nil {
		o.file, err = os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	}
	return err
}

// notifyLocked wakes the readers of the log.
func (o *output) notifyLocked() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// close ends the log of a process and disconnects attached clients.
func (o *output) close() {
	o.followersMu.Lock()
	followers := o.followers
	o.followers = nil
	o.followersMu.Unlock()
	for _, f := range followers {
		f.hangUp() // else a write to a client that does not read would hold o.mu
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

// follow sends everything that is written from now on to f.
func (o *output) follow(f *follower) {
	o.followersMu.Lock()
	defer o.followersMu.Unlock()
	o.followers = append(o.followers, f)
}

// unfollow undoes follow.
func (o *output) unfollow(f *follower) {
	o.followersMu.Lock()
	defer o.followersMu.Unlock()
	o.followers = slices.DeleteFunc(o.followers, func(g *follower) bool { return f == g })
}

// writer returns the Writer for a stream of the process. As with a real Engine, an attached
// client that does not read blocks it.
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

// flushLocked writes the partial line of a stream to the log.
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
		buf.since = time.Time{} // else the next entry is of the same line
	}
	buf.Reset()
	if o.local {
		_, _ = o.file.Write(localEntry(line, continued))
	}
	switch {
	case o.file != nil && !o.local:
		line.Log = asJSON(line.Log)
		_ = json.NewEncoder(o.file).Encode(line)
	case continued:
		// Docker 20.10 with log driver local drops the newline of a long line.
		line.Log = strings.TrimSuffix(line.Log, "\n")
	}
	o.lines = append(o.lines, line)
}

// localEntry returns line as the driver local writes it. continued is whether it is not the first entry of its line.
func localEntry(line logLine, continued bool) []byte {
	text, ended := strings.CutSuffix(line.Log, "\n")
	var m []byte
	m = protowire.AppendString(protowire.AppendTag(m, 1, protowire.BytesType), line.Stream)
	m = protowire.AppendVarint(protowire.AppendTag(m, 2, protowire.VarintType), uint64(line.Time.UnixNano()))
	if text != "" {
		m = protowire.AppendString(protowire.AppendTag(m, 3, protowire.BytesType), text)
	}
	if continued || !ended {
		var metadata []byte
		if ended {
			metadata = protowire.AppendVarint(protowire.AppendTag(metadata, 1, protowire.VarintType), 1)
		}
		m = protowire.AppendVarint(protowire.AppendTag(m, 4, protowire.VarintType), 1)
		m = protowire.AppendBytes(protowire.AppendTag(m, 5, protowire.BytesType), metadata)
	}
	length := binary.BigEndian.AppendUint32(nil, uint32(len(m)))
	return slices.Concat(length, m, length)
}

// asJSON returns text as it is after encoding to JSON: with U+FFFD for each invalid byte.
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

// stdStreams returns Writers for stdout and stderr on one connection.
func stdStreams(w io.Writer, tty bool) (out, errs io.Writer) {
	if tty {
		return w, w
	}
	return stdcopy.NewStdWriter(w, stdcopy.Stdout), stdcopy.NewStdWriter(w, stdcopy.Stderr)
}

// streamType returns the media type of such a connection.
func streamType(tty, multiplexed bool) string {
	if tty || !multiplexed {
		return "application/vnd.docker.raw-stream"
	}
	return "application/vnd.docker.multiplexed-stream"
}

// Log returns the log of the container id without counting as a call.
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
