package logs

import "time"

// A mark is how far one stream of a container, read from the Engine's log stream, is
// written: the time of the last message and how many of that time there were. There is one per stream,
// for only within a stream do times never go back. Across them they do: all pieces of
// a long line have the time of its first one, while the other stream goes on.
type mark struct {
	Stamp string `json:"stamp,omitempty"`
	Count int    `json:"count,omitempty"`
}

// add moves the mark to a message of the time stamp.
func (m *mark) add(stamp string) {
	if m.Stamp != stamp {
		*m = mark{Stamp: stamp}
	}
	m.Count++
}

// mark returns the mark of a stream.
func (p *position) mark(stream string) *mark {
	if stream == stderr {
		return &p.Stderr
	}
	return &p.Stdout
}

// lateness is how long the Engine may take from giving a message its time to writing
// it: messages of the other stream may come in between.
const lateness = 10 * time.Second

// since returns from when on the log stream is to be read again so that nothing is missed;
// "" for the beginning.
func (p *position) since(tty bool) string {
	if p.Last != "" {
		return p.Last
	}
	var last time.Time
	var lastStamp string
	for _, stamp := range []string{p.Stdout.Stamp, p.Stderr.Stamp} {
		if at, err := time.Parse(time.RFC3339Nano, stamp); err == nil && at.After(last) {
			last, lastStamp = at, stamp
		}
	}
	if tty || lastStamp == "" {
		return lastStamp // there is one stream only
	}
	from := last.Add(-lateness)
	for _, stamp := range []string{p.Open.Stdout, p.Open.Stderr} {
		if at, err := time.Parse(time.RFC3339Nano, stamp); err == nil && at.Before(from) {
			from = at
		}
	}
	return from.Format(time.RFC3339Nano)
}

// A replay tells which messages of a log stream have been written before it was opened.
type replay struct {
	at             *position
	stdout, stderr mark // what is still to come of it; no Stamp: nothing
	older          mark // of either stream, noted by berth 1.0
}

// replay returns what of a log stream that begins at since has been written already.
func (p *position) replay() *replay {
	r := &replay{at: p}
	if p.Last != "" {
		r.older = mark{p.Last, p.Count}
		p.Stdout, p.Stderr = mark{Stamp: p.Last}, mark{Stamp: p.Last}
		p.Last, p.Count = "", 0
	}
	r.stdout, r.stderr = p.Stdout, p.Stderr
	return r
}

// has reports whether m has been written already. It is to be called with each message in turn.
func (r *replay) has(m message) bool {
	if r.older.Count > 0 && m.stamp == r.older.Stamp {
		r.older.Count--
		r.at.mark(m.stream).add(m.stamp)
		return true
	}
	left := &r.stdout
	if m.stream == stderr {
		left = &r.stderr
	}
	switch {
	case left.Stamp == "":
		return false
	case m.stamp == left.Stamp && left.Count > 0:
		if left.Count--; left.Count == 0 {
			*left = mark{} // all that follows is new, also if the clock was set back
		}
		return true
	case m.stamp != left.Stamp && earlier(m.stamp, left.Stamp):
		return true
	}
	*left = mark{} // what was written last is gone: the Engine has rotated its log
	return false
}

// earlier reports whether the time a is before the time b.
func earlier(a, b string) bool {
	at, err := time.Parse(time.RFC3339Nano, a)
	if err != nil {
		return false
	}
	than, err := time.Parse(time.RFC3339Nano, b)
	return err == nil && at.Before(than)
}
