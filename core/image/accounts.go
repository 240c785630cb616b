package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"

	"berth/core/engine"
	"berth/core/labels"
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
	read, err := readAccounts(ctx, docker, id)
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

func readAccounts(ctx context.Context, docker *engine.Conn, id string) (a todocker.Accounts, err error) {
	// Finished even if the caller hangs up: what was begun is removed again.
	work := context.WithoutCancel(ctx)
	short, cancel := docker.Short(work)
	defer cancel()
	made, err := docker.ContainerCreate(short, &container.Config{
		Image: id, Entrypoint: []string{"/"}, NetworkDisabled: true, Labels: map[string]string{labels.LookKey: "accounts"},
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	}, &container.HostConfig{NetworkMode: "none", LogConfig: container.LogConfig{Type: "none"}}, nil, nil, "")
	if err != nil {
		return a, err
	}
	defer func() {
		limited, cancel := context.WithTimeout(work, removeLimit)
		defer cancel()
		err = errors.Join(err, docker.Discard(limited, made.ID))
	}()
	if a.Passwd, err = readFile(short, docker, made.ID, "/etc/passwd"); err != nil {
		return a, err
	}
	a.Group, err = readFile(short, docker, made.ID, "/etc/group")
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

// readEntry reads what is called name: a file, or where a link leads.
func readEntry(ctx context.Context, docker *engine.Conn, id, name string) (text []byte, link string, err error) {
	body, _, err := docker.CopyFromContainer(ctx, id, name)
	if errdefs.IsNotFound(err) {
		return nil, "", nil
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

// tidy removes the containers that a daemon which died has made to look into
// images.
func (s *Service) tidy(ctx context.Context, docker *engine.Conn) {
	short, cancel := docker.Short(ctx)
	defer cancel()
	list, err := docker.ContainerList(short, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", labels.LookKey))})
	for _, c := range list {
		if time.Since(time.Unix(c.Created, 0)) > removeLimit { // not one that we are looking into
			err = errors.Join(err, docker.Discard(ctx, c.ID))
		}
	}
	if err != nil && ctx.Err() == nil {
		s.log.Info("containers made to look into images could not be removed, trying again", slog.Any("err", err))
	}
}
