package logs

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"sync"

	"berth/core/logs/crifile"
	"berth/core/logs/jsonfile"
)

const (
	// readSize holds the longest line that Docker writes without attributes: a piece of
	// 16 KiB of which every byte is escaped.
	readSize = 256 << 10
	// maxLine bounds a line with the attributes that log-opts in daemon.json add.
	maxLine = 16 << 20
)

// A fileSource is a json-file of Docker's. It exists also when Docker is stopped, and can be
// watched.
type fileSource struct {
	path             string
	reader           *jsonfile.Reader
	decoder          jsonfile.Decoder
	reportedBadLines bool // that a line cannot be decoded was logged
}

// buffers are used by a fileSource while it copies.
type buffers struct{ in, out []byte }

var bufferPool = sync.Pool{New: func() any { return &buffers{in: make([]byte, readSize)} }}

func newFileSource(path string, pos jsonfile.Position) *fileSource {
	return &fileSource{path: path, reader: jsonfile.NewReader(path, pos)}
}

// copy copies until the end of the newest file.
func (f *fileSource) copy(ctx context.Context, p *pump, _ *round) (copyResult, error) {
	switch err := f.reader.Open(); {
	case errors.Is(err, fs.ErrNotExist):
		return nothingCopied, nil // nothing was printed yet
	case errors.Is(err, jsonfile.ErrGap):
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
	if errors.Is(err, jsonfile.ErrGap) {
		p.logGap()
		err = nil
	}
	if next == jsonfile.NextFile {
		p.saveCheckpoint()
	}
	return next != jsonfile.NothingYet, err
}

// convert sets b.out to the CRI records of the lines in the first n bytes of b.in, and returns how
// many bytes these lines have. While a reopen command waits it stops at the end of a CRI line.
func (f *fileSource) convert(p *pump, b *buffers, n int) (used int) {
	b.out = b.out[:0]
	in := b.in[:n]
	for {
		end := bytes.IndexByte(in[used:], '\n')
		if end < 0 {
			break
		}
		var ok bool
		if b.out, ok = appendLine(b.out, in[used:used+end], &f.decoder, &p.checkpoint.Open); !ok && !f.reportedBadLines {
			f.reportedBadLines = true
			p.service.log.Warn("docker has written a log line that cannot be read, left out", slog.String("container", p.id), slog.String("file", f.path), slog.Int64("offset", f.reader.Offset()+int64(used)))
		}
		used += end + 1
		if len(p.reopens) > 0 && !p.checkpoint.Open.Any() {
			break
		}
	}
	if used == 0 && n > 0 && len(bytes.TrimLeft(in, "\x00")) == 0 {
		return n // the hole that truncating a file leaves
	}
	if used == 0 && n >= maxLine {
		return n
	}
	return used
}

// appendLine appends the CRI records of a line of a json-file, given without its line break. It
// reports whether line could be decoded.
func appendLine(dst, line []byte, decoder *jsonfile.Decoder, open *crifile.OpenLines) ([]byte, bool) {
	entry, ok := decoder.Decode(line)
	if !ok || len(entry.Text) == 0 {
		return dst, ok
	}
	return open.AppendEntry(open.AppendInterrupted(dst, entry), entry), true
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
	p.service.log.Error("the log of a container has a gap", slog.String("container", p.id), slog.Any("file", p.path), slog.Any("err", jsonfile.ErrGap))
}
