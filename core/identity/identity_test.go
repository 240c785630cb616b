package identity

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/user"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestForContainer(t *testing.T) {
	files := PasswdFiles{
		Passwd: []byte("root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/:/bin/sh\n"),
		Group:  []byte("root:x:0:\nbin:x:1:root\nweb:x:1001:\nextra:x:50000:web\nother:x:60000:\n"),
	}
	type sc = runtimeapi.LinuxContainerSecurityContext
	id := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	status := func(uid, gid int64, groups ...int64) *runtimeapi.LinuxContainerUser {
		return &runtimeapi.LinuxContainerUser{Uid: uid, Gid: gid, SupplementalGroups: groups}
	}
	const strict = runtimeapi.SupplementalGroupsPolicy_Strict
	for name, tt := range map[string]struct {
		sc     *sc
		image  string
		user   string
		groups []string
		status *runtimeapi.LinuxContainerUser
	}{
		"all defaults":                             {nil, "", "0:0", []string{"1"}, status(0, 0, 0, 1)},
		"the image's user":                         {nil, "web", "1000:1001", []string{"50000"}, status(1000, 1001, 1001, 50000)},
		"the image's user and group":               {nil, "web:other", "1000:60000", []string{"50000"}, status(1000, 60000, 50000, 60000)},
		"the image's user, group by GID":           {nil, "web:77", "1000:77", []string{"50000"}, status(1000, 77, 77, 50000)},
		"the image's group alone":                  {nil, ":other", "0:60000", []string{"1"}, status(0, 60000, 1, 60000)},
		"a user by UID":                            {&sc{RunAsUser: id(1000)}, "root", "1000:1001", []string{"50000"}, status(1000, 1001, 1001, 50000)},
		"a user by name":                           {&sc{RunAsUsername: "web"}, "", "1000:1001", []string{"50000"}, status(1000, 1001, 1001, 50000)},
		"a UID that is not in /etc/passwd":         {&sc{RunAsUser: id(4242)}, "web", "4242:0", nil, status(4242, 0, 0)},
		"the highest UID":                          {&sc{RunAsUser: id(1<<31 - 1)}, "web", "2147483647:0", nil, status(1<<31-1, 0, 0)},
		"a user and a group":                       {&sc{RunAsUser: id(1000), RunAsGroup: id(7)}, "", "1000:7", []string{"50000"}, status(1000, 7, 7, 50000)},
		"supplemental groups":                      {&sc{RunAsUser: id(1000), SupplementalGroups: []int64{9}}, "", "1000:1001", []string{"9", "50000"}, status(1000, 1001, 9, 1001, 50000)},
		"supplemental groups and a group":          {&sc{RunAsUser: id(1000), RunAsGroup: id(7), SupplementalGroups: []int64{50000}}, "", "1000:7", []string{"50000"}, status(1000, 7, 7, 50000)},
		"Strict":                                   {&sc{RunAsUser: id(1000), SupplementalGroupsPolicy: strict}, "", "1000:1001", nil, status(1000, 1001, 1001)},
		"Strict, supplemental groups":              {&sc{RunAsUser: id(1000), RunAsGroup: id(7), SupplementalGroups: []int64{9}, SupplementalGroupsPolicy: strict}, "", "1000:7", []string{"9"}, status(1000, 7, 7, 9)},
		"Strict, all defaults":                     {&sc{SupplementalGroupsPolicy: strict}, "", "0:0", nil, status(0, 0, 0)},
		"Strict, the image's user":                 {&sc{SupplementalGroupsPolicy: strict}, "web", "1000:1001", nil, status(1000, 1001, 1001)},
		"Strict, a UID that is not in /etc/passwd": {&sc{RunAsUser: id(4242), SupplementalGroupsPolicy: strict}, "web", "4242:0", nil, status(4242, 0, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ForContainer(tt.sc, tt.image, files)
			if err != nil || got.User != tt.user || !cmp.Equal(got.Groups, tt.groups) {
				t.Errorf("user %q, groups %v, %v; want %q, %v", got.User, got.Groups, err, tt.user, tt.groups)
			}
			if diff := cmp.Diff(tt.status, got.Status, protocmp.Transform()); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
		})
	}
}

// TestLookupAgreesWithDocker compares the result with that of the library that Docker uses.
func TestLookupAgreesWithDocker(t *testing.T) {
	a := PasswdFiles{
		Passwd: []byte("\n#web:x:1:1::/:\nroot:x:0:0::/root:/bin/sh\ntoor:x:0:7::/:\n:x:5:5::/:\nweb:x:1000:1001::/:\nweb:x:1002:1003::/:\nodd:x:no:number\n77:x:78:79::/:\nshort\n"),
		Group:  []byte(" # comment\nroot:x:0:toor\nnone:x:5:\n\nweb:x:1001:\nextra:x:50000:root,web,77\nextra:x:50001:web\nodd:x:no:odd\n77:x:80:web\n"),
	}
	for _, spec := range []string{"", "root", "toor", "web", "odd", "short", "0", "5", "77", "78", "+5", "1000", "4242", "web:extra", "web:77", "1000:odd", ":77", "77:77", "web:", "none", "web:none-such", "4294967296", "-1", "web:-1"} {
		want, wantErr := user.GetExecUser(spec, nil, bytes.NewReader(a.Passwd), bytes.NewReader(a.Group))
		name, group, _ := strings.Cut(spec, ":")
		got, err := lookup(name, group, a)
		if (err == nil) != (wantErr == nil) {
			t.Errorf("%q: %v, want %v", spec, err, wantErr)
			continue
		}
		if err != nil {
			continue
		}
		if got.uid != int64(want.Uid) || got.gid != int64(want.Gid) {
			t.Errorf("%q: %d:%d, want %d:%d", spec, got.uid, got.gid, want.Uid, want.Gid)
		}
		var groups []int64
		for _, gid := range want.Sgids {
			groups = append(groups, int64(gid))
		}
		if group == "" && !cmp.Equal(got.groups, groups) {
			t.Errorf("%q: groups %v, want %v", spec, got.groups, groups)
		}
	}
}

// A container whose user or groups cannot be given exactly must fail, not run as another user.
func TestForContainerRefuses(t *testing.T) {
	type sc = runtimeapi.LinuxContainerSecurityContext
	id := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	hostile := PasswdFiles{
		Passwd: []byte("root:x:0:0::/:\nbig:x:4294967296:0::/:\nbiggroup:x:5:4294967296::/:\nhuge:x:99999999999999999999:0::/:\nlow:x:-4294967296:0::/:\nmember:x:6:6::/:\n"),
		Group:  []byte("root:x:0:\n9:x:0:\nbig:x:4294967296:member\n"),
	}
	many := PasswdFiles{Passwd: []byte("web:x:1:1::/:\n")}
	for i := range maxGroups + 1 {
		many.Group = fmt.Appendf(many.Group, "g%d:x:%d:web\n", i, i)
	}
	long := PasswdFiles{Passwd: append(bytes.Repeat([]byte("#"), 1<<20), "\nweb:x:1:1::/:\n"...)}
	const strict = runtimeapi.SupplementalGroupsPolicy_Strict
	for name, tt := range map[string]struct {
		sc    *sc
		image string
		files PasswdFiles
		kind  func(error) bool
	}{
		"a UID above the range":                {&sc{RunAsUser: id(1 << 31)}, "", hostile, errdefs.IsInvalidArgument},
		"a UID that Docker truncates to 0":     {&sc{RunAsUser: id(1 << 32)}, "", hostile, errdefs.IsInvalidArgument},
		"a UID below 0":                        {&sc{RunAsUser: id(-1)}, "", hostile, errdefs.IsInvalidArgument},
		"a GID above the range":                {&sc{RunAsUser: id(1), RunAsGroup: id(1 << 32)}, "", hostile, errdefs.IsInvalidArgument},
		"a GID below 0":                        {&sc{RunAsUser: id(1), RunAsGroup: id(-1)}, "", hostile, errdefs.IsInvalidArgument},
		"a supplemental group above":           {&sc{SupplementalGroups: []int64{1, 1 << 32}}, "", hostile, errdefs.IsInvalidArgument},
		"a supplemental group below":           {&sc{SupplementalGroups: []int64{-1}}, "", hostile, errdefs.IsInvalidArgument},
		"a group without a user":               {&sc{RunAsGroup: id(7)}, "web", hostile, errdefs.IsInvalidArgument},
		"the image's UID":                      {nil, "4294967296", hostile, errdefs.IsFailedPrecondition},
		"the image's UID, as a name":           {&sc{RunAsUsername: "4294967296"}, "", hostile, errdefs.IsFailedPrecondition},
		"the image's UID beyond int64":         {nil, "99999999999999999999", hostile, errdefs.IsFailedPrecondition},
		"the image's UID below 0":              {nil, "-4294967296", hostile, errdefs.IsFailedPrecondition},
		"the image's GID":                      {nil, "1:4294967296", hostile, errdefs.IsFailedPrecondition},
		"a UID in passwd":                      {nil, "big", hostile, errdefs.IsFailedPrecondition},
		"a UID in passwd beyond int64":         {nil, "huge", hostile, errdefs.IsFailedPrecondition},
		"a UID in passwd below 0":              {nil, "low", hostile, errdefs.IsFailedPrecondition},
		"a GID in passwd":                      {nil, "biggroup", hostile, errdefs.IsFailedPrecondition},
		"a GID in group":                       {nil, "root:big", hostile, errdefs.IsFailedPrecondition},
		"GID of a group that lists the user":   {nil, "member", hostile, errdefs.IsFailedPrecondition},
		"an unknown user":                      {nil, "app", hostile, errdefs.IsFailedPrecondition},
		"an unknown user, Strict":              {&sc{SupplementalGroupsPolicy: strict}, "app", hostile, errdefs.IsFailedPrecondition},
		"an unknown group":                     {nil, "root:app", hostile, errdefs.IsFailedPrecondition},
		"a group name that is another GID":     {&sc{SupplementalGroups: []int64{9}, SupplementalGroupsPolicy: strict}, "", hostile, errdefs.IsFailedPrecondition},
		"more groups than the labels may hold": {nil, "web", many, errdefs.IsFailedPrecondition},
		"a line that is too long":              {nil, "web", long, errdefs.IsFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := ForContainer(tt.sc, tt.image, tt.files); !tt.kind(err) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestForSandbox(t *testing.T) {
	type sc = runtimeapi.LinuxSandboxSecurityContext
	id := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	const strict = runtimeapi.SupplementalGroupsPolicy_Strict
	for name, tt := range map[string]struct {
		sc   *sc
		want Identity
	}{
		"all defaults":                     {nil, Identity{}},
		"a user and supplemental groups":   {&sc{RunAsUser: id(7), SupplementalGroups: []int64{8}}, Identity{User: "7", Groups: []string{"8"}}},
		"a user and a group":               {&sc{RunAsUser: id(7), RunAsGroup: id(8)}, Identity{User: "7:8"}},
		"a group alone":                    {&sc{RunAsGroup: id(8)}, Identity{}},
		"a user without the image's group": {&sc{RunAsUser: id(7), SupplementalGroupsPolicy: strict}, Identity{User: "7:0"}},
	} {
		got, err := ForSandbox(tt.sc)
		if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
	for name, sc := range map[string]*sc{
		"a UID out of range":                {RunAsUser: id(1 << 32)},
		"a GID out of range":                {RunAsGroup: id(-1)},
		"a supplemental group out of range": {SupplementalGroups: []int64{1, 1 << 31}},
		"an unknown policy":                 {SupplementalGroupsPolicy: 9},
	} {
		if got, err := ForSandbox(sc); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %+v, %v; want an invalid argument", name, got, err)
		}
	}
}
