package exec

import (
	"io"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// closeWriterStream is a stream whose reading half can end by itself.
type closeWriterStream struct {
	io.Reader
	io.Writer
}

func TestForwardEndsAfterIdleTimeout(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		interval time.Duration // between ten writes of the port; 0 for no writes
		open     bool          // the client does not close its sending half
		ends     time.Duration // when it must have ended; 0 for never
	}{
		"no data after the client's half-close":   {0, false, forwardIdleTimeout},
		"slow data after the client's half-close": {forwardIdleTimeout / 2, false, 5 * forwardIdleTimeout},
		"no data while the client is open":        {0, true, 0},
		"slow data while the client is open":      {forwardIdleTimeout * 2, true, 20 * forwardIdleTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pod, ours := net.Pipe()
				fromClient, client := io.Pipe()
				defer client.Close()
				if !tt.open {
					client.Close()
				}
				go io.Copy(io.Discard, pod)
				if tt.interval > 0 {
					go func() {
						for range 10 {
							time.Sleep(tt.interval)
							pod.Write([]byte("."))
						}
						pod.Close()
					}()
				}
				received := 0
				started := time.Now()
				done := make(chan error, 1)
				go func() {
					done <- forward(slog.New(slog.DiscardHandler), ours, closeWriterStream{fromClient, counter{&received}})
					ours.Close()
				}()
				if tt.ends == 0 {
					time.Sleep(100 * forwardIdleTimeout)
					synctest.Wait()
					select {
					case err := <-done:
						t.Errorf("forward has ended: %v", err)
					default:
						pod.Close()
						<-done
					}
					return
				}
				if err := <-done; err != nil || time.Since(started) != tt.ends {
					t.Errorf("%v after %v, want after %v", err, time.Since(started), tt.ends)
				}
				if tt.interval > 0 && received != 10 {
					t.Errorf("%d writes, want 10", received)
				}
			})
		})
	}
}

type counter struct{ n *int }

func (c counter) Write(p []byte) (int, error) {
	*c.n += len(p)
	return len(p), nil
}

// The port sees the client's half-close, and may send afterwards.
func TestForwardPassesHalfClose(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		n, _ := io.Copy(io.Discard, c)
		for range n {
			c.Write([]byte("."))
		}
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	received := 0
	fromClient, client := io.Pipe()
	go func() {
		client.Write(make([]byte, 1000))
		client.Close()
	}()
	if err := forward(slog.New(slog.DiscardHandler), conn, closeWriterStream{fromClient, counter{&received}}); err != nil || received != 1000 {
		t.Errorf("%d bytes, %v", received, err)
	}
}
