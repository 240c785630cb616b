// Package systemd tells the service manager what it would else take away from the
// cgroups of containers, and hears when it may have done so.
//
// With the cgroup driver systemd each container is a scope, which is a unit. Whenever
// systemd writes a unit's limits, it writes all of a kind, as it knows them: an update
// by the Engine makes it do that, and so does systemctl daemon-reload.
//
// It is used by the container room, and talks to systemd over the system bus.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	name    = "org.freedesktop.systemd1"
	path    = "/org/freedesktop/systemd1"
	manager = name + ".Manager"
)

// properties are systemd's names for files of cgroup v2 that have one number in
// them. It has none for memory.oom.group of what runs, nor for huge pages.
var properties = map[string]string{
	"cpu.weight":      "CPUWeight",
	"memory.high":     "MemoryHigh",
	"memory.low":      "MemoryLow",
	"memory.max":      "MemoryMax",
	"memory.min":      "MemoryMin",
	"memory.swap.max": "MemorySwapMax",
	"pids.max":        "TasksMax",
}

// ErrNoBus says that there is no system bus to reach systemd by.
var ErrNoBus = errors.New("no system bus")

// answers is how long systemd may take.
const answers = 5 * time.Second

// A property is one as the bus has it.
type property struct {
	Name  string
	Value dbus.Variant
}

// SetProperties tells systemd what files of the cgroup of unit are to say until the unit
// ends, as far as it has words for them, and it writes them. The error is ErrNoBus
// if nobody can be told.
func SetProperties(ctx context.Context, unit string, files map[string]string) error {
	var said []property
	for _, file := range slices.Sorted(maps.Keys(files)) {
		value, ok := number(files[file])
		if word := properties[file]; ok && word != "" {
			said = append(said, property{word, dbus.MakeVariant(value)})
		}
	}
	if len(said) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, answers)
	defer cancel()
	bus, err := connect(ctx)
	if err != nil {
		return err
	}
	defer bus.Close()
	const runtime = true // else it would outlive the unit, and the node
	if err := bus.Object(name, path).CallWithContext(ctx, manager+".SetUnitProperties", 0, unit, runtime, said).Err; err != nil {
		return fmt.Errorf("set properties of %s: %w", unit, err)
	}
	return nil
}

// number reads a limit of cgroup v2 as systemd says it.
func number(word string) (uint64, bool) {
	word = strings.TrimSpace(word)
	if word == "max" {
		return math.MaxUint64, true
	}
	n, err := strconv.ParseUint(word, 10, 64)
	return n, err == nil
}

// connect connects to the system bus until ctx ends.
func connect(ctx context.Context) (*dbus.Conn, error) {
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, ErrNoBus
	}
	if err != nil {
		return nil, fmt.Errorf("system bus: %w", err)
	}
	return bus, nil
}

// again is how long after the bus has gone it is looked for.
const again = 30 * time.Second

// WatchReloads calls did each time after systemd has read its units again, and each time
// it begins to hear of that. It returns when ctx ends.
func WatchReloads(ctx context.Context, did func()) {
	for ctx.Err() == nil {
		hear(ctx, did)
		t := time.NewTimer(again)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// hear is Reloads as long as the bus is there.
func hear(ctx context.Context, did func()) {
	begin, cancel := context.WithTimeout(ctx, answers)
	defer cancel()
	bus, err := connect(ctx)
	if err != nil {
		return
	}
	defer bus.Close()
	signals := make(chan *dbus.Signal, 16)
	bus.Signal(signals)
	if err := bus.AddMatchSignalContext(begin, dbus.WithMatchSender(name), dbus.WithMatchInterface(manager), dbus.WithMatchMember("Reloading")); err != nil {
		return
	}
	// Without subscribers it tells nobody.
	if err := bus.Object(name, path).CallWithContext(begin, manager+".Subscribe", 0).Err; err != nil {
		return
	}
	did()
	for {
		select {
		case <-ctx.Done():
			return
		case s, ok := <-signals:
			if !ok {
				return
			}
			var begins bool
			if s.Name == manager+".Reloading" && dbus.Store(s.Body, &begins) == nil && !begins {
				did()
			}
		}
	}
}
