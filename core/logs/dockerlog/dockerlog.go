// Package dockerlog defines an entry of a container's output as Docker's log drivers
// keep it, whichever way it is read: from its log files (core/logs/logfile) or from the
// log stream of the Engine API (core/logs/logstream). It also knows where the files are.
package dockerlog

// The names of a container's output streams, in Docker's logs and in CRI logs.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// PieceSize is the length in bytes at which Docker splits a longer line. A piece without
// a line break is either that long (longer with some log drivers, or where U+FFFD
// replaces single bytes) or the last output of its stream.
//
// See copySrc in moby's daemon/logger/copier.go.
const PieceSize = 16 << 10

// An Entry is what Docker logged at once: a line with its line break, or a piece of one.
type Entry struct {
	Time   []byte // RFC 3339 with nanoseconds; all pieces of a line have the time of the first
	Stream string // Stdout or Stderr
	Text   []byte
}
