package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// socketMode gives access to root and the socket's group only: a client of the CRI can become
// root on the node.
const socketMode = 0o660

// debugSocketMode gives access to root only: the socket shows the names of pods and images.
const debugSocketMode = 0o600

// listenDebug opens the debug socket at path; no path is no listener. Pods do not depend on it: an error is logged,
// and there is no listener.
func listenDebug(path string, log *slog.Logger) net.Listener {
	if path == "" {
		return nil
	}
	l, err := listenUnix(path, debugSocketMode)
	if err != nil {
		log.Error("debug socket cannot be opened: berthd pulls does not work", slog.String("debug-socket", path), slog.Any("err", err))
		return nil
	}
	return l
}

// listen opens the socket of an endpoint: unix:///PATH, fd:// or fd://NAME. If systemd has passed a socket
// that is bound to PATH, that one is used.
func listen(endpoint string) (l net.Listener, err error) {
	passed := activation.Files(true) // unsets LISTEN_FDS, so that CNI plugins do not see it
	defer func() {
		for _, f := range passed {
			f.Close() // a listener has its own descriptor
		}
	}()
	if name, ok := strings.CutPrefix(endpoint, "fd://"); ok {
		l, err = passedByName(passed, name)
	} else {
		path := strings.TrimPrefix(endpoint, "unix://")
		if l = passedByPath(passed, path); l == nil {
			l, err = listenUnix(path, socketMode)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listen at %s (--container-runtime-endpoint): %w", endpoint, err)
	}
	return l, nil
}

// passedByPath returns the passed socket that is bound to path, nil if there is none. Units
// for cri-dockerd name a path and also require a socket unit.
func passedByPath(passed []*os.File, path string) net.Listener {
	want, err := os.Stat(path) // compared as files: /var/run is a link to /run
	if err != nil {
		return nil
	}
	for _, f := range passed {
		l, err := net.FileListener(f)
		if err != nil {
			continue // not a stream socket, or not listening
		}
		if bound, err := os.Stat(l.Addr().String()); err == nil && l.Addr().Network() == "unix" && os.SameFile(bound, want) {
			return l
		}
		l.Close()
	}
	return nil
}

// listenUnix makes a socket with that mode at path. It is removed when the listener is closed.
func listenUnix(path string, mode int) (net.Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	// A chmod after Listen would let others connect before it. The umask is of the whole process, but nothing
	// else that makes files runs yet.
	old := unix.Umask(0o777 &^ mode)
	defer unix.Umask(old)
	return net.Listen("unix", path)
}

// passedByName returns the passed socket of that name, the first one for "".
func passedByName(passed []*os.File, name string) (net.Listener, error) {
	var others []string
	for _, f := range passed {
		if name != "" && f.Name() != name {
			others = append(others, f.Name())
			continue
		}
		l, err := net.FileListener(f)
		if err != nil {
			return nil, fmt.Errorf("the socket %s of systemd: %w", f.Name(), err)
		}
		if l.Addr().Network() != "unix" {
			return nil, errors.Join(
				fmt.Errorf("the socket %s of systemd is at %s; the CRI has no authentication and is served on Unix sockets only", f.Name(), l.Addr()),
				l.Close())
		}
		return l, nil
	}
	if len(others) > 0 {
		return nil, fmt.Errorf("systemd has passed no socket of that name, but %s (FileDescriptorName= in the socket unit)", strings.Join(others, ", "))
	}
	return nil, errors.New("systemd has passed no socket: start the socket unit, or use unix:///PATH")
}

// staleTimeout limits the attempt to connect to a socket that another process may serve.
const staleTimeout = time.Second

// removeStale removes a socket that no process serves any more.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode()&fs.ModeSocket == 0:
		return errors.New("there is a file that is no socket: remove it or name another path")
	}
	conn, err := net.DialTimeout("unix", path, staleTimeout)
	switch {
	case err == nil:
		return errors.Join(errors.New("another process serves this socket: stop that berthd or cri-dockerd first"), conn.Close())
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(path)
	default:
		return fmt.Errorf("find out whether another process serves there: %w", err)
	}
}
