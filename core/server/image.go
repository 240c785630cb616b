package server

import (
	"context"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/image/pullprogress"
	"berth/core/image/verify"
)

// PullImage pulls an image and returns its ID.
func (s *Server) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	pod := r.GetSandboxConfig().GetMetadata()
	ctx = pullprogress.WithPod(ctx, pod.GetNamespace(), pod.GetName())
	id, err := s.Images.Pull(ctx, r.GetImage().GetImage(), r.GetImage().GetRuntimeHandler(), r.GetAuth(), verify.Pod{
		Namespace: pod.GetNamespace(), Name: pod.GetName(), UID: pod.GetUid(),
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: id}, nil
}

// ListImages lists the images that match a filter.
func (s *Server) ListImages(ctx context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	list, err := s.Images.List(ctx, r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListImagesResponse{Images: list}, nil
}

// StreamImages is ListImages in several messages.
func (s *Server) StreamImages(r *runtimeapi.StreamImagesRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	list, err := s.Images.List(stream.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return sendChunks(list, func(part []*runtimeapi.Image) error {
		return stream.Send(&runtimeapi.StreamImagesResponse{Images: part})
	})
}

// ImageStatus returns an image, or a response without one if it is not on the node.
func (s *Server) ImageStatus(ctx context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	found, info, err := s.Images.Status(ctx, r.GetImage().GetImage(), r.GetVerbose())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ImageStatusResponse{Image: found, Info: info}, nil
}

// RemoveImage removes an image with all its tags and digests. It is idempotent.
func (s *Server) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	if err := s.Images.Remove(ctx, r.GetImage().GetImage()); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo returns the disk usage of images and of writable layers.
func (s *Server) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	images, containers, err := s.Images.FsInfo(ctx)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: images, ContainerFilesystems: containers}, nil
}
