package image

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/api/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
)

const (
	// measureEvery is how often the room that images take is measured.
	measureEvery = time.Minute
	measureLimit = 5 * time.Minute
)

// A usage is the room that images and containers take, as last measured.
type usage struct {
	mu         sync.Mutex // guards following
	at         time.Time
	mountpoint string
	images     uint64 // bytes
}

// FsInfo tells how much room images and containers take. It answers at once,
// with what was last measured, also while the Engine is away.
func (s *Service) FsInfo(context.Context) (images, containers []*runtimeapi.FilesystemUsage, err error) {
	s.usage.mu.Lock()
	at, mountpoint, bytes := s.usage.at, s.usage.mountpoint, s.usage.images
	s.usage.mu.Unlock()
	if mountpoint == "" {
		docker, err := s.docker.Last()
		if err != nil {
			return nil, nil, err
		}
		mountpoint, at = docker.Can.ImageFS(), time.Now()
	}
	entry := func(used, inodes uint64) []*runtimeapi.FilesystemUsage {
		return []*runtimeapi.FilesystemUsage{{
			Timestamp:  at.UnixNano(),
			FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: mountpoint},
			UsedBytes:  &runtimeapi.UInt64Value{Value: used},
			InodesUsed: &runtimeapi.UInt64Value{Value: inodes},
		}}
	}
	// The same mountpoint in both, or the kubelet takes the disk for split.
	return entry(bytes, 0), entry(s.Written()), nil
}

// Run measures, now and then, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	for {
		docker, err := s.docker.Wait(ctx)
		if err != nil {
			return nil // ctx has ended
		}
		if bytes, err := measure(ctx, docker); err == nil {
			s.usage.mu.Lock()
			s.usage.at, s.usage.images, s.usage.mountpoint = time.Now(), bytes, docker.Can.ImageFS()
			s.usage.mu.Unlock()
		} else if ctx.Err() == nil {
			s.log.Info("the room that images take could not be measured", slog.Any("err", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(measureEvery):
		}
	}
}

// measure returns how many bytes all images take together.
func measure(ctx context.Context, docker *engine.Conn) (uint64, error) {
	if !docker.Can.Snapshotter {
		// The Engine notes the size of each layer in a small file; their sum is
		// what its own system df says, without its locks.
		notes, err := filepath.Glob(filepath.Join(docker.Can.RootDir, "image", docker.Can.StorageDriver, "layerdb", "sha256", "*", "size"))
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
	return uint64(max(df.LayersSize, 0)), nil
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
