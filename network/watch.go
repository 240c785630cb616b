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

	"github.com/fsnotify/fsnotify"
)

const (
	// settle is how long to wait after a change before reading: whoever
	// installs a network writes several times.
	settle = 100 * time.Millisecond
	// retry is how often to look where watching is impossible: nodes do run out
	// of inotify instances.
	retry = 5 * time.Second
)

// Run keeps the configuration current until ctx ends.
func (n *CNI) Run(ctx context.Context) error {
	if found := n.found.Load(); len(found.networks) == 0 {
		n.log.Warn("no network for pods yet", slog.String("why", n.without(found)))
	}
	told := false
	for ctx.Err() == nil {
		err := n.watch(ctx)
		if ctx.Err() != nil {
			break
		}
		if !told {
			n.log.Warn("the network configuration cannot be watched, looking every few seconds instead",
				slog.String("dir", n.confDir), slog.Any("err", err))
			told = true
		}
		n.reload()
		_ = sleep(ctx, retry) // ctx is what the loop asks
	}
	return nil
}

// watch reloads the configuration whenever it has changed. It returns why it
// cannot go on.
func (n *CNI) watch(ctx context.Context) (err error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	for {
		if _, err := n.follow(w); err != nil {
			return err
		}
		n.reload()
		// The configuration names more places to watch, which may have changed
		// between being read and being watched.
		more, err := n.follow(w)
		if err != nil {
			return err
		}
		if more {
			n.reload()
		}
		if err := n.change(ctx, w); err != nil {
			return err
		}
	}
}

// change returns once something that matters has changed and settled.
func (n *CNI) change(ctx context.Context, w *fsnotify.Watcher) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case event, ok := <-w.Events:
			if !ok {
				return fsnotify.ErrClosed
			}
			if n.matters(event) {
				return sleep(ctx, settle)
			}
		case err := <-w.Errors:
			if err == nil {
				return fsnotify.ErrClosed
			}
			// Events were lost, or a directory went away while it was looked
			// at: who knows what has changed.
			n.log.Debug("watching the network configuration", slog.Any("err", err))
			return sleep(ctx, settle)
		}
	}
}

// matters reports whether event may change what reload finds: it is about a
// file in the configuration directory or below, or about a directory on the
// way there.
func (n *CNI) matters(event fsnotify.Event) bool {
	return event.Op != fsnotify.Chmod && (within(event.Name, n.confDir) || within(n.confDir, event.Name))
}

// within reports whether path is dir or lies in it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// follow makes w watch what there is to watch now, and returns whether that is
// more than before.
func (n *CNI) follow(w *fsnotify.Watcher) (more bool, err error) {
	added := map[string]bool{}
	for {
		want, have := n.places(), w.WatchList()
		for _, dir := range have {
			if !slices.Contains(want, dir) {
				_ = w.Remove(dir) // if it fails, the directory is gone and the watch with it
			}
		}
		stable := true
		for _, dir := range want {
			if slices.Contains(have, dir) || added[dir] {
				continue
			}
			stable = false
			err := w.Add(dir)
			switch {
			case err == nil:
				added[dir], more = true, true
			case !errors.Is(err, fs.ErrNotExist):
				return more, fmt.Errorf("watch %s: %w", dir, err)
			}
		}
		// What appeared before its watch did is seen in the next round.
		if stable {
			return more, nil
		}
	}
}

// places returns the directories to watch: that of the configuration and the
// one it is in, or, while it does not exist, the nearest above it that does;
// and those below it, where networks keep more plugins.
func (n *CNI) places() []string {
	dir := n.confDir
	for !isDir(dir) {
		up := filepath.Dir(dir)
		if up == dir {
			break
		}
		dir = up
	}
	if dir != n.confDir {
		return []string{dir}
	}
	places := []string{dir}
	if up := filepath.Dir(dir); up != dir {
		places = append(places, up)
	}
	// Also those of networks that are not to be had now: what mends one may come
	// there, and one whose files are read half written is mended so.
	entries, err := os.ReadDir(dir)
	if err != nil {
		return places // it has just gone, which the one above will tell
	}
	for _, e := range entries {
		if sub := filepath.Join(dir, e.Name()); isDir(sub) {
			places = append(places, sub)
		}
	}
	return places
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
