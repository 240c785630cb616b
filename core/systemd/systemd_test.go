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

// A fakeBus is a system bus with a systemd that replies to every call without a value, and that
// reloads its units as soon as it has a subscriber.
type fakeBus struct {
	testing.TB
	calls chan *dbus.Message
	conns chan net.Conn
}

// newFakeBus makes a system bus for this process.
func newFakeBus(t testing.TB) fakeBus {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "bus")
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	b := fakeBus{t, make(chan *dbus.Message, 100), make(chan net.Conn, 100)}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b.conns <- c
			go b.serve(c)
		}
	}()
	return b
}

func (b fakeBus) serve(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c)
	for line := ""; !strings.HasPrefix(line, "BEGIN"); {
		var err error
		if line, err = in.ReadString('\n'); err != nil {
			return
		}
		reply := ""
		switch command, arguments, _ := strings.Cut(strings.Trim(line, "\x00\r\n"), " "); {
		case command == "AUTH" && arguments == "":
			reply = "REJECTED EXTERNAL"
		case command == "AUTH":
			reply = "OK 0123456789abcdef0123456789abcdef"
		case command == "NEGOTIATE_UNIX_FD":
			reply = "ERROR"
		default:
			continue
		}
		if _, err := io.WriteString(c, reply+"\r\n"); err != nil {
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
			for _, starts := range []bool{true, true, false} {
				b.send(c, dbus.TypeSignal, map[dbus.HeaderField]dbus.Variant{
					dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath(objectPath)), dbus.FieldInterface: dbus.MakeVariant(managerInterface), dbus.FieldMember: dbus.MakeVariant("Reloading"),
				}, starts)
			}
		}
	}
}

func (b fakeBus) send(c net.Conn, kind dbus.Type, headers map[dbus.HeaderField]dbus.Variant, body ...any) {
	headers[dbus.FieldSender] = dbus.MakeVariant(busName)
	if len(body) > 0 {
		headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
	}
	m := &dbus.Message{Type: kind, Headers: headers, Body: body}
	if err := m.EncodeTo(c, binary.LittleEndian); err != nil {
		b.Log(err) // the client has closed the connection
	}
}

// setProperties are the arguments of the calls to SetUnitProperties so far.
func (b fakeBus) setProperties() (calls [][]any) {
	for len(b.calls) > 0 {
		if m := <-b.calls; m.Headers[dbus.FieldMember].Value() == "SetUnitProperties" {
			calls = append(calls, m.Body)
		}
	}
	return calls
}

func newTestClient(t testing.TB) *Client {
	c := NewClient()
	t.Cleanup(c.Close)
	return c
}

func TestSetPropertiesTranslatesCgroupFiles(t *testing.T) {
	b := newFakeBus(t)
	if err := newTestClient(t).SetProperties(t.Context(), "docker-a.scope", map[string]string{
		"memory.high": "4096", "memory.swap.max": "max\n", "memory.oom.group": "1", "hugetlb.2MB.max": "0", "memory.low": "1G", "cpu.weight": "7",
	}); err != nil {
		t.Fatal(err)
	}
	want := [][]any{{"docker-a.scope", true, [][]any{
		{"CPUWeight", dbus.MakeVariant(uint64(7))}, {"MemoryHigh", dbus.MakeVariant(uint64(4096))}, {"MemorySwapMax", dbus.MakeVariant(uint64(math.MaxUint64))},
	}}}
	if diff := cmp.Diff(want, b.setProperties(), cmp.Comparer(func(a, b dbus.Variant) bool { return a.String() == b.String() })); diff != "" {
		t.Errorf("calls of SetUnitProperties (-want +got):\n%s", diff)
	}
}

func TestClientKeepsItsConnectionAndReplacesABrokenOne(t *testing.T) {
	b := newFakeBus(t)
	c := newTestClient(t)
	set := func() {
		t.Helper()
		if err := c.SetProperties(t.Context(), "docker-a.scope", map[string]string{"memory.high": "4096"}); err != nil {
			t.Fatal(err)
		}
	}
	set()
	const perClient = 2 // go-systemd has one connection for calls and one for signals
	for range 3 {
		set()
	}
	if n := len(b.conns); n != perClient {
		t.Errorf("%d connections after four calls, want %d", n, perClient)
	}
	// The context of a call does not end the connection.
	ctx, cancel := context.WithCancel(t.Context())
	c.Close()
	if err := c.SetProperties(ctx, "docker-a.scope", map[string]string{"memory.high": "4096"}); err != nil {
		t.Fatal(err)
	}
	cancel()
	set()
	if n := len(b.conns); n != 2*perClient {
		t.Errorf("%d connections after Close and two calls, want %d", n, 2*perClient)
	}
	for len(b.conns) > 0 {
		(<-b.conns).Close()
	}
	set()
	if calls := b.setProperties(); len(calls) != 7 {
		t.Errorf("%d calls of SetUnitProperties, want 7", len(calls))
	}
}

// A bus that accepts a connection and never replies must not hold up the start of a container.
func TestSetPropertiesGivesUpOnABusThatHangs(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "bus")
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := newTestClient(t).SetProperties(ctx, "docker-a.scope", map[string]string{"memory.high": "4096"}); err == nil || errors.Is(err, ErrNoBus) {
		t.Errorf("SetProperties: %v, want an error about the bus", err)
	}
}

func TestSetPropertiesWithoutASystemBus(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(t.TempDir(), "none"))
	c := newTestClient(t)
	if err := c.SetProperties(t.Context(), "docker-a.scope", map[string]string{"memory.high": "1"}); !errors.Is(err, ErrNoBus) {
		t.Errorf("SetProperties: %v, want %v", err, ErrNoBus)
	}
	if err := c.SetProperties(t.Context(), "docker-a.scope", map[string]string{"memory.oom.group": "1"}); err != nil {
		t.Errorf("SetProperties of a file without a property: %v", err)
	}
}

func TestWatchReloadsReportsTheSubscriptionAndEachReload(t *testing.T) {
	newFakeBus(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	reports := 0
	WatchReloads(ctx, func() {
		if reports++; reports == 2 { // once subscribed, and after the reload that finishes
			time.AfterFunc(200*time.Millisecond, cancel)
		}
	})
	if reports != 2 {
		t.Errorf("%d reports, want 2", reports)
	}
}

// A connection that is kept saves the authentication of each call.
func BenchmarkSetProperties(b *testing.B) {
	files := map[string]string{"memory.high": "1048576"}
	for name, kept := range map[string]bool{"kept connection": true, "connection of its own": false} {
		b.Run(name, func(b *testing.B) {
			bus := newFakeBus(b)
			c := newTestClient(b)
			for b.Loop() {
				if err := c.SetProperties(b.Context(), "docker-0.scope", files); err != nil {
					b.Fatal(err)
				}
				for len(bus.calls) > 0 {
					<-bus.calls
				}
				if !kept {
					c.Close()
					for len(bus.conns) > 0 {
						<-bus.conns
					}
				}
			}
		})
	}
}
