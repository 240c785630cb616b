package image

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
)

const (
	// measureEvery is how often the room that images take is measured at most.
	measureEvery = time.Minute
	measureLimit = 5 * time.Minute
	// restFactor keeps the Engine's measuring to a tenth of the time.
	restFactor = 9
)

// FsInfo tells how much room images and containers take. It answers at once,
// with what was last measured, also while the Engine is away.
//
// The time is that of the answer: the kubelet puts it on how much of the disk is
// free, which it has just read, and does not evict on what is not newer than the
// last it has seen.
func (s *Service) FsInfo(context.Context) (images, containers []*runtimeapi.FilesystemUsage, err error) {
	docker, err := s.docker.LastConn()
	if err != nil {
		return nil, nil, err
	}
	now := time.Now().UnixNano()
	entry := func(used, inodes uint64) []*runtimeapi.FilesystemUsage {
		return []*runtimeapi.FilesystemUsage{{
			Timestamp:  now,
			FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: docker.Features.ImageFS()},
			UsedBytes:  &runtimeapi.UInt64Value{Value: used},
			InodesUsed: &runtimeapi.UInt64Value{Value: inodes},
		}}
	}
	// The same mountpoint in both, or the kubelet takes the disk for split.
	bytes, inodes, _ := s.Written()
	return entry(s.used.Load(), 0), entry(bytes, inodes), nil
}

// Run measures, now and then, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	for {
		docker, err := s.docker.WaitConn(ctx)
		if err != nil {
			return nil // ctx has ended
		}
		begin := time.Now()
		if bytes, err := s.measure(ctx, docker); err == nil {
			s.used.Store(bytes)
		} else if ctx.Err() == nil {
			s.log.Info("the room that images take could not be measured", slog.Any("err", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(rest(time.Since(begin))):
		}
	}
}

// rest returns how long to wait after a measurement that took so long.
func rest(took time.Duration) time.Duration { return max(measureEvery, restFactor*took) }

// measure returns how many bytes all images take together.
func (s *Service) measure(ctx context.Context, docker *engine.Conn) (uint64, error) {
	if !docker.Features.Snapshotter {
		// The Engine notes the size of each layer in a small file; their sum is
		// what its own system df says, without its locks.
		notes, err := filepath.Glob(filepath.Join(docker.Features.RootDir, "image", docker.Features.StorageDriver, "layerdb", "sha256", "*", "size"))
		if err == nil && len(notes) > 0 {
			return sum(notes), nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, measureLimit)
	defer cancel()
	df, err := docker.DiskUsage(ctx, types.DiskUsageOptions{Types: []types.DiskUsageObject{types.ImageObject}})
	if err != nil {
		return 0, err
	}
	layers := uint64(max(df.LayersSize, 0))
	if docker.Features.Snapshotter {
		// The Engine adds up all of containerd's snapshots, those that containers
		// write to among them (Docker 28.5).
		_, _, written := s.Written()
		layers -= min(layers, written)
	}
	return layers, nil
}

// sum adds up the numbers in files; one that has just gone counts nothing.
func sum(files []string) uint64 {
	var total uint64
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil {
			total += n
		}
	}
	return total
}
