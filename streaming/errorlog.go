package streaming

import (
	"io"
	"log"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// An errorLog passes on what net/http has to say of connections. Any local user
// can make it say something for each connection, so it is at most one line a
// second.
type errorLog struct {
	log *slog.Logger

	mu      sync.Mutex // guards following
	next    time.Time
	dropped int
}

func newErrorLog(to *slog.Logger) *log.Logger {
	if to == nil {
		return log.New(io.Discard, "", 0)
	}
	return log.New(&errorLog{log: to}, "", 0)
}

// Write is of io.Writer.
func (l *errorLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Before(l.next) {
		l.dropped++
		return len(line), nil
	}
	l.log.Debug("streaming connection failed", slog.String("err", strings.TrimSpace(string(line))), slog.Int("not logged", l.dropped))
	l.next, l.dropped = now.Add(time.Second), 0
	return len(line), nil
}
