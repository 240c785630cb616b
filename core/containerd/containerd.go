// Package containerd calls the gRPC API of a containerd: its images, its content store and its leases.
//
// A Client works in one namespace. It uses services that containerd has had since 1.2, and
// no others, so that it works with every release in use.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

const (
	// DefaultAddress is the socket of a containerd that a distribution installs.
	DefaultAddress = "/run/containerd/containerd.sock"
	// KubernetesNamespace is the namespace of containerd's CRI plugin.
	KubernetesNamespace = "k8s.io"
)

// Headers of a request (pkg/namespaces and core/leases of containerd).
const (
	namespaceHeader = "containerd-namespace"
	leaseHeader     = "containerd-lease"
)

const (
	// callTimeout is that of calls without a stream. A lease may be deleted together with a garbage collection,
	// which takes longest.
	callTimeout = time.Minute
	// versionTimeout is for the first call: a containerd that is up answers at once.
	versionTimeout = 10 * time.Second
	// maxMessage is the largest response: a list of images, with their labels.
	maxMessage = 64 << 20
)

// A Client is a connection to a containerd, for one of its namespaces.
type Client struct {
	conn       *grpc.ClientConn
	namespace  string
	containers containersapi.ContainersClient
	content    contentapi.ContentClient
	images     imagesapi.ImagesClient
	leases     leasesapi.LeasesClient
}

// Dial connects to the containerd at address, the path of its socket, and returns its version. The error is of
// kind Unavailable if none answers there.
func Dial(ctx context.Context, address, namespace string) (_ *Client, version string, err error) {
	probe, err := (&net.Dialer{Timeout: versionTimeout}).DialContext(ctx, "unix", address) // its error is plainer than that of gRPC
	if err != nil {
		return nil, "", fmt.Errorf("containerd: %w: %w", err, errdefs.ErrUnavailable)
	}
	if err := probe.Close(); err != nil {
		return nil, "", err
	}
	conn, err := grpc.NewClient("unix:"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(boundCall), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, "", fmt.Errorf("containerd at %s: %w", address, err)
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	resp, err := versionapi.NewVersionClient(conn).Version(ctx, &emptypb.Empty{})
	if err != nil {
		return nil, "", errors.Join(fmt.Errorf("containerd at %s: %w", address, native(err)), conn.Close())
	}
	return newClient(conn, namespace), resp.GetVersion(), nil
}

func newClient(conn *grpc.ClientConn, namespace string) *Client {
	return &Client{
		conn: conn, namespace: namespace, containers: containersapi.NewContainersClient(conn), content: contentapi.NewContentClient(conn),
		images: imagesapi.NewImagesClient(conn), leases: leasesapi.NewLeasesClient(conn),
	}
}

// boundCall gives each call without a stream a timeout.
func boundCall(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return invoke(ctx, method, req, reply, conn, opts...)
}

// native gives an error of containerd its kind. The text of the gRPC status is left out.
func native(err error) error { return errgrpc.ToNative(err) }

// Close closes the connection, for all clients that In has returned too.
func (c *Client) Close() error { return c.conn.Close() }

// In returns a client for another namespace over the same connection.
func (c *Client) In(namespace string) *Client { return newClient(c.conn, namespace) }

// in adds the namespace to the requests of ctx.
func (c *Client) in(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, namespaceHeader, c.namespace)
}

// An Image is an image record: a name of what Target is the root of.
type Image struct {
	Name   string
	Target ocispec.Descriptor
	Labels map[string]string
}

// ListImages returns all image records of the namespace.
func (c *Client) ListImages(ctx context.Context) ([]Image, error) {
	resp, err := c.images.List(c.in(ctx), &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images in the namespace %s of containerd: %w", c.namespace, native(err))
	}
	list := make([]Image, 0, len(resp.GetImages()))
	for _, row := range resp.GetImages() {
		list = append(list, fromAPI(row))
	}
	return list, nil
}

// GetImage returns the record of that name. The error is of kind NotFound if the record does not exist.
func (c *Client) GetImage(ctx context.Context, name string) (Image, error) {
	resp, err := c.images.Get(c.in(ctx), &imagesapi.GetImageRequest{Name: name})
	if err != nil {
		return Image{}, fmt.Errorf("containerd: %w", native(err))
	}
	return fromAPI(resp.GetImage()), nil
}

// PutImage creates a record, or gives the one of that name another target and labels.
func (c *Client) PutImage(ctx context.Context, image Image) error {
	row := &imagesapi.Image{Name: image.Name, Labels: image.Labels, Target: &types.Descriptor{
		MediaType: image.Target.MediaType, Digest: image.Target.Digest.String(), Size: image.Target.Size,
	}}
	_, err := c.images.Create(c.in(ctx), &imagesapi.CreateImageRequest{Image: row})
	if err = native(err); errdefs.IsAlreadyExists(err) {
		_, err = c.images.Update(c.in(ctx), &imagesapi.UpdateImageRequest{
			Image: row, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"target", "labels"}},
		})
		err = native(err)
	}
	if err != nil {
		return fmt.Errorf("record image %s in containerd: %w", image.Name, err)
	}
	return nil
}

// RemoveImage removes a record. It succeeds if the record does not exist.
func (c *Client) RemoveImage(ctx context.Context, name string) error {
	_, err := c.images.Delete(c.in(ctx), &imagesapi.DeleteImageRequest{Name: name})
	if err = native(err); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove image %s from containerd: %w", name, err)
	}
	return nil
}

// UsedImages returns the names of the images that the containers of the namespace were created from.
func (c *Client) UsedImages(ctx context.Context) (map[string]bool, error) {
	resp, err := c.containers.List(c.in(ctx), &containersapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers in the namespace %s of containerd: %w", c.namespace, native(err))
	}
	used := map[string]bool{}
	for _, row := range resp.GetContainers() {
		used[row.GetImage()] = true
	}
	return used, nil
}

// fromAPI translates an image record.
func fromAPI(row *imagesapi.Image) Image {
	target := row.GetTarget()
	return Image{Name: row.GetName(), Labels: row.GetLabels(), Target: ocispec.Descriptor{
		MediaType: target.GetMediaType(), Digest: digest.Digest(target.GetDigest()), Size: target.GetSize(),
	}}
}

// WithLease returns a context whose calls keep what they write from containerd's garbage collection, until
// release is called or ttl has passed. release has incomplete and unreferenced content removed at once if collect is set,
// and otherwise with the next garbage collection.
func (c *Client) WithLease(ctx context.Context, id string, ttl time.Duration) (_ context.Context, release func(collect bool) error, err error) {
	expiry := time.Now().Add(ttl).UTC().Format(time.RFC3339)
	_, err = c.leases.Create(c.in(ctx), &leasesapi.CreateRequest{ID: id, Labels: map[string]string{"containerd.io/gc.expire": expiry}})
	if err != nil {
		return nil, nil, fmt.Errorf("create a lease in containerd: %w", native(err))
	}
	release = func(collect bool) error {
		_, err := c.leases.Delete(c.in(context.WithoutCancel(ctx)), &leasesapi.DeleteRequest{ID: id, Sync: collect})
		if err = native(err); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("release lease %s of containerd: %w", id, err)
		}
		return nil
	}
	return metadata.AppendToOutgoingContext(ctx, leaseHeader, id), release, nil
}
