// Package passwd reads the users and groups of images: /etc/passwd and /etc/group as Docker
// reads them when it starts a container. The Engine has no call for files of an image, so a Reader
// creates a helper container, copies the files from it and removes it; results are cached.
//
// Helpers that a crash leaves behind are removed by RunGC. Errors have the kinds of
// containerd/errdefs.
package passwd

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"berth/core/engine"
	"berth/core/identity"
	"berth/core/kmutex"
)

const (
	// maxFile is the largest /etc/passwd or /etc/group that is read.
	maxFile = 1 << 20
	// removeTimeout bounds the removal of a helper container.
	removeTimeout = time.Minute
	// gcInterval is the time between two runs of the garbage collection. Helpers are only
	// left behind when berthd is killed or Docker stops, so it need not be short.
	gcInterval = time.Minute
	// gcRetryInterval is the time until the next run after a removal has failed.
	gcRetryInterval = time.Second
)

// A Reader reads the users and groups of images. Its methods may be called concurrently.
type Reader struct {
	docker *engine.Engine
	log    *slog.Logger

	cached cache
	reads  kmutex.Mutex // by image ID

	helpersMu    sync.Mutex      // guards following
	helpersInUse map[string]bool // purposes of the helper containers that calls use

	gcTrigger chan struct{} // buffered; holds one value if a helper could not be removed
}

// New returns a Reader. No argument may be nil.
func New(docker *engine.Engine, log *slog.Logger) *Reader {
	return &Reader{docker: docker, log: log, helpersInUse: map[string]bool{}, gcTrigger: make(chan struct{}, 1)}
}

// Retain removes the cached files of images whose IDs are not keys of images.
func (r *Reader) Retain(images map[string]bool) { r.cached.retain(images) }

// Files returns /etc/passwd and /etc/group of the image with the ID. They are read from
// a helper container that is never started, because Docker gives access to the files of an
// image in no other way with all storage drivers. Then they are cached.
func (r *Reader) Files(ctx context.Context, id string) (identity.PasswdFiles, error) {
	unlock, err := r.reads.Lock(ctx, id)
	if err != nil {
		return identity.PasswdFiles{}, err
	}
	defer unlock()
	if cached, ok := r.cached.get(id); ok {
		return cached, nil
	}
	files, err := r.readFiles(ctx, id)
	if errdefs.IsNotFound(err) {
		// Something else removed the helper, such as docker container prune, which
		// removes every container that was never started.
		files, err = r.readFiles(ctx, id)
	}
	if err != nil {
		return identity.PasswdFiles{}, fmt.Errorf("read users and groups of image %s: %w", id, err)
	}
	r.cached.put(id, files)
	return files, nil
}

func (r *Reader) readFiles(ctx context.Context, id string) (files identity.PasswdFiles, err error) {
	err = r.withHelper(ctx, id, func(docker *engine.Conn, helper string) error {
		bounded, cancel := docker.WithRequestTimeout(context.WithoutCancel(ctx))
		defer cancel()
		if files.Passwd, err = readFile(bounded, docker, helper, "/etc/passwd"); err != nil {
			return err
		}
		files.Group, err = readFile(bounded, docker, helper, "/etc/group")
		return err
	})
	return files, err
}

// withHelper calls use with a helper container of the image id, and removes it afterwards.
func (r *Reader) withHelper(ctx context.Context, id string, use func(docker *engine.Conn, helper string) error) error {
	docker, err := r.docker.Conn()
	if err != nil {
		return err
	}
	// The caller's cancellation does not apply: the helper must be removed.
	detached := context.WithoutCancel(ctx)
	bounded, cancel := docker.WithRequestTimeout(detached)
	defer cancel()
	// Registered before the helper exists, or a concurrent collectHelpers would remove it.
	purpose := rand.Text()
	r.helpersMu.Lock()
	r.helpersInUse[purpose] = true
	r.helpersMu.Unlock()
	defer func() {
		r.helpersMu.Lock()
		defer r.helpersMu.Unlock()
		delete(r.helpersInUse, purpose)
	}()
	helper, err := docker.CreateHelper(bounded, id, engine.ReadHelper, purpose)
	if err != nil {
		return err
	}
	defer func() {
		bounded, cancel := context.WithTimeout(detached, removeTimeout)
		defer cancel()
		if err := docker.ForceRemove(bounded, helper); err != nil {
			r.log.Info("helper container for reading files of an image cannot be removed, will be retried", slog.String("container", helper), slog.Any("err", err))
			select {
			case r.gcTrigger <- struct{}{}:
			default:
			}
		}
	}()
	return use(docker, helper)
}

// readFile returns the content of a file of a container. A file that does not exist is
// empty, as in Docker.
//
// Symbolic links are resolved by Docker: the same file is read as when a container of the
// image starts. A file that cannot be read completely is an error and not treated as empty:
// Docker would find users and groups in it that are unknown here.
func readFile(ctx context.Context, docker *engine.Conn, container, name string) ([]byte, error) {
	text, target, err := readEntry(ctx, docker, container, name)
	if err != nil || target == "" {
		return text, err
	}
	if text, target, err = readEntry(ctx, docker, container, target); err == nil && target != "" {
		err = fmt.Errorf("symbolic link to %s, which is a symbolic link: %w", target, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return text, nil
}

// containerExists distinguishes two meanings of NotFound: it returns nil if the container
// exists, so that a file was not found, and an error of kind NotFound if not.
func containerExists(ctx context.Context, docker *engine.Conn, container string) error {
	_, err := docker.ContainerInspect(ctx, container)
	return err
}

// readEntry returns the content of a file or, if name is a symbolic link, the path that it
// leads to, which Docker has resolved. An error of kind NotFound is about the container.
func readEntry(ctx context.Context, docker *engine.Conn, container, name string) (text []byte, target string, err error) {
	// Docker opens a file to archive it. With a FIFO that blocks for ever, and the container
	// cannot be removed any more (docker 20.10), so the type is checked first.
	stat, err := docker.ContainerStatPath(ctx, container, name)
	switch {
	case errdefs.IsNotFound(err):
		return nil, "", containerExists(ctx, docker, container)
	case err != nil:
		return nil, "", err
	case stat.Mode&fs.ModeSymlink != 0 && stat.LinkTarget == "":
		return nil, "", fmt.Errorf("%s is a symbolic link, and Docker does not return its target: %w", name, errdefs.ErrFailedPrecondition)
	case stat.Mode&fs.ModeSymlink != 0:
		return nil, stat.LinkTarget, nil
	case !stat.Mode.IsRegular():
		return nil, "", fmt.Errorf("%s is not a regular file: %w", name, errdefs.ErrFailedPrecondition)
	}
	body, _, err := docker.CopyFromContainer(ctx, container, name)
	switch {
	case errdefs.IsNotFound(err):
		return nil, "", containerExists(ctx, docker, container)
	case err != nil:
		return nil, "", err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	archive := tar.NewReader(body)
	header, err := archive.Next()
	switch {
	case err != nil:
		return nil, "", fmt.Errorf("%s: %w", name, err)
	case header.Typeflag != tar.TypeReg:
		return nil, "", fmt.Errorf("%s is not a regular file: %w", name, errdefs.ErrFailedPrecondition)
	case header.Size > maxFile:
		return nil, "", fmt.Errorf("%s has %d bytes: at most %d are supported: %w", name, header.Size, maxFile, errdefs.ErrFailedPrecondition)
	}
	if text, err = io.ReadAll(archive); err != nil {
		return nil, "", fmt.Errorf("%s: %w", name, err)
	}
	return text, "", nil
}

// collectHelpers removes the helper containers that no call uses. An earlier berthd may
// have left them.
func (r *Reader) collectHelpers(ctx context.Context, docker *engine.Conn) error {
	list, err := docker.Helpers(ctx, engine.ReadHelper)
	if err != nil {
		return err
	}
	for id, purpose := range list {
		r.helpersMu.Lock()
		inUse := r.helpersInUse[purpose]
		r.helpersMu.Unlock()
		if !inUse {
			err = errors.Join(err, docker.ForceRemove(ctx, id))
		}
	}
	return err
}

// RunGC removes helper containers that were left behind, every gcInterval and soon after
// one could not be removed. It returns nil when ctx is done.
func (r *Reader) RunGC(ctx context.Context) error {
	for {
		docker, err := r.docker.WaitConn(ctx)
		if err != nil {
			return nil // ctx is done
		}
		next := time.After(gcInterval)
		if err := r.collectHelpers(ctx, docker); err != nil {
			next = time.After(gcRetryInterval)
		}
		select {
		case <-next:
		case <-r.gcTrigger:
			select {
			case <-time.After(gcRetryInterval):
			case <-ctx.Done():
			}
		case <-ctx.Done():
			return nil
		}
	}
}
