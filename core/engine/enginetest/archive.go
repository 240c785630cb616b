package enginetest

import (
	"archive/tar"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
)

// archive is GET and HEAD /containers/{id}/archive: a tar of a file, or of all
// that is below a directory.
func (e *Engine) archive(c *call) error {
	at := c.query.Get("path")
	if at == "" {
		return errorf(http.StatusBadRequest, "Bad parameter: path cannot be empty")
	}
	e.mu.Lock()
	b, err := e.findContainerLocked(c.name)
	if err == nil {
		err = e.checkSubPathsLocked(b)
	}
	if err != nil {
		e.mu.Unlock()
		return err
	}
	files, links := b.files, b.links
	e.emitLocked(b, events.ActionArchivePath, nil)
	e.mu.Unlock()

	name := path.Clean("/" + at)
	at, err = followLinks(links, name, false)
	if err != nil {
		return err
	}
	target, isLink := links[at]
	inside := strings.TrimSuffix(at, "/") + "/"
	stat := container.PathStat{Name: path.Base(name), Mode: 0o644, Mtime: b.created}
	content, isFile := files[at]
	if isLink {
		stat.Mode = os.ModeSymlink | 0o777
		if stat.LinkTarget, err = followLinks(links, at, true); err != nil {
			return err
		}
	} else if isFile {
		stat.Size = int64(len(content))
	} else {
		stat.Mode = os.ModeDir | 0o755
		below := false
		for name := range files {
			below = below || strings.HasPrefix(name, inside)
		}
		if !below {
			return errorf(http.StatusNotFound, "Could not find the file %s in container %s", c.query.Get("path"), c.name)
		}
	}
	text, err := json.Marshal(stat)
	if err != nil {
		return err
	}
	c.responded = true
	c.Header().Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString(text))
	c.Header().Set("Content-Type", "application/x-tar")
	c.WriteHeader(http.StatusOK)
	if c.Method == http.MethodHead {
		return nil
	}
	w := tar.NewWriter(c.ResponseWriter)
	if isLink {
		if err := w.WriteHeader(&tar.Header{Name: stat.Name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}); err != nil {
			return errHangUp
		}
		return w.Close()
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		under, below := strings.CutPrefix(name, inside)
		if name == at {
			under = ""
		} else if !below {
			continue
		}
		err := w.WriteHeader(&tar.Header{
			Name: path.Join(stat.Name, under), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[name])), ModTime: time.Unix(0, 0),
		})
		if err != nil {
			return errHangUp
		}
		if _, err := w.Write([]byte(files[name])); err != nil {
			return errHangUp
		}
	}
	return w.Close()
}

// maxLinks is how many symbolic links Docker follows (moby/sys/symlink.FollowSymlinkInScope).
const maxLinks = 255

// followLinks resolves the symbolic links of a container in a path, as Docker does; the last
// element only if last is set.
func followLinks(links map[string]string, name string, last bool) (string, error) {
	at, rest := "/", strings.Split(name, "/")
	for followed := 0; len(rest) > 0; {
		next := path.Join(at, rest[0])
		rest = rest[1:]
		target, isLink := links[next]
		if !isLink || len(rest) == 0 && !last {
			at = next
			continue
		}
		if followed++; followed > maxLinks {
			return "", errorf(http.StatusInternalServerError, "evalSymlinksInScope: too many links in %s", name)
		}
		if path.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, nil
}
