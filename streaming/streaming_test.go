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
		s, err := Listen(addr, KeyPair{}, nil)
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

func TestABufferHandsOnEverything(t *testing.T) {
	var got bytes.Buffer
	b := NewBuffer(&got, 64, time.Second)
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

func TestABufferGivesUpWhoDoesNotRead(t *testing.T) {
	r, w := io.Pipe() // nobody reads r
	defer r.Close()
	b := NewBuffer(w, 1024, 20*time.Millisecond)
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

// One that reads steadily is no dead one, however slow.
func TestABufferWaitsForWhoReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		const much, patience = 10 << 20, 10 * time.Second
		got := make(chan int)
		go func() {
			n := 0
			for b := make([]byte, piece); ; time.Sleep(patience / 2) {
				k, err := io.ReadFull(r, b)
				n += k
				if err != nil {
					got <- n
					return
				}
			}
		}()
		b := NewBuffer(w, 1<<20, patience)
		time.Sleep(10 * patience) // in which there is nothing to take
		for range much / 1024 {
			if _, err := b.Write(make([]byte, 1024)); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		w.Close()
		if n := <-got; n != much {
			t.Errorf("%d bytes, want %d", n, much)
		}
	})
}
