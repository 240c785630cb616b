package systemd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// unitProperties are the unit properties for cgroup v2 files that hold one number
// (systemd.resource-control(5)). There is none for memory.oom.group of a running unit, and none
// for huge pages.
var unitProperties = map[string]string{
	"cpu.weight":      "CPUWeight",
	"memory.high":     "MemoryHigh",
	"memory.low":      "MemoryLow",
	"memory.max":      "MemoryMax",
	"memory.min":      "MemoryMin",
	"memory.swap.max": "MemorySwapMax",
	"pids.max":        "TasksMax",
}

// A Client sets properties of systemd units. It connects to the system bus with the first call,
// keeps the connection, and connects again when it has broken. Calls may run in parallel. Use
// NewClient.
type Client struct {
	// slot holds the connection, nil while there is none. It is a channel and not a mutex because
	// connecting to a bus that hangs must not outlast the context of another call.
	slot chan *systemd.Conn
}

// NewClient returns a Client that is not connected yet.
func NewClient() *Client {
	c := &Client{slot: make(chan *systemd.Conn, 1)}
	c.slot <- nil
	return c
}

// SetProperties sets the properties of a unit that correspond to files of its cgroup, given by name
// with their values, until the unit ends. Files that systemd has no property for, and values that are
// neither a number nor "max", are skipped. systemd writes the limits itself, and others of the same
// controller with them. The error is ErrNoBus if there is no system bus.
func (c *Client) SetProperties(ctx context.Context, unit string, files map[string]string) error {
	var properties []systemd.Property
	for _, file := range slices.Sorted(maps.Keys(files)) {
		limit, ok := parseLimit(files[file])
		if property := unitProperties[file]; ok && property != "" {
			properties = append(properties, systemd.Property{Name: property, Value: dbus.MakeVariant(limit)})
		}
	}
	if len(properties) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for attempt := 0; ; attempt++ {
		conn, err := c.conn(ctx)
		if err != nil {
			return err
		}
		const runtime = true // a persistent property is a file that outlives the unit, and a reboot
		err = conn.SetUnitPropertiesContext(ctx, unit, runtime, properties...)
		if err == nil {
			return nil
		}
		var reply dbus.Error // systemd has refused; any other error is one of the connection
		if attempt > 0 || ctx.Err() != nil || errors.As(err, &reply) {
			return fmt.Errorf("set properties of %s: %w", unit, err)
		}
		// The connection has broken since the call before. To set a property twice is harmless.
		c.discard(conn)
	}
}

// discard closes a connection that has broken, unless another call has replaced it already.
func (c *Client) discard(broken *systemd.Conn) {
	conn := <-c.slot
	if conn == broken {
		conn.Close()
		conn = nil
	}
	c.slot <- conn
}

// Close closes the connection. The Client connects again with the next call.
func (c *Client) Close() {
	if conn := <-c.slot; conn != nil {
		conn.Close()
	}
	c.slot <- nil
}

// conn returns the connection, which it makes if there is none or it has broken.
func (c *Client) conn(ctx context.Context) (*systemd.Conn, error) {
	var conn *systemd.Conn
	select {
	case conn = <-c.slot:
	case <-ctx.Done():
		return nil, fmt.Errorf("system bus: %w", ctx.Err())
	}
	if conn != nil && !conn.Connected() {
		conn.Close()
		conn = nil
	}
	var err error
	if conn == nil {
		conn, err = connect(ctx)
	}
	c.slot <- conn
	return conn, err
}

// connect makes a connection that outlives ctx, which bounds only the making.
func connect(ctx context.Context) (*systemd.Conn, error) {
	// godbus closes a connection together with the context that it was made with, and hangs without
	// one on a bus that accepts connections but does not answer.
	life, abort := context.WithCancel(context.WithoutCancel(ctx))
	keep := context.AfterFunc(ctx, abort)
	conn, err := systemd.NewConnection(func() (*dbus.Conn, error) { return connectBus(life) })
	if err == nil && !keep() {
		conn.Close()
		err = fmt.Errorf("system bus: %w", ctx.Err())
	}
	if err != nil {
		abort()
		return nil, err
	}
	return conn, nil
}

// parseLimit parses a limit of a cgroup v2 file into the number that systemd uses for it.
func parseLimit(text string) (uint64, bool) {
	text = strings.TrimSpace(text)
	if text == "max" {
		return math.MaxUint64, true
	}
	n, err := strconv.ParseUint(text, 10, 64)
	return n, err == nil
}
