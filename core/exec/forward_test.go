package exec

import (
	"io"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// halves is a stream of which the client's side can end by itself.
type halves struct {
	io.Reader
	io.Writer
}

func TestForward(t *testing.T) {
	for name, tt := range map[string]struct {
		answer time.Duration // between two pieces of an answer of ten; 0 for none
		says   bool          // whether the client goes on saying something
		after  time.Duration // when it must have ended
	}{
		"silent after the client's end":           {0, false, forwardPatience},
		"a long answer after the client's end":    {forwardPatience / 2, false, 5 * forwardPatience},
		"silent while the client is there":        {0, true, 0},
		"an answer that pauses while it is there": {forwardPatience * 2, true, 20 * forwardPatience},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pod, ours := net.Pipe()
				saying, end := io.Pipe()
				defer end.Close()
				if !tt.says {
					end.Close()
				}
				go io.Copy(io.Discard, pod)
				if tt.answer > 0 {
					go func() {
						for range 10 {
							time.Sleep(tt.answer)
							pod.Write([]byte("."))
						}
						pod.Close()
					}()
				}
				heard := 0
				began := time.Now()
				done := make(chan error, 1)
				go func() {
					done <- forward(slog.New(slog.DiscardHandler), ours, halves{saying, counter{&heard}})
					ours.Close()
				}()
				if tt.after == 0 {
					time.Sleep(100 * forwardPatience)
					synctest.Wait()
					select {
					case err := <-done:
						t.Errorf("it has ended: %v", err)
					default:
						pod.Close()
						<-done
					}
					return
				}
				if err := <-done; err != nil || time.Since(began) != tt.after {
					t.Errorf("%v after %v, want after %v", err, time.Since(began), tt.after)
				}
				if tt.answer > 0 && heard != 10 {
					t.Errorf("%d pieces, want 10", heard)
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

// What the client has said is at its end for the pod too, which still answers.
func TestForwardHalfClosed(t *testing.T) {
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
	heard := 0
	saying, say := io.Pipe()
	go func() {
		say.Write(make([]byte, 1000))
		say.Close()
	}()
	if err := forward(slog.New(slog.DiscardHandler), conn, halves{saying, counter{&heard}}); err != nil || heard != 1000 {
		t.Errorf("%d bytes, %v", heard, err)
	}
}
