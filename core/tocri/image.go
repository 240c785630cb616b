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
	User    string // Config.User: a UID or a name, with a group perhaps
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
	// A number that is no UID (0 to 1<<31-1) is a name: the kubelet takes every UID but 0
	// for good under runAsNonRoot, and refuses names there. Docker up to 28.5 cuts
	// 4294967296 to 0.
	user, _, _ := strings.Cut(f.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 32); err == nil && uid >= 0 {
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
