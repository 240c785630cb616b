package todocker

import (
	"math/rand/v2"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/names"
	"berth/core/scramble"
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
			scramble.Fill(r, random, "/var/lib/docker", "/dev/null", "files:1", "runc")
			// Most of what is scrambled would not come further than this.
			if r.GetConfig() != nil && seed%4 == 0 {
				r.Config.Metadata, r.Config.Windows, r.Config.Command, r.Config.LogPath = &runtimeapi.ContainerMetadata{Name: "c"}, nil, []string{"c"}, ""
			}
		}
		update := &runtimeapi.UpdateContainerResourcesRequest{}
		scramble.Fill(update, random)
		for _, can := range []engine.Record{{}, old, recent, staging} {
			ask := asked(can)
			ask.Pod, ask.Config, ask.Stages = r.GetSandboxConfig(), r.GetConfig(), stages{}
			ask.Accounts = Accounts{Passwd: wire, Group: wire}
			_, err := Container(ask)
			check(t, err)
			_, err = Sandbox(SandboxAsk{Pod: r.GetSandboxConfig(), Can: can, Bridge: seed%2 == 0})
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

func (stages) Path(name names.Stage, _ int) string { return "/stage/" + name.String() }
