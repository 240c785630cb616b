package image

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"time"

	"github.com/containerd/errdefs"

	"berth/core/engine"
	"berth/core/todocker"
)

const (
	// largestAccounts is the most that is read of a file of users or groups.
	largestAccounts = 1 << 20
	// mostLinks is how many symbolic links may lead to one.
	mostLinks = 5
	// mostRemembered bounds how many images' accounts are kept in memory.
	mostRemembered = 512
	removeLimit    = time.Minute
	tidyEvery      = time.Minute
	tidySoon       = time.Second
)

// Accounts returns the users and groups of the image with the ID. They are read
// once, from a container that is made for it and never started: no storage
// driver shows an image's files otherwise.
func (s *Service) Accounts(ctx context.Context, id string) (todocker.Accounts, error) {
	done, err := s.reading.Take(ctx, id)
	if err != nil {
		return todocker.Accounts{}, err
	}
	defer done()
	s.accountsMu.Lock()
	known, ok := s.accounts[id]
	s.accountsMu.Unlock()
	if ok {
		return known, nil
	}
	docker, err := s.docker.Use()
	if err != nil {
		return todocker.Accounts{}, err
	}
	read, err := s.readAccounts(ctx, docker, id)
	if errdefs.IsNotFound(err) {
		// The container has been removed from outside: docker container prune
		// takes what never ran.
		read, err = s.readAccounts(ctx, docker, id)
	}
	if err != nil {
		return todocker.Accounts{}, fmt.Errorf("users of image %s: %w", id, err)
	}
	s.accountsMu.Lock()
	defer s.accountsMu.Unlock()
	if len(s.accounts) >= mostRemembered {
		clear(s.accounts)
	}
	s.accounts[id] = read
	return read, nil
}

func (s *Service) readAccounts(ctx context.Context, docker *engine.Conn, id string) (a todocker.Accounts, err error) {
	// Finished even if the caller hangs up: what was begun is removed again.
	work := context.WithoutCancel(ctx)
	short, cancel := docker.Short(work)
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
		if err := docker.Discard(limited, made); err != nil {
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

// readFile reads a file of a container; one that is not there is empty.
func readFile(ctx context.Context, docker *engine.Conn, id, name string) ([]byte, error) {
	for range mostLinks {
		text, link, err := readEntry(ctx, docker, id, name)
		if err != nil || link == "" {
			return text, err
		}
		if !path.IsAbs(link) {
			link = path.Join(path.Dir(name), link)
		}
		name = link
	}
	return nil, nil // as good as not there
}

// readEntry reads what is called name: a file, or where a link leads. An error of
// kind NotFound is about the container.
func readEntry(ctx context.Context, docker *engine.Conn, id, name string) (text []byte, link string, err error) {
	body, _, err := docker.CopyFromContainer(ctx, id, name)
	if errdefs.IsNotFound(err) {
		// That may be the file or the container.
		_, err := docker.ContainerInspect(ctx, id)
		return nil, "", err
	}
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	archive := tar.NewReader(body)
	header, err := archive.Next()
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", name, err)
	}
	switch header.Typeflag {
	case tar.TypeSymlink:
		return nil, header.Linkname, nil
	case tar.TypeReg:
		text, err = io.ReadAll(io.LimitReader(archive, largestAccounts))
		return text, "", err
	default:
		return nil, "", nil
	}
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
			err = errors.Join(err, docker.Discard(ctx, id))
		}
	}
	return err
}

// Tidy removes the containers that were made to look into images and were left
// behind, now and then and soon after one could not be removed. It returns when
// ctx ends.
func (s *Service) Tidy(ctx context.Context) error {
	for {
		docker, err := s.docker.Wait(ctx)
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
