package streaming

import (
	"io"
	"log"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// An errorLog logs the connection errors of net/http, at most one line a second: any local
// user can cause one with each connection.
type errorLog struct {
	log *slog.Logger

	mu      sync.Mutex // guards following
	next    time.Time  // when the next line may be logged
	dropped int        // lines since the last one
}

func newErrorLog(logger *slog.Logger) *log.Logger {
	if logger == nil {
		return log.New(io.Discard, "", 0)
	}
	return log.New(&errorLog{log: logger}, "", 0)
}

// Write implements io.Writer.
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
