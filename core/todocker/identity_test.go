package todocker

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestIdentify(t *testing.T) {
	accounts := Accounts{
		Passwd: []byte("root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/:/bin/sh\n"),
		Group:  []byte("root:x:0:\nbin:x:1:root\nweb:x:1001:\nextra:x:50000:web\nother:x:60000:\n"),
	}
	type sc = runtimeapi.LinuxContainerSecurityContext
	id := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	told := func(uid, gid int64, groups ...int64) *runtimeapi.LinuxContainerUser {
		return &runtimeapi.LinuxContainerUser{Uid: uid, Gid: gid, SupplementalGroups: groups}
	}
	const strict = runtimeapi.SupplementalGroupsPolicy_Strict
	for name, tt := range map[string]struct {
		sc     *sc
		image  string
		user   string
		groups []string
		told   *runtimeapi.LinuxContainerUser
	}{
		"nothing said":                     {nil, "", "", nil, told(0, 0, 0, 1)},
		"the image's user":                 {nil, "web", "web", nil, told(1000, 1001, 1001, 50000)},
		"the image's user and group":       {nil, "web:other", "web:other", []string{"50000"}, told(1000, 60000, 50000, 60000)},
		"a user by number":                 {&sc{RunAsUser: id(1000)}, "root", "1000", nil, told(1000, 1001, 1001, 50000)},
		"a user by name":                   {&sc{RunAsUsername: "web"}, "", "web", nil, told(1000, 1001, 1001, 50000)},
		"a number that nobody has":         {&sc{RunAsUser: id(4242)}, "web", "4242", nil, told(4242, 0, 0)},
		"a name that nobody has":           {&sc{RunAsUsername: "nobody"}, "", "nobody", nil, nil},
		"a user and a group":               {&sc{RunAsUser: id(1000), RunAsGroup: id(7)}, "", "1000:7", []string{"50000"}, told(1000, 7, 7, 50000)},
		"groups besides":                   {&sc{RunAsUser: id(1000), SupplementalGroups: []int64{9}}, "", "1000", []string{"9"}, told(1000, 1001, 9, 1001, 50000)},
		"groups besides a group":           {&sc{RunAsUser: id(1000), RunAsGroup: id(7), SupplementalGroups: []int64{50000}}, "", "1000:7", []string{"50000"}, told(1000, 7, 7, 50000)},
		"strict":                           {&sc{RunAsUser: id(1000), SupplementalGroupsPolicy: strict}, "", "1000:1001", nil, told(1000, 1001, 1001)},
		"strict, groups besides":           {&sc{RunAsUser: id(1000), RunAsGroup: id(7), SupplementalGroups: []int64{9}, SupplementalGroupsPolicy: strict}, "", "1000:7", []string{"9"}, told(1000, 7, 7, 9)},
		"strict, nothing said":             {&sc{SupplementalGroupsPolicy: strict}, "", "0:0", nil, told(0, 0, 0)},
		"strict, the image's user":         {&sc{SupplementalGroupsPolicy: strict}, "web", "1000:1001", nil, told(1000, 1001, 1001)},
		"strict, a number that nobody has": {&sc{RunAsUser: id(4242), SupplementalGroupsPolicy: strict}, "web", "4242:0", nil, told(4242, 0, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := identify(tt.sc, tt.image, accounts)
			if err != nil || got.user != tt.user || !cmp.Equal(got.groups, tt.groups) {
				t.Errorf("user %q, groups %v, %v; want %q, %v", got.user, got.groups, err, tt.user, tt.groups)
			}
			if diff := cmp.Diff(tt.told, got.told, protocmp.Transform()); diff != "" {
				t.Errorf("told (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := identify(&sc{RunAsGroup: id(7)}, "web", accounts); err == nil {
		t.Error("a group without a user is taken")
	}
}
