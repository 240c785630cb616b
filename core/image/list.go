package image

import (
	"context"
	"time"

	"github.com/docker/docker/api/types/image"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/image/imagecache"
	"berth/core/image/pinning"
	"berth/core/tocri"
)

// A criList is a list of images in the CRI's form, with all that it was made of. It is immutable.
type criList struct {
	images *imagecache.Images
	inputs listInputs
	rows   []*runtimeapi.Image
	// statuses are the same images as an inspect shows them, by ID. Those that cannot be inspected are not there.
	statuses map[string]*runtimeapi.Image
	report   pinning.Report
}

// listInputs are what the CRI's images depend on besides the Engine's.
type listInputs struct {
	pins                *pinning.Policy
	origins, containers uint64 // revisions
	aliases             int64  // revision
	pauseID, pauseRef   string
	trustsDigests       bool
}

// List returns the images that match filter; a nil filter matches all. The result must not be
// changed.
func (s *Service) List(ctx context.Context, filter *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	if ref := filter.GetImage().GetImage(); ref != "" {
		found, _, err := s.Status(ctx, ref, false)
		if found == nil || err != nil {
			return nil, err
		}
		return []*runtimeapi.Image{found}, nil
	}
	docker, err := s.docker.Conn()
	if err != nil {
		return nil, err
	}
	images, err := s.cache.List(ctx, docker)
	if err != nil {
		return nil, err
	}
	list := s.list(ctx, docker, images, images.IDs)
	s.logPressure(docker, list.report)
	return list.rows, nil
}

// list returns the list of the images, the last one if nothing has changed. ids are the images that
// the caller is about.
func (s *Service) list(ctx context.Context, docker *engine.Conn, images *imagecache.Images, ids []string) *criList {
	s.pins.origins.Refresh(ctx, docker, ids)
	inputs := s.listInputs(docker)
	last := s.lastList.Load()
	if last != nil && last.images == images && last.inputs == inputs {
		return last
	}
	list := s.newList(docker, images, inputs)
	s.lastList.Store(list)
	s.pins.setTotals(list.report)
	return list
}

// listInputs returns the present inputs. A list is made after they were read, so what changes
// meanwhile has the next one made anew.
func (s *Service) listInputs(docker *engine.Conn) listInputs {
	in := listInputs{
		pins: s.pins.policy.Load(), origins: s.pins.origins.Revision(), containers: s.pins.containers.Revision(),
		aliases: s.Aliases.Revision(), trustsDigests: trustsDigests(docker),
	}
	in.pauseID, in.pauseRef = s.pause.last(), s.PauseImage()
	return in
}

// newList makes the list of the images.
func (s *Service) newList(docker *engine.Conn, images *imagecache.Images, inputs listInputs) *criList {
	list := &criList{
		images: images, inputs: inputs,
		rows: make([]*runtimeapi.Image, 0, len(images.Rows)), statuses: make(map[string]*runtimeapi.Image, len(images.Rows)),
	}
	inUse := s.pins.containers.ByImage()
	for _, row := range images.Rows {
		facts := imageFacts{row.ID, row.Listed}
		reason := s.pinReason(docker, facts, inUse)
		out := s.criImage(facts, row.User, reason)
		list.rows = append(list.rows, out)
		if reason != pinning.None {
			list.report = append(list.report, pinning.Held{ID: row.ID, Name: anyName(row.Listed), Size: row.Listed.Size, Reason: reason})
		}
		if row.Inspected != nil && !row.Inspected.Equal(row.Listed) {
			facts.Facts = *row.Inspected
			out = s.criImage(facts, row.User, s.pinReason(docker, facts, inUse))
		}
		if row.Inspected != nil {
			list.statuses[row.ID] = out
		}
	}
	return list
}

// criImage returns an image in the CRI's form.
func (s *Service) criImage(i imageFacts, user string, reason pinning.Reason) *runtimeapi.Image {
	return tocri.Image(tocri.ImageInfo{
		ID: i.id, Tags: i.Tags, Digests: s.Aliases.Digests(i.Tags, i.Digests), Size: i.Size, User: user, Pinned: reason != pinning.None,
	})
}

// observeList forgets what is known of images that are in no list any more.
func (s *Service) observeList() func(context.Context, []image.Summary) {
	requested, aliases := time.Now(), s.Aliases.Known()
	return func(ctx context.Context, list []image.Summary) {
		present := imagecache.Present(list)
		s.forgetAliases(ctx, aliases, list)
		s.pins.origins.Retain(ctx, present, requested)
		s.passwd.Retain(present)
	}
}
