package diskusage

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"

	"berth/core/cache"
	"berth/core/engine"
	"berth/core/logs/dockerlog"
)

// layerDir returns the directory of a container's writable layer, "" if it cannot be
// found. Only sources that the container cannot change are used: its own mount table could
// lead to any directory of the node.
func (t *Tracker) layerDir(docker *engine.Conn, c *cache.Container) string {
	features := docker.Features
	if c.WritableLayer != "" {
		if isBelow(features.RootDir, c.WritableLayer) {
			return c.WritableLayer
		}
		return ""
	}
	t.mu.Lock()
	dir := t.layerDirs[c.ID()]
	t.mu.Unlock()
	if dir != "" || c.Pid == 0 {
		return dir
	}
	// With the containerd image store Docker does not report the directory, but mounts the
	// root file system at <data root>/rootfs/<snapshotter>/<ID> while the container runs
	// (moby, daemon/snapshotter/mount.go).
	list, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != "overlay" || filepath.Base(m.Mountpoint) != c.ID() || !isBelow(features.RootDir, m.Mountpoint), false
	})
	if err != nil || len(list) == 0 {
		return ""
	}
	dir = upperDir(list[len(list)-1].VFSOptions, features.RootDir, features.ContainerdRoot)
	if dir != "" {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.layerDirs[c.ID()] = dir
	}
	return dir
}

// upperDir returns the value of upperdir= in the options of an overlay mount, "" if it is
// below none of the roots.
func upperDir(options string, roots ...string) string {
	for option := range strings.SplitSeq(options, ",") {
		upper, ok := strings.CutPrefix(option, "upperdir=")
		if !ok {
			continue
		}
		for _, root := range roots {
			if isBelow(root, upper) {
				return upper
			}
		}
	}
	return ""
}

// isBelow reports whether path is clean and below the directory root.
func isBelow(root, path string) bool {
	return filepath.IsAbs(root) && filepath.Clean(path) == path && strings.HasPrefix(path, strings.TrimSuffix(root, "/")+"/")
}

// addLogs adds to w the log files that Docker keeps in dir, the container's directory
// below its data root. The driver local has a directory of its own, also with compressed
// files, for which file is zero.
func addLogs(w *walk, dir string, file dockerlog.File) {
	w.roots = append(w.roots, filepath.Join(dir, "local-logs"))
	if file.Driver != dockerlog.JSONFile || filepath.Dir(file.Path) != dir {
		return
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(file.Path)) { // rotated files have a suffix
			w.countFile(filepath.Join(dir, e.Name()))
		}
	}
}
