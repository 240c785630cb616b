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
		return refusal(http.StatusBadRequest, "Bad parameter: path cannot be empty")
	}
	e.mu.Lock()
	b, err := e.find(c.name)
	if err == nil {
		err = e.findSubPaths(b)
	}
	if err != nil {
		e.mu.Unlock()
		return err
	}
	files := b.files
	e.tell(b, events.ActionArchivePath, nil)
	e.mu.Unlock()

	at = path.Clean("/" + at)
	inside := strings.TrimSuffix(at, "/") + "/"
	stat := container.PathStat{Name: path.Base(at), Mode: 0o644, Mtime: b.created}
	content, isFile := files[at]
	if isFile {
		stat.Size = int64(len(content))
	} else {
		stat.Mode = os.ModeDir | 0o755
		below := false
		for name := range files {
			below = below || strings.HasPrefix(name, inside)
		}
		if !below {
			return refusal(http.StatusNotFound, "Could not find the file %s in container %s", c.query.Get("path"), c.name)
		}
	}
	text, err := json.Marshal(stat)
	if err != nil {
		return err
	}
	c.begun = true
	c.Header().Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString(text))
	c.Header().Set("Content-Type", "application/x-tar")
	c.WriteHeader(http.StatusOK)
	if c.Method == http.MethodHead {
		return nil
	}
	w := tar.NewWriter(c.ResponseWriter)
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
