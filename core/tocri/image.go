package tocri

import (
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// An ImageFacts is what the Engine says of an image, be it in a list or of the
// one that was asked for.
type ImageFacts struct {
	ID      string
	Tags    []string
	Digests []string
	Size    int64  // in bytes
	User    string // whom its containers run as: a number or a name, with a group perhaps
	Pinned  bool   // never to be collected
}

// Image translates an image. However it was asked for, the message is the
// same.
func Image(f ImageFacts) *runtimeapi.Image {
	out := &runtimeapi.Image{
		Id:          f.ID,
		RepoTags:    references(f.Tags, false),
		RepoDigests: references(f.Digests, true),
		Size:        uint64(max(f.Size, 1)), // the kubelet takes 0 for a broken answer
		Pinned:      f.Pinned,
	}
	user, _, _ := strings.Cut(f.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		out.Uid = &runtimeapi.Int64Value{Value: uid}
	} else {
		out.Username = user
	}
	return out
}

// references drops what Engines put among their tags and digests that is none:
// <none>:<none> before 24, and with the containerd image store a digest among
// the tags.
func references(list []string, digests bool) []string {
	return slices.DeleteFunc(slices.Clone(list), func(ref string) bool {
		return strings.Contains(ref, "<none>") || strings.Contains(ref, "@") != digests
	})
}
