package restore

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"golang.org/x/sys/unix"

	"berth/core/ociedit"
	"berth/core/trust"
)

const (
	// maxMetadata bounds config.dump and spec.dump, in bytes, as core/bundle does.
	maxMetadata = 4 << 20
	// endOfArchive is the size of the two empty blocks at the end of a tar archive.
	endOfArchive = 2 * 512
)

// A Checkpoint is one that a container can be restored from.
type Checkpoint struct {
	// Image refers to the image of the container: by its digest or ID, or by its name if the checkpoint has no more. Name is how a
	// user calls it.
	Image, Name string
	// Args is the command line of the container, and Process what else its OCI spec says of its first process.
	Args    []string
	Process Process
	// Restore is what berth-oci needs to know. Unpack completes it.
	Restore *ociedit.Restore

	from   string // for messages
	size   int64  // bound of all files together
	source source
}

// A Process is the first process of a container. It is what spec.dump says, and not what CRIU restores.
type Process struct {
	Cwd  string
	Env  []string
	User struct {
		UID, GID       uint32
		AdditionalGIDs []uint32
	}
}

// A source calls visit for the regular files and directories with these names in the root directory of a checkpoint, and for everything
// below them.
type source func(ctx context.Context, names []string, visit visitor) error

// A visitor is called with the header and the content of a file.
type visitor func(header *tar.Header, content io.Reader) error

// IsArchive reports whether the name of an image is the path of an archive.
func IsArchive(image string) bool { return strings.HasPrefix(image, "/") }

// OpenArchive returns the checkpoint in the archive with an absolute path. The error is of kind FailedPrecondition if archives are not
// restored, InvalidArgument if the path is not below their directory, and NotFound if there is nothing.
func (s *Store) OpenArchive(ctx context.Context, name string) (*Checkpoint, error) {
	if s == nil || s.cfg.ArchiveDir == "" {
		return nil, fmt.Errorf("image %.200q is a path: containers are restored from archives only below the directory of the option %s, which is not set: %w", name, ArchiveDirOption, errdefs.ErrFailedPrecondition)
	}
	f, err := s.openArchive(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// Without its end an archive may lack whole files, which no reader of tar notices.
	end := make([]byte, endOfArchive)
	if _, err := f.ReadAt(end, before.Size()-endOfArchive); err != nil || strings.Trim(string(end), "\x00") != "" {
		return nil, invalid("archive %.200q is truncated, compressed or no tar archive", name)
	}
	c := &Checkpoint{from: name, size: before.Size()}
	c.source = func(ctx context.Context, names []string, visit visitor) error {
		f, err := s.openArchive(name)
		if err != nil {
			return err
		}
		defer f.Close()
		if now, err := f.Stat(); err != nil || !os.SameFile(before, now) || now.Size() != before.Size() || !now.ModTime().Equal(before.ModTime()) {
			return errors.Join(fmt.Errorf("archive %.200q has been changed meanwhile: %w", name, errdefs.ErrFailedPrecondition), err)
		}
		return walk(ctx, f, names, visit)
	}
	return c, c.readMetadata(ctx)
}

// openArchive opens an archive below the directory of archives. Links are not followed.
func (s *Store) openArchive(name string) (*os.File, error) {
	dir := s.cfg.ArchiveDir
	rest, ok := strings.CutPrefix(name, strings.TrimSuffix(dir, "/")+"/")
	if !ok || path.Clean(name) != name || strings.ContainsRune(name, 0) {
		return nil, fmt.Errorf("archive %.200q: must be a path below %s (%s), without . and .. elements: %w", name, dir, ArchiveDirOption, errdefs.ErrInvalidArgument)
	}
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", ArchiveDirOption, err, errdefs.ErrFailedPrecondition)
	}
	defer root.Close()
	fd, err := unix.Openat2(int(root.Fd()), rest, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return nil, fmt.Errorf("archive %.200q: %w: %w", name, err, errdefs.ErrNotFound)
	case errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("archive %.200q: links are not followed: %w", name, errdefs.ErrInvalidArgument)
	case err != nil:
		return nil, fmt.Errorf("archive %.200q: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("archive %.200q is not a regular file: %w", name, errdefs.ErrInvalidArgument)
	}
	if err == nil {
		if err = trust.Check(name); err != nil {
			err = fmt.Errorf("archive %.200q: %w: %w", name, err, errdefs.ErrFailedPrecondition)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// walk visits the files of an archive.
func walk(ctx context.Context, r io.Reader, names []string, visit visitor) error {
	archive := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return invalid("truncated or no tar archive: %w", err)
		}
		header.Name = path.Clean(header.Name)
		top, _, _ := strings.Cut(header.Name, "/")
		if !slices.Contains(names, top) {
			continue
		}
		if err := visit(header, archive); err != nil {
			return err
		}
	}
}

// invalid returns an error for a checkpoint that cannot be read.
func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// readMetadata reads what describes the container.
func (c *Checkpoint) readMetadata(ctx context.Context) error {
	texts := map[string][]byte{}
	err := c.source(ctx, []string{metadata.ConfigDumpFile, metadata.SpecDumpFile}, func(header *tar.Header, content io.Reader) (err error) {
		if _, twice := texts[header.Name]; twice || header.Typeflag != tar.TypeReg || header.Size > maxMetadata {
			return invalid("%.100q is there twice, not a regular file, or has more than %d bytes", header.Name, maxMetadata)
		}
		texts[header.Name], err = io.ReadAll(io.LimitReader(content, maxMetadata))
		return err
	})
	if err == nil {
		err = c.parseConfig(texts[metadata.ConfigDumpFile])
	}
	if err == nil {
		err = c.parseSpec(texts[metadata.SpecDumpFile])
	}
	if err != nil {
		return fmt.Errorf("checkpoint %.200q: %w", c.from, err)
	}
	return nil
}

// exact matches what stands for one image and no other one.
var exact = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^([^@]+@)?sha256:[0-9a-f]{64}$|^[0-9a-f]{64}$`) })

// parseConfig reads config.dump.
func (c *Checkpoint) parseConfig(text []byte) error {
	var config metadata.ContainerConfig
	if err := json.Unmarshal(text, &config); err != nil {
		return invalid("%s is missing or not JSON: %w", metadata.ConfigDumpFile, err)
	}
	c.Image, c.Name = config.RootfsImageRef, cmp.Or(config.RootfsImageName, config.RootfsImage)
	if !exact().MatchString(c.Image) {
		c.Image = c.Name
	}
	if c.Name == "" {
		c.Name = c.Image
	}
	for _, ref := range []string{c.Image, c.Name} {
		if exact().MatchString(ref) {
			continue
		}
		if _, err := reference.ParseNormalizedNamed(ref); err != nil {
			return invalid("%s: image %.200q: %w", metadata.ConfigDumpFile, ref, err)
		}
	}
	return nil
}

// parseSpec reads spec.dump. What it says is only compared with the new container.
func (c *Checkpoint) parseSpec(text []byte) error {
	var spec struct {
		Process struct {
			Terminal bool
			Args     []string
			Process
		}
		Root   struct{ Readonly bool }
		Mounts []ociedit.RestoredMount
		Linux  struct {
			Namespaces    []struct{ Type, Path string }
			MaskedPaths   []string
			ReadonlyPaths []string
		}
	}
	if err := json.Unmarshal(text, &spec); err != nil {
		return invalid("%s is missing or not JSON: %w", metadata.SpecDumpFile, err)
	}
	if spec.Process.Terminal {
		return fmt.Errorf("the container has a terminal, which cannot be restored: %w", errdefs.ErrFailedPrecondition)
	}
	if len(spec.Process.Args) == 0 {
		return invalid("%s has no command line", metadata.SpecDumpFile)
	}
	c.Args, c.Process = spec.Process.Args, spec.Process.Process
	c.Restore = &ociedit.Restore{
		Mounts: spec.Mounts, MaskedPaths: spec.Linux.MaskedPaths, ReadonlyPaths: spec.Linux.ReadonlyPaths, ReadonlyRoot: spec.Root.Readonly,
	}
	for _, n := range spec.Linux.Namespaces {
		if n.Type == "user" {
			return fmt.Errorf("the container has a user namespace, which cannot be restored: %w", errdefs.ErrFailedPrecondition)
		}
		c.Restore.Namespaces = append(c.Restore.Namespaces, ociedit.RestoredNamespace{Type: n.Type, Joined: n.Path != ""})
	}
	// Instructions have a limit, and Docker keeps the command line with the container.
	if encoded, err := json.Marshal([]any{c.Args, c.Restore}); err != nil || len(encoded) > ociedit.MaxSize/2 {
		return invalid("%s has more than %d bytes of arguments, mounts and paths", metadata.SpecDumpFile, ociedit.MaxSize/2)
	}
	return nil
}

// Unpack writes the files of c to a directory of their own. A nil Checkpoint has none.
func (s *Store) Unpack(ctx context.Context, c *Checkpoint) (_ *Files, err error) {
	if c == nil {
		return nil, nil
	}
	files, err := s.begin()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("checkpoint %.200q: %w", c.from, err), files.Remove())
			files.Release()
		}
	}()
	if err := unpack(ctx, c, files.path()); err != nil {
		return nil, err
	}
	processes, err := readProcesses(filepath.Join(files.path(), ociedit.RestoreImages))
	if err != nil {
		return nil, err
	}
	c.Restore.Dir = files.path()
	c.Restore.Capabilities, c.Restore.Root = processes.capabilities, processes.root
	c.Restore.Seccomp, c.Restore.NoNewPrivileges = processes.seccomp, processes.noNewPrivileges
	return files, nil
}
