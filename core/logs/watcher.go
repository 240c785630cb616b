package logs

import "github.com/fsnotify/fsnotify"

// A watcher tells when files change. Where the node has run out of inotify instances it
// watches nothing.
type watcher struct{ files *fsnotify.Watcher } // nil for one that watches nothing

// add watches the file at path and reports whether it could.
func (w watcher) add(path string) bool { return w.files != nil && w.files.Add(path) == nil }

// remove ends a watch, if there is one.
func (w watcher) remove(path string) {
	if w.files != nil {
		_ = w.files.Remove(path) // it may have ended by itself, when the file went
	}
}

// events returns the channel of changes; nil, on which nothing ever comes, without a watch.
func (w watcher) events() <-chan fsnotify.Event {
	if w.files == nil {
		return nil
	}
	return w.files.Events
}

// errors returns the channel of errors: changes were lost.
func (w watcher) errors() <-chan error {
	if w.files == nil {
		return nil
	}
	return w.files.Errors
}

func (w watcher) close() {
	if w.files != nil {
		_ = w.files.Close() // there is nothing left to watch
	}
}
