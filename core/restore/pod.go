package restore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"berth/core/criu"
)

// maxManifest bounds the manifest of a pod's checkpoint, in bytes.
const maxManifest = 1 << 20

// A Pod is the checkpoint of a pod in a directory, as criu.Checkpointer writes it. It is only read.
type Pod struct {
	criu.Manifest
	store *Store
	dir   string
}

// OpenPod returns the checkpoint in a directory. The error is of kind FailedPrecondition if none is restored or it has another format,
// InvalidArgument if the directory is not below that of archives or has no checkpoint of a pod, and NotFound if it is not there.
func (s *Store) OpenPod(dir string) (*Pod, error) {
	if s == nil || s.cfg.ArchiveDir == "" {
		return nil, fmt.Errorf("pods are restored only from checkpoints below the directory of the option %s, which is not set: %w", ArchiveDirOption, errdefs.ErrFailedPrecondition)
	}
	if !strings.HasPrefix(dir, strings.TrimSuffix(s.cfg.ArchiveDir, "/")+"/") || filepath.Clean(dir) != dir {
		return nil, fmt.Errorf("checkpoint_path %.200q: must be a path below %s (%s), without . and .. elements: %w", dir, s.cfg.ArchiveDir, ArchiveDirOption, errdefs.ErrInvalidArgument)
	}
	f, err := s.openArchive(filepath.Join(dir, criu.ManifestFile)) // with the checks of all directories above
	if err != nil {
		return nil, fmt.Errorf("checkpoint of a pod: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return nil, err
	}
	p := &Pod{store: s, dir: dir}
	if err := p.parse(text); err != nil {
		return nil, fmt.Errorf("checkpoint_path %.200q: %s: %w", dir, criu.ManifestFile, err)
	}
	return p, nil
}

func (p *Pod) parse(text []byte) error {
	if len(text) > maxManifest {
		return invalid("more than %d bytes", maxManifest)
	}
	if err := json.Unmarshal(text, &p.Manifest); err != nil {
		return invalid("truncated or not JSON: %w", err)
	}
	if p.Version != criu.ManifestVersion {
		return fmt.Errorf("version %d: this berthd restores version %d: %w", p.Version, criu.ManifestVersion, errdefs.ErrFailedPrecondition)
	}
	if len(p.Containers) == 0 {
		return invalid("there are no containers")
	}
	names := map[string]bool{}
	for _, c := range p.Containers {
		if c.Name == "" || names[c.Name] || filepath.Base(c.Archive) != c.Archive || !filepath.IsLocal(c.Archive) || c.Archive == "." {
			return invalid("container %.200q, archive %.200q: names must be unique, and archives beside the manifest", c.Name, c.Archive)
		}
		names[c.Name] = true
	}
	return nil
}

// ArchiveOf returns the path of the archive of the container name, "" for an unknown container.
func (p *Pod) ArchiveOf(name string) string {
	for _, c := range p.Containers {
		if c.Name == name {
			return filepath.Join(p.dir, c.Archive)
		}
	}
	return ""
}

// Open returns the checkpoints of all containers, by name.
func (p *Pod) Open(ctx context.Context) (map[string]*Checkpoint, error) {
	all := map[string]*Checkpoint{}
	var errs []error
	for _, c := range p.Containers {
		opened, err := p.store.OpenArchive(ctx, p.ArchiveOf(c.Name))
		if err == nil && opened.size != c.Bytes {
			err = invalid("archive %.200q has %d bytes, and %d in %s: it is not that of this checkpoint", c.Archive, opened.size, c.Bytes, criu.ManifestFile)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("container %.200q: %w", c.Name, err))
		}
		all[c.Name] = opened
	}
	return all, errors.Join(errs...)
}
