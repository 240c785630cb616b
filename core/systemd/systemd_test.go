package systemd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
)

// A bus answers every call with nothing, and systemd reloads when it has a
// subscriber.
type bus struct {
	*testing.T
	calls chan *dbus.Message
}

// newBus makes a system bus for this process.
func newBus(t *testing.T) bus {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "bus")
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	b := bus{t, make(chan *dbus.Message, 100)}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go b.serve(c)
		}
	}()
	return b
}

func (b bus) serve(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c)
	for line := ""; !strings.HasPrefix(line, "BEGIN"); {
		var err error
		if line, err = in.ReadString('\n'); err != nil {
			return
		}
		answer := ""
		switch word, rest, _ := strings.Cut(strings.Trim(line, "\x00\r\n"), " "); {
		case word == "AUTH" && rest == "":
			answer = "REJECTED EXTERNAL"
		case word == "AUTH":
			answer = "OK 0123456789abcdef0123456789abcdef"
		case word == "NEGOTIATE_UNIX_FD":
			answer = "ERROR"
		default:
			continue
		}
		if _, err := io.WriteString(c, answer+"\r\n"); err != nil {
			return
		}
	}
	for {
		m, err := dbus.DecodeMessage(in)
		if err != nil {
			return
		}
		b.calls <- m
		body := []any{}
		if m.Headers[dbus.FieldMember].Value() == "Hello" {
			body = append(body, ":1.1")
		}
		b.send(c, dbus.TypeMethodReply, map[dbus.HeaderField]dbus.Variant{dbus.FieldReplySerial: dbus.MakeVariant(m.Serial())}, body...)
		if m.Headers[dbus.FieldMember].Value() == "Subscribe" {
			for _, begins := range []bool{true, true, false} {
				b.send(c, dbus.TypeSignal, map[dbus.HeaderField]dbus.Variant{
					dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath(path)), dbus.FieldInterface: dbus.MakeVariant(manager), dbus.FieldMember: dbus.MakeVariant("Reloading"),
				}, begins)
			}
		}
	}
}

func (b bus) send(c net.Conn, kind dbus.Type, headers map[dbus.HeaderField]dbus.Variant, body ...any) {
	headers[dbus.FieldSender] = dbus.MakeVariant(name)
	if len(body) > 0 {
		headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
	}
	m := &dbus.Message{Type: kind, Headers: headers, Body: body}
	if err := m.EncodeTo(c, binary.LittleEndian); err != nil {
		b.Log(err) // it has hung up
	}
}

func TestTell(t *testing.T) {
	b := newBus(t)
	if err := SetProperties(t.Context(), "docker-a.scope", map[string]string{
		"memory.high": "4096", "memory.swap.max": "max\n", "memory.oom.group": "1", "hugetlb.2MB.max": "0", "memory.low": "1G", "cpu.weight": "7",
	}); err != nil {
		t.Fatal(err)
	}
	var got []any
	for len(b.calls) > 0 {
		if m := <-b.calls; m.Headers[dbus.FieldMember].Value() == "SetUnitProperties" {
			got = m.Body
		}
	}
	want := []any{"docker-a.scope", true, [][]any{
		{"CPUWeight", dbus.MakeVariant(uint64(7))}, {"MemoryHigh", dbus.MakeVariant(uint64(4096))}, {"MemorySwapMax", dbus.MakeVariant(uint64(math.MaxUint64))},
	}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b dbus.Variant) bool { return a.String() == b.String() })); diff != "" {
		t.Errorf("systemd is told (-want +got):\n%s", diff)
	}
}

func TestTellWithoutABus(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(t.TempDir(), "none"))
	if err := SetProperties(t.Context(), "docker-a.scope", map[string]string{"memory.high": "1"}); !errors.Is(err, ErrNoBus) {
		t.Errorf("%v, want %v", err, ErrNoBus)
	}
	if err := SetProperties(t.Context(), "docker-a.scope", map[string]string{"memory.oom.group": "1"}); err != nil {
		t.Errorf("nothing to tell: %v", err)
	}
}

func TestReloads(t *testing.T) {
	newBus(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	heard := 0
	WatchReloads(ctx, func() {
		if heard++; heard == 2 { // at first, and after the one that has ended
			time.AfterFunc(200*time.Millisecond, cancel)
		}
	})
	if heard != 2 {
		t.Errorf("heard %d times, want 2", heard)
	}
}
