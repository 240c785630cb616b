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
	// measureInterval is the shortest time between two measurements of the disk usage.
	measureInterval = time.Minute
	// measureTimeout bounds a measurement: system df of Docker reads all layers.
	measureTimeout = 5 * time.Minute
	// measureIdleFactor is the pause after a measurement in multiples of its duration. It
	// limits the load on Docker to a tenth of the time.
	measureIdleFactor = 9
)

// FsInfo returns the disk usage of images and of containers (ImageFsInfo of the CRI). It
// returns the last measurement at once, also while the Engine is unavailable.
//
// The timestamp is the current time nevertheless: the kubelet uses it for the free space of
// the disk, too, which it has just read itself, and it does not evict pods on a value that
// is no newer than the last one.
func (s *Service) FsInfo(context.Context) (images, containers []*runtimeapi.FilesystemUsage, err error) {
	docker, err := s.docker.LastConn()
	if err != nil {
		return nil, nil, err
	}
	now := time.Now().UnixNano()
	usage := func(bytes, inodes uint64) []*runtimeapi.FilesystemUsage {
		return []*runtimeapi.FilesystemUsage{{
			Timestamp:  now,
			FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: docker.Features.ImageFS()},
			UsedBytes:  &runtimeapi.UInt64Value{Value: bytes},
			InodesUsed: &runtimeapi.UInt64Value{Value: inodes},
		}}
	}
	// With two mountpoints the kubelet would assume a split image file system (KEP-4191).
	bytes, inodes, _ := s.ContainerUsage()
	return usage(s.diskUsage.Load(), 0), usage(bytes, inodes), nil
}

// MeasureDiskUsage measures the disk usage of images every measureInterval. It returns nil when ctx is
// done.
func (s *Service) MeasureDiskUsage(ctx context.Context) error {
	for {
		docker, err := s.docker.WaitConn(ctx)
		if err != nil {
			return nil // ctx is done
		}
		start := time.Now()
		if bytes, err := s.measure(ctx, docker); err == nil {
			s.diskUsage.Store(bytes)
		} else if ctx.Err() == nil {
			s.log.Info("disk usage of images cannot be measured", slog.Any("err", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(measurePause(time.Since(start))):
		}
	}
}

// measurePause returns the pause after a measurement.
func measurePause(took time.Duration) time.Duration {
	return max(measureInterval, measureIdleFactor*took)
}

// measure returns the disk usage of all images in bytes.
func (s *Service) measure(ctx context.Context, docker *engine.Conn) (uint64, error) {
	if !docker.Features.Snapshotter {
		// Docker stores the size of each layer in a small file. Their sum is what its
		// system df returns, but that takes locks which delay other requests.
		sizes, err := filepath.Glob(filepath.Join(docker.Features.RootDir, "image", docker.Features.StorageDriver, "layerdb", "sha256", "*", "size"))
		if err == nil && len(sizes) > 0 {
			return sumFiles(sizes), nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, measureTimeout)
	defer cancel()
	df, err := docker.DiskUsage(ctx, types.DiskUsageOptions{Types: []types.DiskUsageObject{types.ImageObject}})
	if err != nil {
		return 0, err
	}
	layers := uint64(max(df.LayersSize, 0))
	if docker.Features.Snapshotter {
		// Docker adds up all snapshots of containerd, with those that containers write to
		// (docker 28.5).
		_, _, written := s.ContainerUsage()
		layers -= min(layers, written)
	}
	return layers, nil
}

// sumFiles returns the sum of the numbers in files. A file that no longer exists counts as 0.
func sumFiles(files []string) uint64 {
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
