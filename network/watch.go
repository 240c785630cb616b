package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/fsnotify/fsnotify"
)

const (
	// settleTime is how long a directory must be quiet before it is read: an
	// editor or a pod that installs a plugin writes several times.
	settleTime = 200 * time.Millisecond
	// askEvery is how often the plugins are asked for their status at most.
	askEvery = 5 * time.Second
	askLimit = 800 * time.Millisecond
)

// load reads the configuration as it is now.
func (n *CNI) load() {
	network, err := n.read()
	n.mu.Lock()
	defer n.mu.Unlock()
	before, was := n.network, n.missing
	n.network, n.missing, n.asked = network, err, time.Time{}
	switch {
	case err != nil && (was == nil || was.Error() != err.Error()):
		n.log.Warn("no network for pods", slog.Any("err", err))
	case err == nil && (before == nil || was != nil || string(before.Bytes) != string(network.Bytes)):
		n.log.Info("pods get their network from", slog.String("network", network.Name))
	}
}

// read finds the first valid network configuration. The network is returned
// beside an error where only plugins are missing.
func (n *CNI) read() (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(n.cfg.ConfDir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, fmt.Errorf("CNI configuration: %w", err)
	}
	slices.Sort(files)
	var bad error
	for _, file := range files {
		network, err := libcni.NetworkConfFromFile(file)
		if err == nil && len(network.Plugins) == 0 {
			err = errors.New("no plugins")
		}
		if err != nil {
			bad = errors.Join(bad, fmt.Errorf("%s: %w", file, err))
			continue
		}
		return network, n.plugins(file, network)
	}
	if bad != nil {
		return nil, fmt.Errorf("no valid CNI configuration: %w", bad)
	}
	return nil, fmt.Errorf("no CNI configuration in %s: install a network add-on, or put a .conflist there", n.cfg.ConfDir)
}

// plugins returns an error that names the first plugin that is not installed.
func (n *CNI) plugins(file string, network *libcni.NetworkConfigList) error {
	for _, p := range network.Plugins {
		if !slices.ContainsFunc(n.cfg.BinDirs, func(dir string) bool {
			info, err := os.Stat(filepath.Join(dir, p.Network.Type))
			return err == nil && info.Mode().IsRegular()
		}) {
			return fmt.Errorf("CNI plugin %q, which %s names, is not in %v", p.Network.Type, file, n.cfg.BinDirs)
		}
	}
	return nil
}

// Status returns nil if pods can be attached, or what is in the way.
func (n *CNI) Status(ctx context.Context) error {
	n.mu.Lock()
	network, missing, asked, answer := n.network, n.missing, n.asked, n.answer
	n.mu.Unlock()
	if missing != nil && network != nil {
		n.load() // a plugin may have been installed, and nobody watches those
		n.mu.Lock()
		network, missing = n.network, n.missing
		n.mu.Unlock()
	}
	switch {
	case missing != nil:
		return missing
	case !atLeast11(network.CNIVersion):
		return nil
	case time.Since(asked) < askEvery:
		return answer
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	if answer = n.cni.GetStatusNetworkList(ctx, network); answer != nil {
		answer = fmt.Errorf("CNI network %q is not ready: %w", network.Name, answer)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked, n.answer = time.Now(), answer
	return answer
}

// Run keeps the configuration current until ctx ends.
func (n *CNI) Run(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", n.cfg.ConfDir, err)
	}
	defer watcher.Close()
	var quiet <-chan time.Time
	for {
		if n.follow(watcher) {
			n.load()
		}
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-watcher.Events:
			if !ok {
				return errors.New("the watch on the CNI configuration ended")
			}
			if quiet == nil {
				quiet = time.After(settleTime)
			}
		case err := <-watcher.Errors:
			n.log.Warn("watching the CNI configuration", slog.Any("err", err))
			n.load()
		case <-quiet:
			quiet = nil
			n.load()
		}
	}
}

// follow watches the directory of the configuration or, while it is not there,
// the nearest one above it. It reports whether it has moved.
func (n *CNI) follow(watcher *fsnotify.Watcher) (moved bool) {
	dir := n.cfg.ConfDir
	for {
		if slices.Contains(watcher.WatchList(), dir) {
			if _, err := os.Stat(dir); err == nil {
				return moved
			}
			_ = watcher.Remove(dir) // the directory of that name is another one now, or none
		}
		err := watcher.Add(dir)
		if err == nil {
			for _, old := range watcher.WatchList() {
				if old != dir {
					_ = watcher.Remove(old)
				}
			}
			return true
		}
		parent := filepath.Dir(dir)
		if !errors.Is(err, fs.ErrNotExist) || parent == dir {
			n.log.Warn("cannot watch the CNI configuration", slog.String("dir", dir), slog.Any("err", err))
			return moved
		}
		dir = parent
	}
}
