package tocri

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/image"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// An ImageInfo is what the Engine returns about an image, in a list as well as in an inspect
// result.
type ImageInfo struct {
	ID      string
	Tags    []string
	Digests []string
	Size    int64  // in bytes
	User    string // Config.User: a UID or a name, perhaps with a group
	Pinned  bool   // must not be garbage-collected by the kubelet
}

// Image translates an image.
func Image(i ImageInfo) *runtimeapi.Image {
	out := &runtimeapi.Image{
		Id:          i.ID,
		RepoTags:    validReferences(i.Tags, false),
		RepoDigests: validReferences(i.Digests, true),
		Size:        uint64(max(i.Size, 1)), // the kubelet considers an image with size 0 broken
		Pinned:      i.Pinned,
	}
	// A number that is not a UID (0 to 1<<31-1) is returned as a name. With runAsNonRoot the
	// kubelet accepts every UID but 0, and refuses names: Docker up to 28.5 truncates
	// 4294967296 to 0.
	user, _, _ := strings.Cut(i.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 32); err == nil && uid >= 0 {
		out.Uid = &runtimeapi.Int64Value{Value: uid}
	} else {
		out.Username = user
	}
	return out
}

// validReferences returns the tags, or the digests, in list. Docker before 24 lists
// <none>:<none>, and with the containerd image store digests among the tags.
func validReferences(list []string, digests bool) []string {
	return slices.DeleteFunc(slices.Clone(list), func(ref string) bool {
		return strings.Contains(ref, "<none>") || strings.Contains(ref, "@") != digests
	})
}

// ImageVerbose returns the properties of an image for which the CRI has no field, in the form
// that containerd uses and templates of crictl inspecti read: JSON under the key "info". berth's own
// is pinned, which says why the image is pinned; it is left out if it is empty.
func ImageVerbose(found image.InspectResponse, pinned map[string]string) (map[string]string, error) {
	info := map[string]any{
		"imageSpec": map[string]any{
			"created": found.Created, "author": found.Author, "architecture": found.Architecture,
			"os": found.Os, "config": found.Config, "rootfs": found.RootFS,
		},
	}
	if len(pinned) > 0 {
		info["pinned"] = pinned
	}
	text, err := json.Marshal(info)
	if err != nil {
		return nil, fmt.Errorf("info of image %s: %w", found.ID, err)
	}
	return map[string]string{"info": string(text)}, nil
}
