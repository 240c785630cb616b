package streaming

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestURLsAreAbsoluteAndCanBeDialled(t *testing.T) {
	for addr, want := range map[string]string{
		"":             "http://127.0.0.1:",
		"127.0.0.1":    "http://127.0.0.1:",
		"0.0.0.0":      "http://127.0.0.1:",
		"0.0.0.0:0":    "http://127.0.0.1:",
		"127.0.0.12:0": "http://127.0.0.12:",
	} {
		s, err := Listen(addr, TLSFiles{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.URL(); !strings.HasPrefix(got, want) || strings.HasSuffix(got, ":0") {
			t.Errorf("%q is reached at %s, want %s and a port", addr, got, want)
		}
		s.listener.Close()
	}
	if host := baseURL(&net.TCPAddr{IP: net.IPv6unspecified, Port: 1}).Host; host != "127.0.0.1:1" {
		t.Errorf("the IPv6 wildcard is reached at %s", host)
	}
}

func TestBufferPassesEverythingOn(t *testing.T) {
	var got bytes.Buffer
	b := NewBuffer(&got, NewBudget(1<<20), 64, time.Second)
	want := strings.Repeat("0123456789", 1000)
	if _, err := io.Copy(b, io.LimitReader(strings.NewReader(want), int64(len(want)))); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if got.String() != want {
		t.Errorf("got %d bytes, want %d", got.Len(), len(want))
	}
}

func TestBufferFailsIfReaderDoesNotRead(t *testing.T) {
	r, w := io.Pipe() // nobody reads r
	defer r.Close()
	b := NewBuffer(w, NewBudget(1<<20), 1024, 20*time.Millisecond)
	var err error
	for range 100 {
		if _, err = b.Write(make([]byte, 512)); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrSlow) {
		t.Errorf("err = %v, want ErrSlow", err)
	}
	if err := b.Close(); !errors.Is(err, ErrSlow) {
		t.Errorf("close: %v, want ErrSlow", err)
	}
}

// A slow reader gets what is queued, but does not block the writer forever.
func TestBufferBlocksWriterForStallTimeoutAtMost(t *testing.T) {
	const limit, stallTimeout = 1 << 20, 10 * time.Second
	for name, tt := range map[string]struct {
		pause time.Duration // of the reader, after each chunk
		size  int           // to be written
		slow  bool
	}{
		"a burst":                       {stallTimeout / 10, limit + limit/4, false},
		"more slowly than is written":   {stallTimeout / 10, 10 << 20, true},
		"very slowly, within the limit": {stallTimeout / 2, limit, false},
		"not at all, within the limit":  {100 * stallTimeout, limit, true},
		"not at all, above the limit":   {100 * stallTimeout, 10 << 20, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, w := io.Pipe()
				got := make(chan int)
				go func() {
					n := 0
					for b := make([]byte, 64<<10); ; time.Sleep(tt.pause) {
						k, err := io.ReadFull(r, b)
						n += k
						if err != nil {
							got <- n
							return
						}
					}
				}()
				b := NewBuffer(w, NewBudget(10*limit), limit, stallTimeout)
				time.Sleep(10 * stallTimeout) // with nothing to write
				start := time.Now()
				var err error
				for n := 0; n < tt.size && err == nil; n += 1024 {
					_, err = b.Write(make([]byte, 1024))
				}
				if held := time.Since(start); held > stallTimeout+stallTimeout/10 {
					t.Errorf("the writer was blocked for %v", held)
				}
				err = errors.Join(err, b.Close())
				w.Close()
				n := <-got
				if tt.slow != errors.Is(err, ErrSlow) || !tt.slow && n != tt.size {
					t.Errorf("%d bytes of %d, %v", n, tt.size, err)
				}
			})
		})
	}
}

// Readers that do not keep up use the Budget and no more; one that keeps up is served beside them.
func TestBuffersShareABudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit, stallTimeout = 1 << 20, 10 * time.Second
		budget := NewBudget(2 * limit)
		var stalled []*Buffer
		for range 4 {
			r, w := io.Pipe() // nobody reads r
			defer r.Close()
			b := NewBuffer(w, budget, limit, stallTimeout)
			stalled = append(stalled, b)
			go func() {
				for {
					if _, err := b.Write(make([]byte, 32<<10)); err != nil {
						r.Close()
						return
					}
				}
			}()
		}
		synctest.Wait()
		held := 0
		for _, b := range stalled {
			b.mu.Lock()
			for _, c := range b.queue {
				held += cap(c.data)
			}
			b.mu.Unlock()
		}
		if most := 2*limit + len(stalled)*32<<10; held > most {
			t.Errorf("%d bytes are held for readers that do not read, want at most %d", held, most)
		}
		var got bytes.Buffer
		good := NewBuffer(&got, budget, limit, stallTimeout)
		for range 100 {
			if _, err := good.Write(make([]byte, 32<<10)); err != nil {
				t.Fatal(err)
			}
		}
		if err := good.Close(); err != nil || got.Len() != 100*32<<10 {
			t.Errorf("a reader that keeps up got %d bytes, %v", got.Len(), err)
		}
		time.Sleep(2 * stallTimeout)
		for _, b := range stalled {
			if err := b.Close(); !errors.Is(err, ErrSlow) {
				t.Errorf("a reader that does not read: %v, want ErrSlow", err)
			}
		}
		synctest.Wait()
		if !budget.TryAcquire(2 * limit) {
			t.Error("memory of the budget was not released")
		}
	})
}
