package image

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"

	"berth/core/engine"
	"berth/core/identity"
)

const (
	// maxAccountsFile is the largest file of users or groups that is read.
	maxAccountsFile = 1 << 20
	removeLimit     = time.Minute
	tidyEvery       = time.Minute
	tidySoon        = time.Second
)

// Accounts returns the users and groups of the image with the ID. They are read from a
// container that is created for it and never started, for no storage driver shows an
// image's files otherwise, and then kept in a cache.
func (s *Service) Accounts(ctx context.Context, id string) (identity.PasswdFiles, error) {
	done, err := s.reading.Lock(ctx, id)
	if err != nil {
		return identity.PasswdFiles{}, err
	}
	defer done()
	if known, ok := s.accounts.get(id); ok {
		return known, nil
	}
	docker, err := s.docker.Conn()
	if err != nil {
		return identity.PasswdFiles{}, err
	}
	read, err := s.readAccounts(ctx, docker, id)
	if errdefs.IsNotFound(err) {
		// The container has been removed from outside: docker container prune
		// takes what never ran.
		read, err = s.readAccounts(ctx, docker, id)
	}
	if err != nil {
		return identity.PasswdFiles{}, fmt.Errorf("users of image %s: %w", id, err)
	}
	s.accounts.put(id, read)
	return read, nil
}

func (s *Service) readAccounts(ctx context.Context, docker *engine.Conn, id string) (a identity.PasswdFiles, err error) {
	// Finished even if the caller hangs up: what was begun is removed again.
	work := context.WithoutCancel(ctx)
	short, cancel := docker.WithRequestTimeout(work)
	defer cancel()
	// Known before it is there, or tidy might take it for one that was left.
	look := rand.Text()
	s.accountsMu.Lock()
	s.looking[look] = true
	s.accountsMu.Unlock()
	defer func() {
		s.accountsMu.Lock()
		defer s.accountsMu.Unlock()
		delete(s.looking, look)
	}()
	made, err := docker.CreateHelper(short, id, engine.ReadHelper, look)
	if err != nil {
		return a, err
	}
	defer func() {
		limited, cancel := context.WithTimeout(work, removeLimit)
		defer cancel()
		if err := docker.ForceRemove(limited, made); err != nil {
			s.log.Info("a container made to look into an image could not be removed, trying again", slog.String("container", made), slog.Any("err", err))
			select {
			case s.untidy <- struct{}{}:
			default:
			}
		}
	}()
	if a.Passwd, err = readFile(short, docker, made, "/etc/passwd"); err != nil {
		return a, err
	}
	a.Group, err = readFile(short, docker, made, "/etc/group")
	return a, err
}

// readFile reads a file of a container; one that is not there is empty, as for Docker.
//
// Docker itself follows the links: it reads the same file with the same rules when the
// container starts. A file that cannot be read as a whole is an error, and not
// taken for an empty one: Docker would find users in it that are unknown here.
func readFile(ctx context.Context, docker *engine.Conn, id, name string) ([]byte, error) {
	text, target, err := readEntry(ctx, docker, id, name)
	if err != nil || target == "" {
		return text, err
	}
	if text, target, err = readEntry(ctx, docker, id, target); err == nil && target != "" {
		err = fmt.Errorf("symbolic link to %s, which is a symbolic link: %w", target, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return text, nil
}

// containerMissing tells what Docker did not find: the error is nil if it was a file, as the
// container is there, and of kind NotFound if it was the container.
func containerMissing(ctx context.Context, docker *engine.Conn, id string) error {
	_, err := docker.ContainerInspect(ctx, id)
	return err
}

// readEntry reads the file called name or, if that is a symbolic link, returns the path
// that it leads to, without any further links. An error of kind NotFound is about the
// container.
func readEntry(ctx context.Context, docker *engine.Conn, id, name string) (text []byte, target string, err error) {
	// Docker opens what it archives, and waits for ever for the other end of a FIFO, with
	// a container that cannot be removed then (docker 20.10). So the kind comes first.
	stat, err := docker.ContainerStatPath(ctx, id, name)
	switch {
	case errdefs.IsNotFound(err):
		return nil, "", containerMissing(ctx, docker, id)
	case err != nil:
		return nil, "", err
	case stat.Mode&fs.ModeSymlink != 0 && stat.LinkTarget == "":
		return nil, "", fmt.Errorf("%s is a symbolic link, and Docker does not say to what: %w", name, errdefs.ErrFailedPrecondition)
	case stat.Mode&fs.ModeSymlink != 0:
		return nil, stat.LinkTarget, nil
	case !stat.Mode.IsRegular():
		return nil, "", fmt.Errorf("%s is not a regular file: %w", name, errdefs.ErrFailedPrecondition)
	}
	body, _, err := docker.CopyFromContainer(ctx, id, name)
	switch {
	case errdefs.IsNotFound(err):
		return nil, "", containerMissing(ctx, docker, id)
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
	case header.Size > maxAccountsFile:
		return nil, "", fmt.Errorf("%s has %d bytes, at most %d are supported: %w", name, header.Size, maxAccountsFile, errdefs.ErrFailedPrecondition)
	}
	if text, err = io.ReadAll(archive); err != nil {
		return nil, "", fmt.Errorf("%s: %w", name, err)
	}
	return text, "", nil
}

// tidy removes the containers that were made to look into images, by a daemon
// that died perhaps, and that nobody looks into now.
func (s *Service) tidy(ctx context.Context, docker *engine.Conn) error {
	list, err := docker.Helpers(ctx, engine.ReadHelper)
	if err != nil {
		return err
	}
	for id, look := range list {
		s.accountsMu.Lock()
		busy := s.looking[look]
		s.accountsMu.Unlock()
		if !busy {
			err = errors.Join(err, docker.ForceRemove(ctx, id))
		}
	}
	return err
}

// RunGC removes the containers that were made to look into images and were left
// behind, now and then and soon after one could not be removed. It returns when
// ctx ends.
func (s *Service) RunGC(ctx context.Context) error {
	for {
		docker, err := s.docker.WaitConn(ctx)
		if err != nil {
			return nil // ctx has ended
		}
		next := time.After(tidyEvery)
		if err := s.tidy(ctx, docker); err != nil {
			next = time.After(tidySoon)
		}
		select {
		case <-next:
		case <-s.untidy:
			select {
			case <-time.After(tidySoon):
			case <-ctx.Done():
			}
		case <-ctx.Done():
			return nil
		}
	}
}
