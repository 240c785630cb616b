// Package systemd sets cgroup limits of container scopes as unit properties over D-Bus, so
// that systemd does not reset them, and watches for daemon-reload.
//
// With Docker's cgroup driver "systemd" each container is a scope unit. Whenever systemd
// applies the limits of a unit, it writes all limits of a controller as it knows them: after
// an update by Docker, and after systemctl daemon-reload. A limit that was only written to the
// cgroup file is lost then.
//
// Client sets the properties through one connection that it keeps; WatchReloads reports the
// moments after which limits without a property have to be written again.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	busName          = "org.freedesktop.systemd1"
	objectPath       = "/org/freedesktop/systemd1"
	managerInterface = busName + ".Manager"
)

// ErrNoBus is returned where the node has no system bus through which systemd could be reached.
var ErrNoBus = errors.New("no system bus")

// callTimeout bounds connecting to the bus, and each call. systemd answers in milliseconds, but
// not while it reloads its units, which takes seconds on nodes with many of them.
const callTimeout = 5 * time.Second

// connectBus connects to the system bus. The connection closes when ctx ends.
func connectBus(ctx context.Context) (*dbus.Conn, error) {
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, ErrNoBus
	}
	if err != nil {
		return nil, fmt.Errorf("system bus: %w", err)
	}
	return conn, nil
}
