package mirror

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/distribution/reference"

	"berth/core/kmutex"
	"berth/core/state"
)

// An Alias says under which names an image was requested that was pulled from a mirror. Docker
// knows the digest of an image for each repository that it was pulled from; it has no call to
// add one.
type Alias struct {
	Pulled    string   // name@digest at the mirror, which is a digest of the image in Docker
	Requested []string // name@digest
}

// Aliases are the names of all images that were pulled from mirrors. A name counts as long as Docker has
// an image with the digest at the mirror, so an alias never stands for an image other than the one
// that was pulled. A nil *Aliases is empty. The methods may be called concurrently.
type Aliases struct {
	bucket *state.Bucket[Alias]
	writes kmutex.Mutex // by Alias.Pulled

	mu       sync.Mutex
	byPulled map[string]entry
	changes  int64
}

type entry struct {
	requested []string
	change    int64 // Aliases.changes when it was written
}

// OpenAliases returns the aliases of an earlier run.
func OpenAliases(store *state.Store) (*Aliases, error) {
	bucket, err := state.OpenBucket[Alias](store, "mirrored-images")
	if err != nil {
		return nil, err
	}
	keys, err := bucket.Keys()
	if err != nil {
		return nil, err
	}
	a := &Aliases{bucket: bucket, byPulled: map[string]entry{}}
	for _, key := range keys {
		record, ok, err := bucket.Get(key)
		if err != nil {
			return nil, err
		}
		if ok && record.Pulled != "" {
			a.byPulled[record.Pulled] = entry{requested: record.Requested}
		}
	}
	return a, nil
}

// Add records that the image with the digest pulled was requested as requested.
func (a *Aliases) Add(ctx context.Context, pulled, requested reference.Canonical) error {
	key, name := pulled.String(), requested.String()
	unlock, err := a.writes.Lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	a.mu.Lock()
	names := slices.Clone(a.byPulled[key].requested)
	a.mu.Unlock()
	if !slices.Contains(names, name) {
		names = append(names, name)
	}
	if err := a.bucket.Put(key, Alias{Pulled: key, Requested: names}); err != nil {
		return fmt.Errorf("name of an image from a mirror: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.changes++
	a.byPulled[key] = entry{requested: names, change: a.changes}
	return nil
}

// Pulled returns the digests at mirrors that an image was pulled by which was requested as
// ref, a name with a digest.
func (a *Aliases) Pulled(ref string) (found []string) {
	name, ok := canonicalName(ref)
	if a == nil || !ok {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for pulled, e := range a.byPulled {
		if slices.Contains(e.requested, name) {
			found = append(found, pulled)
		}
	}
	slices.Sort(found)
	return found
}

// Digests returns the digests of an image with the names that it was requested in place of
// those at mirrors. A digest at a mirror stays if the image has a tag of that repository: it was
// pulled from there by name, too.
func (a *Aliases) Digests(tags, digests []string) []string {
	if a == nil {
		return digests
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.byPulled) == 0 {
		return digests
	}
	out := make([]string, 0, len(digests))
	add := func(digest string) {
		if !slices.Contains(out, digest) {
			out = append(out, digest)
		}
	}
	for _, digest := range digests {
		pulled, _ := canonicalName(digest)
		e, isAlias := a.byPulled[pulled]
		if !isAlias || slices.ContainsFunc(tags, func(tag string) bool { return isTagOf(tag, digest) }) {
			add(digest)
		}
		for _, requested := range e.requested {
			if named, err := reference.ParseNormalizedNamed(requested); err == nil {
				add(reference.FamiliarString(named)) // the form of Docker's own
			}
		}
	}
	return out
}

// Revision returns a number that changes with the results of Digests.
func (a *Aliases) Revision() int64 {
	if a == nil {
		return 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changes
}

// Known returns all aliases for a later Retain.
func (a *Aliases) Known() map[string]int64 {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	known := make(map[string]int64, len(a.byPulled))
	for pulled, e := range a.byPulled {
		known[pulled] = e.change
	}
	return known
}

// Retain forgets aliases whose images are gone. present has the digests and IDs of all images, from a
// list that was requested after known was; an alias that was added since stays. In the containerd image
// store the ID of an image is its digest, and a list omits digests of images that have a tag (docker 28.5).
func (a *Aliases) Retain(ctx context.Context, known map[string]int64, present map[string]bool) error {
	if a == nil {
		return nil
	}
	kept := map[string]bool{}
	for name := range present {
		if pulled, ok := canonicalName(name); ok {
			kept[pulled] = true
		}
	}
	for _, pulled := range slices.Sorted(maps.Keys(known)) {
		if _, digest, _ := strings.Cut(pulled, "@"); kept[pulled] || present[digest] {
			continue
		}
		if err := a.forget(ctx, pulled, func(e entry) bool { return e.change == known[pulled] }); err != nil {
			return err
		}
	}
	return nil
}

// Forget forgets the aliases of an image with the digests, which was removed.
func (a *Aliases) Forget(ctx context.Context, digests []string) error {
	if a == nil {
		return nil
	}
	for _, digest := range digests {
		if pulled, ok := canonicalName(digest); ok {
			if err := a.forget(ctx, pulled, func(entry) bool { return true }); err != nil {
				return err
			}
		}
	}
	return nil
}

// forget removes an alias if there is one that matches.
func (a *Aliases) forget(ctx context.Context, pulled string, match func(entry) bool) error {
	unlock, err := a.writes.Lock(ctx, pulled)
	if err != nil {
		return err
	}
	defer unlock()
	a.mu.Lock()
	e, ok := a.byPulled[pulled]
	if ok = ok && match(e); ok {
		delete(a.byPulled, pulled)
		a.changes++
	}
	a.mu.Unlock()
	if !ok {
		return nil
	}
	return a.bucket.Delete(pulled)
}

// canonicalName returns the normalized form of a name with a digest, without a tag.
func canonicalName(ref string) (string, bool) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", false
	}
	_, ok := named.(reference.Canonical)
	return named.String(), ok
}

// isTagOf reports whether tag is a tag of the repository that a digest is of. The containerd image store
// has names with digests among its tags (docker 28.5).
func isTagOf(tag, digest string) bool {
	a, errA := reference.ParseNormalizedNamed(tag)
	b, errB := reference.ParseNormalizedNamed(digest)
	if errA != nil || errB != nil || a.Name() != b.Name() {
		return false
	}
	_, digested := a.(reference.Digested)
	return !digested
}
