package systemd

import (
	"context"
	"time"

	"github.com/godbus/dbus/v5"

	"berth/core/sleep"
)

// reconnectInterval is the pause before the system bus is tried again. A node without one has none
// later either, and dbus-daemon is restarted together with the machine.
const reconnectInterval = 30 * time.Second

// WatchReloads calls onReload each time after systemd has reloaded its units (systemctl daemon-reload),
// and each time it has subscribed to that signal, because a reload may have been missed before. It
// returns when ctx ends.
//
// It uses godbus because go-systemd (v22.7) has no API for the signal Reloading.
func WatchReloads(ctx context.Context, onReload func()) {
	for ctx.Err() == nil {
		watchReloadsOnce(ctx, onReload)
		_ = sleep.WithContext(ctx, reconnectInterval)
	}
}

// watchReloadsOnce is WatchReloads until the connection to the bus breaks.
func watchReloadsOnce(ctx context.Context, onReload func()) {
	setup, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := connectBus(ctx)
	if err != nil {
		return
	}
	defer conn.Close()
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	if err := conn.AddMatchSignalContext(setup, dbus.WithMatchSender(busName), dbus.WithMatchInterface(managerInterface), dbus.WithMatchMember("Reloading")); err != nil {
		return
	}
	// systemd emits its signals only while it has a subscriber.
	if err := conn.Object(busName, objectPath).CallWithContext(setup, managerInterface+".Subscribe", 0).Err; err != nil {
		return
	}
	onReload()
	for {
		select {
		case <-ctx.Done():
			return
		case s, ok := <-signals:
			if !ok {
				return
			}
			var starts bool // true when a reload starts, false when it has finished
			if s.Name == managerInterface+".Reloading" && dbus.Store(s.Body, &starts) == nil && !starts {
				onReload()
			}
		}
	}
}
