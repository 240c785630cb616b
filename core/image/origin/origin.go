// Package origin knows which repositories of registries have an image of the node.
//
// The digests of an image show that only with Docker's own image store. With the containerd image
// store each name has a digest, also that of an image which was built on the node. There a Tracker
// uses what berth itself has pulled, which it records in the state directory, and what Engines with
// API 1.54 or newer record of every pull and push. An image that is in neither record counts as one
// that no registry has.
package origin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/core/engine"
	"berth/core/image/pinning"
	"berth/core/kmutex"
	"berth/core/state"
)

const (
	// identityAPI is the first API version whose list of images has their identity.
	identityAPI = "1.54"
	// identityTTL is how long an answer of the Engine is used for an image that no registry is
	// known to have: a push changes it.
	identityTTL = 10 * time.Minute
	// maxIdentities bounds the response of the Engine, in bytes.
	maxIdentities = 32 << 20
	// maxRepositories bounds the repositories of one image.
	maxRepositories = 32
)

// A Pulled is the record of an image that berth has pulled.
type Pulled struct {
	Repositories []string `json:"repositories"` // normalized
}

// OpenPulled opens the bucket of a Tracker.
func OpenPulled(store *state.Store) (*state.Bucket[Pulled], error) {
	return state.OpenBucket[Pulled](store, "pulled")
}

// A Tracker knows the repositories of images. Its methods may be called concurrently.
type Tracker struct {
	bucket *state.Bucket[Pulled]
	log    *slog.Logger
	writes kmutex.Mutex // by image ID

	mu          sync.Mutex // guards following
	pulled      map[string][]string
	recorded    map[string]time.Time // when pulled was changed, for records of this process
	identities  map[string][]string  // of the Engine, by image ID; those that it knows nothing of are there too
	queried     time.Time            // when
	queriedConn *engine.Conn         // by which connection
	revision    uint64
}

// New returns a Tracker with the records in bucket. Without a bucket, which may be nil, records do
// not outlive the process.
func New(bucket *state.Bucket[Pulled], log *slog.Logger) *Tracker {
	t := &Tracker{bucket: bucket, log: log, pulled: map[string][]string{}, recorded: map[string]time.Time{}}
	if bucket == nil {
		return t
	}
	ids, failed := bucket.Keys()
	for _, id := range ids {
		record, ok, err := bucket.Get(id)
		if failed = errors.Join(failed, err); ok {
			t.pulled[id] = record.Repositories
		}
	}
	if failed != nil {
		log.Warn("records of pulled images cannot be read: with the containerd image store the images stay until they are pulled again", slog.Any("err", failed))
	}
	return t
}

// Record notes that the image id was pulled as ref.
func (t *Tracker) Record(ctx context.Context, id, ref string) {
	unlock, err := t.writes.Lock(context.WithoutCancel(ctx), id)
	if err != nil {
		return
	}
	defer unlock()
	repo := pinning.Repository(ref)
	t.mu.Lock()
	t.recorded[id] = time.Now()
	known := t.pulled[id]
	if slices.Contains(known, repo) || len(known) >= maxRepositories {
		t.mu.Unlock()
		return
	}
	known = append(slices.Clone(known), repo)
	t.pulled[id] = known
	t.revision++
	t.mu.Unlock()
	if t.bucket == nil {
		return
	}
	if err := t.bucket.Put(id, Pulled{known}); err != nil {
		t.log.Warn("cannot record that an image was pulled: with the containerd image store it is pinned after a restart", slog.String("image", ref), slog.Any("err", err))
	}
}

// Repositories returns the repositories that are known to have the image id.
func (t *Tracker) Repositories(id string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Concat(t.pulled[id], t.identities[id])
}

// Revision returns a number that changes with the results of Repositories.
func (t *Tracker) Revision() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.revision
}

// Retain forgets the images that present does not have, which is from a list that was requested at
// the time before.
func (t *Tracker) Retain(ctx context.Context, present map[string]bool, before time.Time) {
	t.mu.Lock()
	var gone []string
	for id := range t.pulled {
		if !present[id] && t.recorded[id].Before(before) {
			gone = append(gone, id)
		}
	}
	t.mu.Unlock()
	for _, id := range gone {
		t.forget(ctx, id, before)
	}
}

func (t *Tracker) forget(ctx context.Context, id string, before time.Time) {
	unlock, err := t.writes.Lock(ctx, id)
	if err != nil {
		return // the next list tries again
	}
	defer unlock()
	t.mu.Lock()
	pulledAgain := !t.recorded[id].Before(before)
	if !pulledAgain {
		delete(t.pulled, id)
		delete(t.recorded, id)
		t.revision++
	}
	t.mu.Unlock()
	if pulledAgain || t.bucket == nil {
		return
	}
	if err := t.bucket.Delete(id); err != nil {
		t.log.Warn("cannot delete the record of an image that was removed", slog.String("id", id), slog.Any("err", err))
	}
}

// Refresh asks the Engine about the images ids, unless it has done so a short time ago. An Engine
// before API 1.54 and one without the containerd image store are not asked. An error is logged
// only: the records of berth's own pulls remain.
func (t *Tracker) Refresh(ctx context.Context, docker *engine.Conn, ids []string) {
	if !docker.Features.Snapshotter {
		return
	}
	t.mu.Lock()
	known := t.queriedConn == docker && !slices.ContainsFunc(ids, func(id string) bool {
		repos, ok := t.identities[id]
		return !ok || len(repos) == 0 && time.Since(t.queried) > identityTTL
	})
	// An Engine that does not answer is not asked for each list either.
	unsupported := t.queriedConn == docker && t.identities == nil && time.Since(t.queried) <= identityTTL
	t.mu.Unlock()
	if known || unsupported {
		return
	}
	ctx, cancel := docker.WithRequestTimeout(ctx)
	defer cancel()
	identities, err := listIdentities(ctx, docker)
	switch {
	case ctx.Err() != nil:
		return
	case err != nil && !errors.Is(err, errors.ErrUnsupported):
		t.log.Info("docker cannot tell where images come from: those that berth has not pulled itself are taken for built here", slog.Any("err", err))
	case err == nil:
		for _, id := range ids { // those that were removed meanwhile need no further question
			if _, ok := identities[id]; !ok {
				identities[id] = nil
			}
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.identities, t.queried, t.queriedConn = identities, time.Now(), docker
	t.revision++
}

// listIdentities returns the repositories that each image was pulled from or pushed to, by image ID.
// The error is errors.ErrUnsupported for an Engine that does not know.
//
// docker/client v28.5 has no method for it. A list answers from what Docker has stored, while an
// inspect with API 1.53 may verify signatures over the network.
func listIdentities(ctx context.Context, docker *engine.Conn) (map[string][]string, error) {
	if !strings.HasPrefix(docker.DaemonHost(), "unix://") {
		return nil, errors.ErrUnsupported // another scheme needs the client's TLS settings
	}
	resp, err := docker.Get(ctx, "/v"+identityAPI+"/images/json?manifests=1&identity=1")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusBadRequest:
		return nil, errors.ErrUnsupported // "client version 1.54 is too new"
	default:
		return nil, fmt.Errorf("list images with their identity: %s", resp.Status)
	}
	var rows []struct {
		ID        string
		Manifests []struct {
			ImageData *struct {
				Identity *struct {
					Pull []struct{ Repository string }
				}
			}
		}
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxIdentities)).Decode(&rows); err != nil {
		return nil, fmt.Errorf("list images with their identity: %w", err)
	}
	identities := make(map[string][]string, len(rows))
	for _, row := range rows {
		repos := identities[row.ID]
		for _, m := range row.Manifests {
			if m.ImageData == nil || m.ImageData.Identity == nil {
				continue
			}
			for _, pull := range m.ImageData.Identity.Pull {
				if repo := pinning.Repository(pull.Repository); !slices.Contains(repos, repo) && len(repos) < maxRepositories {
					repos = append(repos, repo)
				}
			}
		}
		identities[row.ID] = repos
	}
	return identities, nil
}
