package logs

import "github.com/fsnotify/fsnotify"

// A watcher reports changes of files. It watches nothing if the node has run out of
// inotify instances.
type watcher struct{ files *fsnotify.Watcher } // nil if it watches nothing

// add watches the file at path and reports whether it could.
func (w watcher) add(path string) bool { return w.files != nil && w.files.Add(path) == nil }

// remove ends a watch, if there is one.
func (w watcher) remove(path string) {
	if w.files != nil {
		_ = w.files.Remove(path) // it has ended already if the file was removed
	}
}

// events returns the channel of changes; nil if it watches nothing.
func (w watcher) events() <-chan fsnotify.Event {
	if w.files == nil {
		return nil
	}
	return w.files.Events
}

// errors returns the channel of errors, such as a queue overflow: changes were lost.
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
