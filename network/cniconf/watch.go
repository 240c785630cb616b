package cniconf

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

	"berth/core/sleep"
)

const (
	// debounceInterval is how long to wait after a change before the directory is read: the
	// installers of networks write several files.
	debounceInterval = 100 * time.Millisecond
	// pollInterval is how often the directory is read where it cannot be watched, for
	// example because the node has run out of inotify instances.
	pollInterval = 5 * time.Second
)

// Run reloads the directory whenever it changes, until ctx ends. It returns nil.
func (d *Dir) Run(ctx context.Context) error {
	if current := d.content.Load(); d.first(current) == nil {
		d.log.Warn("no network for pods yet", slog.String("why", d.noNetworkReason(current)))
	}
	logged := false
	for ctx.Err() == nil {
		err := d.watch(ctx)
		if ctx.Err() != nil {
			break
		}
		if !logged {
			d.log.Warn("the network configuration cannot be watched, it is read every few seconds instead",
				slog.String("dir", d.path), slog.Any("err", err))
			logged = true
		}
		d.Reload()
		_ = sleep.WithContext(ctx, pollInterval) // the loop checks ctx
	}
	return nil
}

// watch reloads the directory after each change. It returns the error that ended the watch.
func (d *Dir) watch(ctx context.Context) (err error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	for {
		if _, err := d.updateWatches(w); err != nil {
			return err
		}
		d.Reload()
		// Subdirectories may have appeared, and changed, between the two calls above.
		added, err := d.updateWatches(w)
		if err != nil {
			return err
		}
		if added {
			d.Reload()
		}
		if err := d.waitForChange(ctx, w); err != nil {
			return err
		}
	}
}

// waitForChange returns nil debounceInterval after a relevant change.
func (d *Dir) waitForChange(ctx context.Context, w *fsnotify.Watcher) error {
	var retry <-chan time.Time
	if d.content.Load().generateErr != nil {
		t := time.NewTimer(pollInterval)
		defer t.Stop()
		retry = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.wake:
			return nil
		case <-retry:
			return nil
		case event, ok := <-w.Events:
			if !ok {
				return fsnotify.ErrClosed
			}
			if d.isRelevant(event) {
				return sleep.WithContext(ctx, debounceInterval)
			}
		case err := <-w.Errors:
			if err == nil {
				return fsnotify.ErrClosed
			}
			// Events were lost, or a directory was removed while its watch was being
			// added. Anything may have changed.
			d.log.Debug("watch of the network configuration lost events", slog.Any("err", err))
			return sleep.WithContext(ctx, debounceInterval)
		}
	}
}

// isRelevant reports whether event may change the result of Reload: it is about a path in
// the directory, or about one of its parents.
func (d *Dir) isRelevant(event fsnotify.Event) bool {
	return event.Op != fsnotify.Chmod && (within(event.Name, d.path) || within(d.path, event.Name))
}

// within reports whether path is dir or is in it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// updateWatches makes w watch exactly watchDirs, and reports whether it has added any.
func (d *Dir) updateWatches(w *fsnotify.Watcher) (added bool, err error) {
	watched := map[string]bool{}
	for {
		want, have := d.watchDirs(), w.WatchList()
		for _, dir := range have {
			if !slices.Contains(want, dir) {
				_ = w.Remove(dir) // fails if the directory is gone, and then the watch is too
			}
		}
		stable := true
		for _, dir := range want {
			if slices.Contains(have, dir) || watched[dir] {
				continue
			}
			stable = false
			err := w.Add(dir)
			switch {
			case err == nil:
				watched[dir], added = true, true
			case !errors.Is(err, fs.ErrNotExist):
				return added, fmt.Errorf("watch %s: %w", dir, err)
			}
		}
		// Directories that were created before the watch of their parent was added are
		// found in the next round.
		if stable {
			return added, nil
		}
	}
}

// watchDirs returns the directories to watch: the configuration directory, its parent,
// and its subdirectories, which hold more plugins of networks. While the directory does
// not exist, that is its nearest existing ancestor.
func (d *Dir) watchDirs() []string {
	dir := d.path
	for !isDir(dir) {
		parent := filepath.Dir(dir)
		if parent == dir {
			break
		}
		dir = parent
	}
	if dir != d.path {
		return []string{dir}
	}
	dirs := []string{dir}
	if parent := filepath.Dir(dir); parent != dir {
		dirs = append(dirs, parent)
	}
	// Also the subdirectories of networks that are invalid now: the file that makes one
	// valid again may be written there.
	entries, err := os.ReadDir(dir)
	if err != nil {
		return dirs // it has just been removed, which the watch of its parent reports
	}
	for _, e := range entries {
		if sub := filepath.Join(dir, e.Name()); isDir(sub) {
			dirs = append(dirs, sub)
		}
	}
	return dirs
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
