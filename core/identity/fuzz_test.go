package identity

import (
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// FuzzForContainer resolves users and groups with arbitrary files of an image: the kubelet gets the
// same numbers as Docker, and all of them are in range.
func FuzzForContainer(f *testing.F) {
	for _, user := range []string{"", "app", "app:staff", "1000", "1000:9", "4294967296", "-1", ":", "root:", "0:4294967296", "\n"} {
		f.Add([]byte("root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n"), []byte("staff:x:50:app\n9:x:0:\ndisk:x:6:app\n"), user, int64(1000), int64(9), true)
		f.Add([]byte("app:x:4294967296:-1::/:\n:::\n"), []byte("x:x:4294967296:app,app\n"), user, int64(-1), int64(1)<<40, false)
	}
	f.Fuzz(func(t *testing.T, passwd, group []byte, user string, uid, gid int64, strict bool) {
		sc := &runtimeapi.LinuxContainerSecurityContext{SupplementalGroups: []int64{gid}}
		if strict {
			sc.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy_Strict
		}
		if uid%2 == 0 {
			sc.RunAsUser = &runtimeapi.Int64Value{Value: uid}
		}
		got, err := ForContainer(sc, user, PasswdFiles{Passwd: passwd, Group: group})
		if err != nil {
			if !errdefs.IsInvalidArgument(err) && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("%v is of neither kind", err)
			}
			return
		}
		if want := fmt.Sprintf("%d:%d", got.Status.GetUid(), got.Status.GetGid()); got.User != want {
			t.Errorf("Docker gets %q, the kubelet %s", got.User, want)
		}
		for _, id := range append(got.Status.GetSupplementalGroups(), got.Status.GetUid(), got.Status.GetGid()) {
			if !isValid(id) {
				t.Errorf("%d is out of range", id)
			}
		}
		if strict && len(got.Groups) != 1 {
			t.Errorf("with policy Strict the groups are %v", got.Groups)
		}
	})
}
