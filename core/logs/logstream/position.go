package logstream

import (
	"time"

	"berth/core/logs/dockerlog"
)

// A Position is how far the log stream of a container was processed. It has a mark for
// each stream, for only within a stream do times never decrease: all pieces of a long
// line have the time of the first one, while the other stream may continue.
type Position struct {
	Stdout Mark `json:"stdout,omitzero"`
	Stderr Mark `json:"stderr,omitzero"`
	// LastTime and LastCount are a mark for both streams, as berth 1.0 has stored it.
	LastTime  string `json:"last,omitempty"`
	LastCount int    `json:"count,omitempty"`
}

// A Mark is the time of the last entry and how many entries of that time were processed.
type Mark struct {
	Time  string `json:"stamp,omitempty"`
	Count int    `json:"count,omitempty"`
}

// add moves the mark to an entry of the time stamp.
func (m *Mark) add(stamp []byte) {
	if m.Time != string(stamp) {
		*m = Mark{Time: string(stamp)}
	}
	m.Count++
}

// mark returns the mark of a stream.
func (p *Position) mark(stream string) *Mark {
	if stream == dockerlog.Stderr {
		return &p.Stderr
	}
	return &p.Stdout
}

// Add moves the position beyond e.
func (p *Position) Add(e dockerlog.Entry) { p.mark(e.Stream).add(e.Time) }

// maxReorder is how long Docker may take from giving a message its time to writing it to
// its log: messages of the other stream may come between.
const maxReorder = 10 * time.Second

// Since returns the time from which to read the stream again so that nothing is missed; ""
// for the beginning. openLines are the times of lines that have not ended. tty is whether
// the container has a terminal.
func (p *Position) Since(tty bool, openLines ...string) string {
	if p.LastTime != "" {
		return p.LastTime
	}
	var last time.Time
	var lastStamp string
	for _, stamp := range []string{p.Stdout.Time, p.Stderr.Time} {
		if t, err := time.Parse(time.RFC3339Nano, stamp); err == nil && t.After(last) {
			last, lastStamp = t, stamp
		}
	}
	if tty || lastStamp == "" {
		return lastStamp // a terminal has one stream only
	}
	since := last.Add(-maxReorder)
	for _, stamp := range openLines {
		if t, err := time.Parse(time.RFC3339Nano, stamp); err == nil && t.Before(since) {
			since = t
		}
	}
	return since.Format(time.RFC3339Nano)
}

// A Replay recognises the entries of a log stream that were processed before it was opened.
type Replay struct {
	pos            *Position
	stdout, stderr Mark // processed entries that are still expected; no Time: none
	legacy         Mark // the same for both streams, from berth 1.0
}

// Replay returns a Replay of a stream that begins at Since.
func (p *Position) Replay() *Replay {
	r := &Replay{pos: p}
	if p.LastTime != "" {
		r.legacy = Mark{p.LastTime, p.LastCount}
		p.Stdout, p.Stderr = Mark{Time: p.LastTime}, Mark{Time: p.LastTime}
		p.LastTime, p.LastCount = "", 0
	}
	r.stdout, r.stderr = p.Stdout, p.Stderr
	return r
}

// Contains reports whether e was processed before. It must be called with every entry of the
// stream, in order.
func (r *Replay) Contains(e dockerlog.Entry) bool {
	if r.legacy.Count > 0 && string(e.Time) == r.legacy.Time {
		r.legacy.Count--
		r.pos.Add(e)
		return true
	}
	expected := &r.stdout
	if e.Stream == dockerlog.Stderr {
		expected = &r.stderr
	}
	switch {
	case expected.Time == "":
		return false
	case string(e.Time) == expected.Time && expected.Count > 0:
		if expected.Count--; expected.Count == 0 {
			*expected = Mark{} // all that follows is new, even if the clock was set back
		}
		return true
	case string(e.Time) != expected.Time && earlier(string(e.Time), expected.Time):
		return true
	}
	*expected = Mark{} // the last processed entry is missing: Docker has rotated its log
	return false
}

// earlier reports whether the time a is before the time b.
func earlier(a, b string) bool {
	ta, err := time.Parse(time.RFC3339Nano, a)
	if err != nil {
		return false
	}
	tb, err := time.Parse(time.RFC3339Nano, b)
	return err == nil && ta.Before(tb)
}
