package enginetest

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"path"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
)

// imageLoad is POST /images/load: the archive of a docker save.
func (e *Engine) imageLoad(c *call) error {
	files, err := untar(c.Body)
	if err != nil {
		return errorf(http.StatusInternalServerError, "Error processing tar file: %v", err)
	}
	var manifests []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal(files["manifest.json"], &manifests); err != nil {
		return errorf(http.StatusInternalServerError, "invalid manifest.json: %v", err)
	}
	var messages []string
	for _, m := range manifests {
		config, ok := files[path.Clean(m.Config)]
		if !ok {
			return errorf(http.StatusInternalServerError, "invalid archive: no %s", m.Config)
		}
		var about struct {
			Architecture string
			Created      time.Time
			Config       container.Config
		}
		if err := json.Unmarshal(config, &about); err != nil {
			return errorf(http.StatusInternalServerError, "invalid image config: %v", err)
		}
		img := Image{ID: "sha256:" + sha256Hex(string(config)), Config: about.Config, Created: about.Created, Arch: about.Architecture}
		saved := &savedImage{config: config}
		for _, l := range m.Layers {
			saved.layers = append(saved.layers, files[path.Clean(l)])
			img.Size += int64(len(files[path.Clean(l)]))
			img.Layers = append(img.Layers, "sha256:"+sha256Hex(string(files[path.Clean(l)])))
		}
		e.mu.Lock()
		e.storeImageLocked(img.withDefaults(""))
		e.images[img.ID].saved = saved
		for _, tag := range m.RepoTags {
			e.refs[withTag(tag)] = img.ID
			messages = append(messages, "Loaded image: "+withTag(tag)+"\n")
		}
		if len(m.RepoTags) == 0 {
			messages = append(messages, "Loaded image ID: "+img.ID+"\n")
		}
		e.emitImageLocked(events.ActionLoad, e.images[img.ID], img.ID)
		e.mu.Unlock()
	}
	send := c.stream()
	for _, line := range messages {
		if err := send(map[string]string{"stream": line}); err != nil {
			return errHangUp
		}
	}
	return nil
}

// untar reads all files of an archive.
func untar(r io.Reader) (map[string][]byte, error) {
	files := map[string][]byte{}
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err == nil {
			files[path.Clean(h.Name)], err = io.ReadAll(archive)
		}
		if err != nil {
			return nil, err
		}
	}
}
