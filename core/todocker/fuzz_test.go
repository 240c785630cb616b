package todocker

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/names"
	"berth/core/protofuzz"
)

// FuzzOrders has orders written from anything that can come over the wire. What
// cannot be ordered is the fault of who asks, or of the node.
func FuzzOrders(f *testing.F) {
	whole, err := proto.Marshal(&runtimeapi.CreateContainerRequest{Config: asked(old).Config, SandboxConfig: pod()})
	if err != nil {
		f.Fatal(err)
	}
	for seed := range uint64(200) {
		f.Add(seed, whole[:len(whole)*int(seed)/200])
	}
	f.Fuzz(func(t *testing.T, seed uint64, wire []byte) {
		r := &runtimeapi.CreateContainerRequest{}
		random := rand.New(rand.NewPCG(seed, 0))
		if proto.Unmarshal(wire, r) != nil || seed%2 == 0 {
			r.Reset()
			protofuzz.Fill(r, random, "/var/lib/docker", "/dev/null", "files:1", "runc")
			// Most of what is scrambled would not come further than this.
			if r.GetConfig() != nil && seed%4 == 0 {
				r.Config.Metadata, r.Config.Windows, r.Config.Command, r.Config.LogPath = &runtimeapi.ContainerMetadata{Name: "c"}, nil, []string{"c"}, ""
			}
		}
		update := &runtimeapi.UpdateContainerResourcesRequest{}
		protofuzz.Fill(update, random)
		for _, can := range []engine.Features{{}, old, recent, staging} {
			ask := asked(can)
			ask.Pod, ask.Config, ask.Stages = r.GetSandboxConfig(), r.GetConfig(), stages{}
			ask.Accounts = Accounts{Passwd: wire, Group: wire}
			_, err := Container(ask)
			check(t, err)
			_, err = Sandbox(SandboxParams{Pod: r.GetSandboxConfig(), Can: can, Bridge: seed%2 == 0})
			check(t, err)
			check(t, CheckUpdate(update))
			result, err := UpdateContainer(r.GetConfig().GetLinux().GetResources(), update.GetLinux(), can)
			check(t, err)
			if err == nil {
				_, err = Revert(r.GetConfig().GetLinux().GetResources(), result.Result, can, "0", "0")
				check(t, err)
			}
			_, err = AppArmorProfile(r.GetSandboxConfig().GetLinux().GetSecurityContext())
			check(t, err)
			_, err = SeccompFile(r.GetSandboxConfig().GetLinux().GetSecurityContext(), false)
			check(t, err)
			_, err = ResolvConf(r.GetSandboxConfig().GetDnsConfig(), wire)
			check(t, err)
			Hosts(Hostname(r.GetSandboxConfig(), "0123456789ab"), nil)
		}
	})
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errdefs.IsInvalidArgument(err) && !errdefs.IsFailedPrecondition(err) {
		t.Errorf("%v is nobody's fault", err)
	}
}

// stages are places that nothing is put in.
type stages struct{}

func (stages) Path(name names.Premount, _ int) string { return "/stage/" + name.String() }

// FuzzIdentify finds users and groups in whatever files an image brings. What is told
// to the kubelet is what Docker is told, in numbers that are in range.
func FuzzIdentify(f *testing.F) {
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
		who, err := identify(sc, user, Accounts{Passwd: passwd, Group: group})
		check(t, err)
		if err != nil {
			return
		}
		if want := fmt.Sprintf("%d:%d", who.told.GetUid(), who.told.GetGid()); who.user != want {
			t.Errorf("Docker is told %q, the kubelet %s", who.user, want)
		}
		for _, id := range append(who.told.GetSupplementalGroups(), who.told.GetUid(), who.told.GetGid()) {
			if !validID(id) {
				t.Errorf("%d is out of range", id)
			}
		}
		if strict && len(who.groups) != 1 {
			t.Errorf("Strict, and the groups are %v", who.groups)
		}
	})
}
