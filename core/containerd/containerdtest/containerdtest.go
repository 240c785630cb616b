// Package containerdtest is a fake containerd: its images, content, leases and containers, in memory.
package containerdtest

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/core/testdir"
)

// A Server is a fake containerd. As the real one it shares content between its namespaces.
type Server struct {
	Address string // path of its socket

	mu         sync.Mutex // guards following
	namespaces map[string]*namespace
	failWrites error
}

// A namespace has the objects of one namespace.
type namespace struct {
	images     map[string]*imagesapi.Image
	content    map[string][]byte
	labels     map[string]map[string]string // of content
	leases     map[string]map[string]bool   // digests of content, by lease
	containers []*containersapi.Container
}

// Start starts a fake containerd, which the end of the test stops.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{Address: filepath.Join(testdir.New(t), "c.sock"), namespaces: map[string]*namespace{}}
	l, err := net.Listen("unix", s.Address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	versionapi.RegisterVersionServer(server, versionServer{})
	imagesapi.RegisterImagesServer(server, imagesServer{s: s})
	contentapi.RegisterContentServer(server, contentServer{s: s})
	leasesapi.RegisterLeasesServer(server, leasesServer{s: s})
	containersapi.RegisterContainersServer(server, containersServer{s: s})
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// FailWrites has all writes of content fail with err, until it is nil again.
func (s *Server) FailWrites(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failWrites = err
}

// AddContainer adds a container of an image.
func (s *Server) AddContainer(namespace, image string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ns := s.namespaceLocked(namespace)
	ns.containers = append(ns.containers, &containersapi.Container{ID: image, Image: image})
}

// ImageNames returns the names of all image records of a namespace, sorted.
func (s *Server) ImageNames(namespace string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.namespaceLocked(namespace).images))
}

// Blobs returns how many blobs a namespace has.
func (s *Server) Blobs(namespace string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.namespaceLocked(namespace).content)
}

// Leases returns how many leases a namespace has.
func (s *Server) Leases(namespace string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.namespaceLocked(namespace).leases)
}

// DeleteBlob removes a blob from all namespaces.
func (s *Server) DeleteBlob(blob digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ns := range s.namespaces {
		delete(ns.content, blob.String())
	}
}

func (s *Server) namespaceLocked(name string) *namespace {
	ns, ok := s.namespaces[name]
	if !ok {
		ns = &namespace{
			images: map[string]*imagesapi.Image{}, content: map[string][]byte{}, labels: map[string]map[string]string{}, leases: map[string]map[string]bool{},
		}
		s.namespaces[name] = ns
	}
	return ns
}

// lock locks s and returns the namespace of a request.
func (s *Server) lock(ctx context.Context) (ns *namespace, unlock func()) {
	s.mu.Lock()
	return s.namespaceLocked(header(ctx, "containerd-namespace")), s.mu.Unlock
}

func header(ctx context.Context, name string) string {
	incoming, _ := metadata.FromIncomingContext(ctx)
	if values := incoming.Get(name); len(values) > 0 {
		return values[0]
	}
	return ""
}

// collectLocked removes the blobs that neither an image nor a lease refers to.
func (ns *namespace) collectLocked() {
	live := map[string]bool{}
	var mark func(blob string)
	mark = func(blob string) {
		if live[blob] {
			return
		}
		live[blob] = true
		for _, child := range ns.labels[blob] {
			mark(child)
		}
	}
	for _, img := range ns.images {
		mark(img.GetTarget().GetDigest())
	}
	for _, lease := range ns.leases {
		for blob := range lease {
			mark(blob)
		}
	}
	maps.DeleteFunc(ns.content, func(blob string, _ []byte) bool { return !live[blob] })
}

type versionServer struct {
	versionapi.UnimplementedVersionServer
}

// Version implements versionapi.VersionServer.
func (versionServer) Version(context.Context, *emptypb.Empty) (*versionapi.VersionResponse, error) {
	return &versionapi.VersionResponse{Version: "v2.0.0"}, nil
}

type containersServer struct {
	containersapi.UnimplementedContainersServer
	s *Server
}

// List implements containersapi.ContainersServer.
func (v containersServer) List(ctx context.Context, _ *containersapi.ListContainersRequest) (*containersapi.ListContainersResponse, error) {
	ns, unlock := v.s.lock(ctx)
	defer unlock()
	return &containersapi.ListContainersResponse{Containers: ns.containers}, nil
}

type leasesServer struct {
	leasesapi.UnimplementedLeasesServer
	s *Server
}

// Create implements leasesapi.LeasesServer.
func (v leasesServer) Create(ctx context.Context, req *leasesapi.CreateRequest) (*leasesapi.CreateResponse, error) {
	ns, unlock := v.s.lock(ctx)
	defer unlock()
	ns.leases[req.GetID()] = map[string]bool{}
	return &leasesapi.CreateResponse{Lease: &leasesapi.Lease{ID: req.GetID()}}, nil
}

// Delete implements leasesapi.LeasesServer. It always collects garbage.
func (v leasesServer) Delete(ctx context.Context, req *leasesapi.DeleteRequest) (*emptypb.Empty, error) {
	ns, unlock := v.s.lock(ctx)
	defer unlock()
	delete(ns.leases, req.GetID())
	ns.collectLocked()
	return &emptypb.Empty{}, nil
}

type imagesServer struct {
	imagesapi.UnimplementedImagesServer
	s *Server
}

// List implements imagesapi.ImagesServer.
func (v imagesServer) List(ctx context.Context, _ *imagesapi.ListImagesRequest) (*imagesapi.ListImagesResponse, error) {
	ns, unlock := v.s.lock(ctx)
	defer unlock()
	return &imagesapi.ListImagesResponse{Images: slices.Collect(maps.Values(ns.images))}, nil
}

// Get implements imagesapi.ImagesServer.
func (v imagesServer) Get(ctx context.Context, req *imagesapi.GetImageRequest) (*imagesapi.GetImageResponse, error) {
	ns, unlock := v.s.lock(ctx)
	defer unlock()
	img, ok := ns.images[req.GetName()]
	if !ok {
		return nil, status.Errorf(codes.NotFound, "image %q: not found", req.GetName())
	}
	return &imagesapi.GetImageResponse{Image: img}, nil
}

// Create implements imagesapi.ImagesServer.
func (v imagesServer) Create(ctx context.Context, req *imagesapi.CreateImageRequest) (*imagesapi.CreateImageResponse, error) {
	ns, unlock := v.s.lock(ctx)
	defer unlock()
	if ns.images[req.GetImage().GetName()] != nil {
		return nil, status.Errorf(codes.AlreadyExists, "image %q: already exists", req.GetImage().GetName())
	}
	ns.images[req.GetImage().GetName()] = req.GetImage()
	return &imagesapi.CreateImageResponse{Image: req.GetImage()}, nil
}

// Update implements imagesapi.ImagesServer.
func (v imagesServer) Update(ctx context.Context, req *imagesapi.UpdateImageRequest) (*imagesapi.UpdateImageResponse, error) {
	ns, unlock := v.s.lock(ctx)
	defer unlock()
	ns.images[req.GetImage().GetName()] = req.GetImage()
	return &imagesapi.UpdateImageResponse{Image: req.GetImage()}, nil
}

// Delete implements imagesapi.ImagesServer.
func (v imagesServer) Delete(ctx context.Context, req *imagesapi.DeleteImageRequest) (*emptypb.Empty, error) {
	ns, unlock := v.s.lock(ctx)
	defer unlock()
	delete(ns.images, req.GetName())
	return &emptypb.Empty{}, nil
}

type contentServer struct {
	contentapi.UnimplementedContentServer
	s *Server
}

func noContent(blob string) error {
	return status.Errorf(codes.NotFound, "content %s: not found", blob)
}

// Info implements contentapi.ContentServer.
func (v contentServer) Info(ctx context.Context, req *contentapi.InfoRequest) (*contentapi.InfoResponse, error) {
	ns, unlock := v.s.lock(ctx)
	defer unlock()
	text, ok := ns.content[req.GetDigest()]
	if !ok {
		return nil, noContent(req.GetDigest())
	}
	return &contentapi.InfoResponse{Info: &contentapi.Info{Digest: req.GetDigest(), Size: int64(len(text))}}, nil
}

// Update implements contentapi.ContentServer. It adds labels.
func (v contentServer) Update(ctx context.Context, req *contentapi.UpdateRequest) (*contentapi.UpdateResponse, error) {
	ns, unlock := v.s.lock(ctx)
	defer unlock()
	blob := req.GetInfo().GetDigest()
	if _, ok := ns.content[blob]; !ok {
		return nil, noContent(blob)
	}
	if ns.labels[blob] == nil {
		ns.labels[blob] = map[string]string{}
	}
	maps.Copy(ns.labels[blob], req.GetInfo().GetLabels())
	return &contentapi.UpdateResponse{Info: req.GetInfo()}, nil
}

// Read implements contentapi.ContentServer.
func (v contentServer) Read(req *contentapi.ReadContentRequest, stream contentapi.Content_ReadServer) error {
	ns, unlock := v.s.lock(stream.Context())
	text, ok := ns.content[req.GetDigest()]
	unlock()
	if !ok {
		return noContent(req.GetDigest())
	}
	return stream.Send(&contentapi.ReadContentResponse{Data: text})
}

// Write implements contentapi.ContentServer.
func (v contentServer) Write(stream contentapi.Content_WriteServer) error {
	var data []byte
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		resp, err := v.write(stream.Context(), req, &data)
		if err != nil {
			return err
		}
		if err := stream.Send(resp); err != nil || req.GetAction() == contentapi.WriteAction_COMMIT {
			return err
		}
	}
}

// write handles a message of a write, whose data so far is in *data.
func (v contentServer) write(ctx context.Context, req *contentapi.WriteContentRequest, data *[]byte) (*contentapi.WriteContentResponse, error) {
	ns, unlock := v.s.lock(ctx)
	defer unlock()
	keep := func(blob string) {
		if lease := ns.leases[header(ctx, "containerd-lease")]; lease != nil {
			lease[blob] = true
		}
	}
	if want := req.GetExpected(); want != "" {
		if _, ok := ns.content[want]; ok {
			if req.GetAction() == contentapi.WriteAction_STAT {
				keep(want)
			}
			return nil, status.Errorf(codes.AlreadyExists, "content %s: already exists", want)
		}
		for _, other := range v.s.namespaces {
			if text, ok := other.content[want]; ok {
				*data = text
			}
		}
	}
	if v.s.failWrites != nil && req.GetAction() != contentapi.WriteAction_STAT {
		return nil, v.s.failWrites
	}
	if offset := req.GetOffset(); offset == 0 {
		if req.GetAction() != contentapi.WriteAction_STAT {
			*data = nil
		}
	} else if offset != int64(len(*data)) {
		return nil, status.Errorf(codes.OutOfRange, "write @%d must occur at current offset %d", offset, len(*data))
	}
	*data = append(slices.Clip(*data), req.GetData()...)
	if req.GetAction() == contentapi.WriteAction_COMMIT {
		got := digest.FromBytes(*data).String()
		if want := req.GetExpected(); want != "" && want != got {
			return nil, status.Errorf(codes.FailedPrecondition, "unexpected commit digest %s, expected %s", got, want)
		}
		ns.content[got] = *data
		keep(got)
	}
	return &contentapi.WriteContentResponse{Action: req.GetAction(), Offset: int64(len(*data))}, nil
}
