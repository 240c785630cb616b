package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// chunkSize is how much is written with one message. containerd accepts messages of up to 16 MiB.
const chunkSize = 1 << 20

// Stat returns the size of a blob. The error is of kind NotFound if the namespace does not have it.
func (c *Client) Stat(ctx context.Context, blob digest.Digest) (size int64, err error) {
	resp, err := c.content.Info(c.in(ctx), &contentapi.InfoRequest{Digest: blob.String()})
	if err != nil {
		return 0, fmt.Errorf("containerd: %w", native(err))
	}
	return resp.GetInfo().GetSize(), nil
}

// ReadBlob writes a blob to w. That its content has the digest is verified at the end.
func (c *Client) ReadBlob(ctx context.Context, blob digest.Digest, w io.Writer) error {
	ctx, cancel := context.WithCancel(c.in(ctx))
	defer cancel() // ends the stream
	if err := blob.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", blob, err)
	}
	stream, err := c.content.Read(ctx, &contentapi.ReadContentRequest{Digest: blob.String()})
	if err != nil {
		return fmt.Errorf("read %s from containerd: %w", blob, native(err))
	}
	verifier := blob.Verifier()
	w = io.MultiWriter(verifier, w)
	for {
		resp, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF) && !verifier.Verified():
			return fmt.Errorf("read %s from containerd: content has another digest: %w", blob, errdefs.ErrDataLoss)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read %s from containerd: %w", blob, native(err))
		}
		if _, err := w.Write(resp.GetData()); err != nil {
			return err
		}
	}
}

// A writer is a stream of Content.Write.
type writer struct {
	stream contentapi.Content_WriteClient
	ref    string
}

// do sends a message and returns the response.
func (w writer) do(req *contentapi.WriteContentRequest) (*contentapi.WriteContentResponse, error) {
	req.Ref = w.ref
	if err := w.stream.Send(req); err != nil && !errors.Is(err, io.EOF) { // after EOF Recv returns the error
		return nil, native(err)
	}
	resp, err := w.stream.Recv()
	return resp, native(err)
}

// WriteBlob stores what r contains under its digest, which it returns. ref is the name of the
// incomplete blob. If want is set, the content must have that digest, and if the namespace has the blob already, r is not read.
func (c *Client) WriteBlob(caller context.Context, ref string, want ocispec.Descriptor, r io.Reader) (ocispec.Descriptor, error) {
	ctx, cancel := context.WithCancel(c.in(caller))
	defer cancel() // ends the stream
	stream, err := c.content.Write(ctx)
	if err != nil {
		return want, fmt.Errorf("write to containerd: %w", native(err))
	}
	w := writer{stream, ref}
	if _, err := w.do(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_STAT, Expected: want.Digest.String(), Total: want.Size}); err != nil {
		if errdefs.IsAlreadyExists(err) && want.Digest != "" {
			return want, nil
		}
		return want, fmt.Errorf("write to containerd: %w", err)
	}
	digester := digest.Canonical.Digester()
	buf, size := make([]byte, chunkSize), int64(0)
	for {
		n, err := io.ReadFull(r, buf)
		end := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !end {
			return want, err
		}
		if _, err := digester.Hash().Write(buf[:n]); err != nil {
			return want, err
		}
		req := &contentapi.WriteContentRequest{Action: contentapi.WriteAction_WRITE, Offset: size, Data: buf[:n]}
		size += int64(n)
		got := ocispec.Descriptor{Digest: digester.Digest(), Size: size}
		if end {
			if want.Digest != "" && got.Digest != want.Digest {
				return want, fmt.Errorf("content has the digest %s, want %s: %w", got.Digest, want.Digest, errdefs.ErrDataLoss)
			}
			req.Action, req.Expected, req.Total = contentapi.WriteAction_COMMIT, got.Digest.String(), size
		}
		_, err = w.do(req)
		switch {
		case end && err == nil:
			return got, nil
		case end && want.Digest == "" && errdefs.IsAlreadyExists(err):
			// Only a write that begins with the digest adds an existing blob to the lease of the caller.
			return c.WriteBlob(caller, ref, got, strings.NewReader(""))
		case end && errdefs.IsAlreadyExists(err): // another client was faster
			return got, nil
		case err != nil:
			return want, fmt.Errorf("write to containerd: %w", err)
		}
	}
}

// ShareBlob adds a blob that another namespace of this containerd has to the namespace of c, without copying it. It
// returns false if containerd does not share content between namespaces (its option content_sharing_policy).
func (c *Client) ShareBlob(ctx context.Context, ref string, blob ocispec.Descriptor) (bool, error) {
	ctx, cancel := context.WithCancel(c.in(ctx))
	defer cancel() // ends the stream
	stream, err := c.content.Write(ctx)
	if err != nil {
		return false, fmt.Errorf("share %s in containerd: %w", blob.Digest, native(err))
	}
	w := writer{stream, ref}
	resp, err := w.do(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_STAT, Expected: blob.Digest.String(), Total: blob.Size})
	if err == nil {
		if resp.GetOffset() != blob.Size {
			return false, nil
		}
		_, err = w.do(&contentapi.WriteContentRequest{
			Action: contentapi.WriteAction_COMMIT, Expected: blob.Digest.String(), Total: blob.Size, Offset: blob.Size,
		})
	}
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return false, fmt.Errorf("share %s in containerd: %w", blob.Digest, err)
	}
	return true, nil
}

// LabelBlob sets labels of a blob; others are kept.
func (c *Client) LabelBlob(ctx context.Context, blob digest.Digest, labels map[string]string) error {
	req := &contentapi.UpdateRequest{Info: &contentapi.Info{Digest: blob.String(), Labels: labels}, UpdateMask: &fieldmaskpb.FieldMask{}}
	for name := range labels {
		req.UpdateMask.Paths = append(req.UpdateMask.Paths, "labels."+name)
	}
	if _, err := c.content.Update(c.in(ctx), req); err != nil {
		return fmt.Errorf("label %s in containerd: %w", blob, native(err))
	}
	return nil
}
