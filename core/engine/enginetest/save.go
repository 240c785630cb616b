package enginetest

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"net/http"
)

// A savedImage is the content of an image that was loaded.
type savedImage struct {
	config []byte
	layers [][]byte
}

// imageSave is GET /images/get: the archive of docker save before 25.0. Images of AddImage have no
// content, and cannot be saved.
func (e *Engine) imageSave(c *call) error {
	type manifest struct {
		Config           string
		RepoTags, Layers []string
	}
	var manifests []manifest
	files := map[string][]byte{}
	e.mu.Lock()
	for _, ref := range c.query["names"] {
		p, err := e.findImageLocked(ref)
		if err == nil && p.saved == nil {
			err = errorf(http.StatusInternalServerError, "image %s has no content", ref)
		}
		if err != nil {
			e.mu.Unlock()
			return err
		}
		m := manifest{Config: trimAlgorithm(p.ID) + ".json"}
		files[m.Config] = p.saved.config
		for i, layer := range p.saved.layers {
			name := fmt.Sprintf("%s-%d/layer.tar", trimAlgorithm(p.ID), i)
			files[name] = layer
			m.Layers = append(m.Layers, name)
		}
		manifests = append(manifests, m)
	}
	e.mu.Unlock()
	text, err := json.Marshal(manifests)
	if err != nil {
		return err
	}
	files["manifest.json"] = text
	c.responded = true
	c.Header().Set("Content-Type", "application/x-tar")
	c.WriteHeader(http.StatusOK)
	w := tar.NewWriter(c.ResponseWriter)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
			return errHangUp
		}
		if _, err := w.Write(content); err != nil {
			return errHangUp
		}
	}
	return w.Close()
}
