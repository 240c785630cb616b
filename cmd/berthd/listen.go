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

// listen opens the socket that endpoint names: unix:///PATH, fd:// or
// fd://NAME. A unix:///PATH at which systemd has opened one for us is that one.
func listen(endpoint string) (l net.Listener, err error) {
	given := activation.Files(true) // and CNI plugins shall not think they are theirs
	defer func() {
		for _, f := range given {
			f.Close() // a listener has its own descriptor
		}
	}()
	if name, ok := strings.CutPrefix(endpoint, "fd://"); ok {
		l, err = passed(given, name)
	} else {
		path := strings.TrimPrefix(endpoint, "unix://")
		if l = passedAt(given, path); l == nil {
			l, err = open(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listen at %s (--container-runtime-endpoint): %w", endpoint, err)
	}
	return l, nil
}

// passedAt returns the given socket that is bound to path, nil if none is. Units
// that were made for cri-dockerd name a path and require a socket unit at once.
func passedAt(given []*os.File, path string) net.Listener {
	at, err := os.Stat(path) // by whatever name: /var/run is /run
	if err != nil {
		return nil
	}
	for _, f := range given {
		l, err := net.FileListener(f)
		if err != nil {
			continue // nothing that the kubelet could connect to
		}
		if bound, err := os.Stat(l.Addr().String()); err == nil && l.Addr().Network() == "unix" && os.SameFile(bound, at) {
			return l
		}
		l.Close() // it is not ours to use
	}
	return nil
}

// open makes a socket at path. It is removed again when the listener closes.
func open(path string) (net.Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	// The mode is right from the beginning: nobody else comes in before a chmod.
	// Nothing else of ours runs yet that the umask could concern.
	old := unix.Umask(0o777 &^ socketMode)
	defer unix.Umask(old)
	return net.Listen("unix", path)
}

// passed returns the given socket called name, or for "" the first.
func passed(given []*os.File, name string) (net.Listener, error) {
	var names []string
	for _, f := range given {
		if name != "" && f.Name() != name {
			names = append(names, f.Name())
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
	if len(names) > 0 {
		return nil, fmt.Errorf("systemd has passed no socket of that name, but %s (FileDescriptorName= in the socket unit)", strings.Join(names, ", "))
	}
	return nil, errors.New("systemd has passed no socket: start the socket unit, or use unix:///PATH")
}

// removeStale removes a socket that nobody listens on any more.
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
	conn, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		return errors.Join(errors.New("somebody serves there already: stop that berthd or cri-dockerd first"), conn.Close())
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(path)
	default:
		return fmt.Errorf("find out whether somebody serves there: %w", err)
	}
}
