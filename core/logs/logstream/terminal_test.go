package logstream

import (
	"fmt"
	"strings"
	"testing"

	"berth/core/logs/dockerlog"
)

// A message is a time and the text that follows it in a stream.
type message struct{ stamp, text string }

// However the network cuts the stream.
func TestTerminalFindsMessages(t *testing.T) {
	at := func(i int) string { return fmt.Sprintf("2026-11-23T14:26:3%d.123456789Z", i) }
	piece := strings.Repeat("x", dockerlog.PieceSize)
	for name, sent := range map[string][]message{
		"lines":                         {{at(0), "a\r\n"}, {at(1), "\r\n"}, {at(2), "b"}},
		"a long line":                   {{at(0), piece}, {at(0), piece}, {at(0), "end\n"}, {at(1), "next\n"}},
		"a whole piece":                 {{at(0), piece}, {at(0), "\n"}, {at(1), "next\n"}},
		"U+FFFD":                        {{at(0), strings.Repeat("\ufffd", dockerlog.PieceSize)}, {at(0), strings.Repeat("\ufffd", 100) + "\n"}, {at(1), "next\n"}},
		"larger pieces":                 {{at(0), strings.Repeat("x", 262118)}, {at(0), "end\n"}, {at(1), "next\n"}},
		"times of their own":            {{at(0), piece}, {at(1), piece}, {at(2), "end\n"}, {at(3), "next\n"}},
		"no break after a long line":    {{at(0), piece}, {at(0), "end\r"}, {at(1), "next\n"}},
		"no break after a whole piece":  {{at(0), piece}, {at(0), ""}, {at(1), "next\n"}},
		"no break between long lines":   {{at(0), piece}, {at(0), "end"}, {at(1), piece}, {at(1), "end\n"}},
		"earlier times in the text":     {{at(4), piece}, {at(4), at(3) + " " + at(2) + " x\n"}, {at(5), "next\n"}},
		"later times in a line":         {{at(4), at(5) + " " + at(6) + " x\n"}, {at(5), "next\n"}},
		"dots and no times in the text": {{at(4), piece}, {at(4), strings.Repeat("2026-11-23T14:26:39.1234.", 50) + "\n"}, {at(5), "next\n"}},
	} {
		for _, chunk := range []int{1 << 20, 32 << 10, 4097, 1} {
			t.Run(fmt.Sprintf("%s, %d bytes at a time", name, chunk), func(t *testing.T) {
				var stream strings.Builder
				for _, m := range sent {
					stream.WriteString(m.stamp + " " + m.text)
				}
				if chunk == 1 && stream.Len() > 40_000 {
					chunk = 61 // in reasonable time
				}
				got := receive(t, stream.String(), chunk)
				if len(got) != len(sent) {
					t.Fatalf("%d messages, want %d: %.300q", len(got), len(sent), got)
				}
				for i, m := range got {
					if m.stamp != sent[i].stamp || m.text != sent[i].text {
						t.Errorf("message %d: %s, %d bytes; want %s, %d bytes", i, m.stamp, len(m.text), sent[i].stamp, len(sent[i].text))
					}
				}
			})
		}
	}
}

func TestTerminalBoundsBufferOfUnendedText(t *testing.T) {
	const stamp, size = "2026-11-23T14:26:30.123456789Z", 5 << 20
	got := receive(t, stamp+" "+strings.Repeat("x", size)+"\n", 32<<10)
	sum := 0
	for _, m := range got {
		if len(m.text) > maxText+64<<10 || m.stamp != stamp {
			t.Errorf("a message of %d bytes, %s", len(m.text), m.stamp)
		}
		sum += len(m.text)
	}
	if sum != size+1 {
		t.Errorf("%d bytes, want %d", sum, size+1)
	}
}

// receive returns the messages that a terminal sends for a stream that arrives in chunks of the given size.
func receive(t *testing.T, stream string, chunk int) (got []message) {
	t.Helper()
	to, done := make(chan dockerlog.Entry), make(chan error, 1)
	w := &terminal{to: sender{t.Context(), dockerlog.Stdout, to}}
	go func() {
		defer close(to)
		for len(stream) > 0 {
			n := min(chunk, len(stream))
			if _, err := w.Write([]byte(stream[:n])); err != nil {
				done <- err
				return
			}
			stream = stream[n:]
		}
		done <- w.close()
	}()
	for e := range to {
		if e.Stream != dockerlog.Stdout {
			t.Errorf("an entry of stream %q", e.Stream)
		}
		got = append(got, message{string(e.Time), string(e.Text)})
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	return got
}
