package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// socketMode lets root and the socket's group in. Whoever can talk to us is
// root on the node.
const socketMode = 0o660

// listen opens the socket that endpoint names.
func listen(endpoint string) (net.Listener, error) {
	if name, ok := strings.CutPrefix(endpoint, "fd://"); ok {
		return activated(name)
	}
	path := strings.TrimPrefix(endpoint, "unix://")
	if err := clear(path); err != nil {
		return nil, fmt.Errorf("--container-runtime-endpoint %s: %w", endpoint, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("--container-runtime-endpoint %s: %w", endpoint, err)
	}
	// Nobody else may come in between listening and chmod.
	old := unix.Umask(0o777 &^ socketMode)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("--container-runtime-endpoint %s: %w", endpoint, err)
	}
	return l, nil
}

// activated returns a socket that systemd has opened: the one called name, or
// the first.
func activated(name string) (net.Listener, error) {
	byName, err := activation.ListenersWithNames()
	if err != nil {
		return nil, fmt.Errorf("sockets of systemd: %w", err)
	}
	for called, sockets := range byName {
		if len(sockets) > 0 && (name == "" || called == name) {
			return sockets[0], nil
		}
	}
	if name != "" {
		return nil, fmt.Errorf("--container-runtime-endpoint fd://%s: systemd has passed no socket of that name", name)
	}
	return nil, errors.New("--container-runtime-endpoint fd://: systemd has passed no socket: start berth.socket, or use unix://PATH")
}

// clear removes a socket that nobody listens on any more.
func clear(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return errors.New("there is a file that is no socket")
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
		return errors.New("somebody listens there already: another berthd, or cri-dockerd?")
	}
	return os.Remove(path)
}
