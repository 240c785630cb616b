// Package imagecopy copies images between Docker and a containerd on the same node, so that a node that changes its
// runtime pulls nothing.
//
// Run copies one image after the other. Each is verified by its digests before it gets a name, and what is
// incomplete has none. An image that is already there is skipped, so a run that was interrupted is continued by
// the next one.
package imagecopy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"golang.org/x/sys/unix"

	"berth/core/containerd"
	"berth/core/engine"
)

// stallTimeout is how long a copy may go on without a byte. Before the first byte Docker writes the whole image to
// its temporary directory, and after the last one it unpacks it (moby's image/tarexport), which takes minutes for
// large images on slow disks.
const stallTimeout = 15 * time.Minute

// Config is what New needs.
type Config struct {
	Docker     *engine.Conn
	Containerd *containerd.Client
	// Address is the path of containerd's socket.
	Address string
	// To is set to copy from Docker to containerd.
	To  bool
	Log *slog.Logger
}

// An Image is an image of the source.
type Image struct {
	ID    string   // Docker's ID of it, or the digest of its manifest in containerd
	Names []string // as containerd writes them: docker.io/library/app:1, docker.io/library/app@sha256:...
	Size  int64    // bytes, approximately; 0 if unknown
	Used  bool     // by a container

	target containerd.Image // in containerd, if that is the source
}

// A Result says what was done with an image.
type Result string

// The results.
const (
	Copied  Result = "copied"  // its content was transferred
	Shared  Result = "shared"  // its content was in the same containerd already
	Present Result = "present" // it was there already, with all names
	Named   Result = "named"   // its content was there already and got names
	Skipped Result = "skipped" // it cannot be copied, see Report.Err
	Failed  Result = "failed"
)

// A Report is about one image: of the end of its copy or, without a Result, of its progress.
type Report struct {
	Image
	Result   Result
	Bytes    int64 // transferred so far
	Total    int64 // expected, 0 if unknown
	Elapsed  time.Duration
	Lost     []string // names that the copy does not have, because they are digests of a manifest that the source does not have
	Replaced []string // names that another image had before
	Err      error
}

// A direction is one way to copy.
type direction interface {
	// list returns all images of the source that have a name.
	list(ctx context.Context) ([]Image, error)
	// check finds out whether the destination has the image.
	check(ctx context.Context, image Image) (plan, error)
	// transfer copies the content and returns how it did that.
	transfer(ctx context.Context, image Image, p plan, moved func(n int)) (Result, error)
	// name gives the content that check has found, or transfer has copied, its names.
	name(ctx context.Context, image Image, p plan) error
}

// A plan is what check has found.
type plan struct {
	total    int64    // bytes to transfer, approximately
	tree     *tree    // in containerd: the source, or the destination if it has the image
	there    bool     // the destination has the content
	missing  []string // names that the destination does not have
	lost     []string // names that it cannot have
	replaced []string // those of missing that it has for another image
}

// errSkipped is the kind of errors about images that cannot be copied because of how the source stores them.
var errSkipped = errors.New("not copied")

// A Copier copies images in one direction.
type Copier struct {
	direction
	log *slog.Logger
}

// New returns a Copier.
func New(cfg Config) *Copier {
	if cfg.To {
		return &Copier{&toContainerd{Config: cfg}, cfg.Log}
	}
	return &Copier{&fromContainerd{Config: cfg}, cfg.Log}
}

// Select returns the images of the source that have a name: all of them, or those that patterns match. A pattern is a
// reference, an ID, the first twelve or more digits of an ID, or a reference with the wildcards of path.Match. With usedOnly
// only images are returned that containers use. The error is of kind NotFound if a pattern matches no image.
func (c *Copier) Select(ctx context.Context, patterns []string, usedOnly bool) ([]Image, error) {
	all, err := c.list(ctx)
	if err != nil {
		return nil, err
	}
	matched := make(map[string]bool, len(patterns))
	all = slices.DeleteFunc(all, func(image Image) bool {
		selected := len(patterns) == 0
		for _, pattern := range patterns {
			if matches(image, pattern) {
				selected, matched[pattern] = true, true
			}
		}
		return !selected
	})
	for _, pattern := range patterns {
		if !matched[pattern] {
			return nil, fmt.Errorf("image %q: %w", pattern, errdefs.ErrNotFound)
		}
	}
	if usedOnly {
		all = slices.DeleteFunc(all, func(image Image) bool { return !image.Used })
	}
	slices.SortFunc(all, func(a, b Image) int { return strings.Compare(a.Names[0], b.Names[0]) })
	return all, nil
}

// minPrefix is how many digits of an ID are needed: docker prints 12, crictl 13.
const minPrefix = 12

// matches reports whether pattern selects image.
func matches(image Image, pattern string) bool {
	digits := strings.TrimPrefix(pattern, "sha256:")
	if len(digits) >= minPrefix && strings.HasPrefix(strings.TrimPrefix(image.ID, "sha256:"), digits) {
		return true
	}
	for _, name := range image.Names {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			continue
		}
		short, _ := reference.FamiliarMatch(pattern, named) // with and without its tag; an error is a malformed pattern
		long, _ := path.Match(pattern, name)
		if short || long {
			return true
		}
		if wanted, ok := canonical(pattern); ok && wanted == name {
			return true
		}
	}
	return false
}

// canonical returns a name as containerd writes it. It is false for what is no name of an image.
func canonical(name string) (string, bool) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", false
	}
	return reference.TagNameOnly(named).String(), true
}

// isDigest reports whether a name is that of a digest.
func isDigest(name string) bool { return strings.Contains(name, "@") }

// Run copies images, and calls report with the progress and with the result of each. Images that fail do not end it,
// but a full disk and the end of ctx do: the error is for the images that were not tried. With dryRun nothing is
// copied, and the results are what would be done.
func (c *Copier) Run(ctx context.Context, images []Image, dryRun bool, report func(Report)) error {
	for i, image := range images {
		result := c.copy(ctx, image, dryRun, report)
		report(result)
		rest := len(images) - i - 1
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("interrupted, with %d images left: repeat the command to continue", rest+1)
		case IsDiskFull(result.Err) && rest > 0:
			return fmt.Errorf("the disk is full, %d images were not tried: free some space and repeat the command to continue", rest)
		}
	}
	return nil
}

// copy copies one image.
func (c *Copier) copy(ctx context.Context, image Image, dryRun bool, report func(Report)) (r Report) {
	begin := time.Now()
	r = Report{Image: image, Total: image.Size}
	defer func() {
		r.Elapsed = time.Since(begin)
		switch {
		case errors.Is(r.Err, errSkipped):
			r.Result = Skipped
		case r.Err != nil:
			r.Result = Failed
		}
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := fmt.Errorf("no progress for %v", stallTimeout)
	watchdog := time.AfterFunc(stallTimeout, func() { cancel(stalled) })
	defer watchdog.Stop()

	p, err := c.check(ctx, image)
	if err != nil {
		r.Err = err
		return r
	}
	r.Lost, r.Replaced, r.Result = p.lost, p.replaced, Present
	switch {
	case !p.there:
		if r.Result = Copied; p.total > 0 {
			r.Total = p.total
		}
	case len(p.missing) > 0:
		r.Result = Named
	}
	if dryRun || r.Result == Present {
		return r
	}
	report(r.progress(0))
	if !p.there {
		r.Result, r.Err = c.transfer(ctx, image, p, func(n int) {
			watchdog.Reset(stallTimeout)
			r.Bytes += int64(n)
			r.Elapsed = time.Since(begin)
			report(r.progress(r.Bytes))
		})
	} else {
		r.Err = c.name(ctx, image, p)
	}
	if cause := context.Cause(ctx); r.Err != nil && errors.Is(cause, stalled) {
		r.Err = stalled
	}
	return r
}

// progress returns r without a result.
func (r Report) progress(bytes int64) Report {
	r.Result, r.Bytes = "", bytes
	return r
}

// IsDiskFull reports whether err is that there is no space left, as the kernel says it: neither Docker nor
// containerd has a kind for this error.
func IsDiskFull(err error) bool {
	return err != nil && (strings.Contains(err.Error(), unix.ENOSPC.Error()) || strings.Contains(err.Error(), unix.EDQUOT.Error()))
}
