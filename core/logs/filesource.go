package logs

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"sync"

	"berth/core/logs/crifile"
	"berth/core/logs/dockerlog"
	"berth/core/logs/jsonfile"
	"berth/core/logs/localfile"
	"berth/core/logs/logfile"
)

const (
	// readSize holds the longest entry that Docker writes without attributes: a piece of
	// 16 KiB of which every byte is escaped in a json-file.
	readSize = 256 << 10
	// maxLine bounds a line of a json-file with the attributes that log-opts in daemon.json add.
	maxLine = 16 << 20
)

// A fileSource is the files of a log driver of Docker's. They exist also when Docker is stopped,
// and can be watched.
type fileSource struct {
	path               string
	reader             *logfile.Reader
	decoder            decoder
	reportedBadEntries bool // that an entry cannot be decoded was logged
}

// A decoder decodes the files of a log driver.
type decoder interface {
	// Next returns the first entry in b, and how many bytes of b it has; 0 if b does not contain all
	// of it. ok is false if there is no entry in these bytes. An entry without a time has to be
	// skipped. Its byte slices are valid until the next call and as long as b is not changed.
	Next(b []byte) (entry dockerlog.Entry, length int, ok bool)
}

// buffers are used by a fileSource while it copies.
type buffers struct{ in, out []byte }

var bufferPool = sync.Pool{New: func() any { return &buffers{in: make([]byte, readSize)} }}

func newFileSource(file dockerlog.File, pos logfile.Position) *fileSource {
	f := &fileSource{path: file.Path, decoder: &jsonfile.Decoder{}}
	if file.Driver == dockerlog.Local {
		f.decoder = &localfile.Decoder{}
	}
	f.reader = logfile.NewReader(file.Path, pos, func(b []byte) bool {
		_, length, _ := f.decoder.Next(b)
		return length > 0
	})
	return f
}

// copy copies until the end of the newest file.
func (f *fileSource) copy(ctx context.Context, p *pump, _ *round) (copyResult, error) {
	switch err := f.reader.Open(); {
	case errors.Is(err, fs.ErrNotExist):
		return nothingCopied, nil // nothing was printed yet
	case errors.Is(err, logfile.ErrGap):
		p.logGap()
	case err != nil:
		return nothingCopied, err
	}
	if err := p.openLog(); err != nil {
		return nothingCopied, err
	}
	b, _ := bufferPool.Get().(*buffers) // the pool contains nothing else
	defer func() {
		if len(b.in) == readSize {
			bufferPool.Put(b)
		}
	}()
	result := nothingCopied
	for ctx.Err() == nil {
		n, err := f.reader.Read(b.in)
		if err != nil {
			return result, err
		}
		used := f.convert(p, b, n)
		if used > 0 {
			result = someCopied
			f.reader.Advance(used)
			if err := p.write(b.out); err != nil {
				return result, err
			}
			continue
		}
		if n == len(b.in) && n < maxLine {
			b.in = make([]byte, 2*n)
			continue
		}
		if more, err := f.nextFile(p); err != nil || !more {
			return result, err
		}
	}
	return result, nil
}

// nextFile is called at the end of a file. It reports whether there is more to read, in the
// same file or in the next one.
func (f *fileSource) nextFile(p *pump) (bool, error) {
	next, err := f.reader.Continue()
	if errors.Is(err, logfile.ErrGap) {
		p.logGap()
		err = nil
	}
	if next == logfile.NextFile {
		p.saveCheckpoint()
	}
	return next != logfile.NothingYet, err
}

// convert sets b.out to the CRI records of the entries in the first n bytes of b.in, and returns how
// many bytes these entries have. While a reopen command waits it stops at the end of a CRI line.
func (f *fileSource) convert(p *pump, b *buffers, n int) (used int) {
	b.out = b.out[:0]
	in := b.in[:n]
	for {
		entry, length, ok := f.decoder.Next(in[used:])
		if length == 0 {
			break
		}
		if ok {
			b.out = appendEntry(b.out, entry, &p.checkpoint.Open)
		} else if !f.reportedBadEntries {
			f.reportedBadEntries = true
			p.service.log.Warn("docker has written a log line that cannot be read, left out", slog.String("container", p.id), slog.String("file", f.path), slog.Int64("offset", f.reader.Offset()+int64(used)))
		}
		used += length
		if len(p.reopens) > 0 && !p.checkpoint.Open.Any() {
			break
		}
	}
	if used == 0 && n >= maxLine {
		return n
	}
	return used
}

// appendEntry appends the CRI records of an entry of a log file.
func appendEntry(dst []byte, e dockerlog.Entry, open *crifile.OpenLines) []byte {
	if len(e.Time) == 0 {
		return dst
	}
	return open.AppendEntry(open.AppendInterrupted(dst, e), e)
}

func (f *fileSource) savePosition(cp *Checkpoint) (err error) {
	cp.Source, err = f.reader.Position()
	return err
}

func (f *fileSource) watchPath() string {
	if !f.reader.IsOpen() {
		return "" // there is no file yet, or no longer
	}
	return f.path
}

func (f *fileSource) changed() (bool, error) { return f.reader.Changed() }

func (f *fileSource) close() error { return f.reader.Close() }

// logGap logs that output is missing from the log.
func (p *pump) logGap() {
	p.service.log.Error("the log of a container has a gap", slog.String("container", p.id), slog.Any("file", p.path), slog.Any("err", logfile.ErrGap))
}
