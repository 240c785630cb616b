package todocker

import (
	"math/rand/v2"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
	"berth/core/identity"
	"berth/core/names"
	"berth/core/protofuzz"
)

// FuzzTranslate translates arbitrary messages. Each error has the kind of an invalid request or
// of a missing feature of the node.
func FuzzTranslate(f *testing.F) {
	message, err := proto.Marshal(&runtimeapi.CreateContainerRequest{Config: params(old).Config, SandboxConfig: pod()})
	if err != nil {
		f.Fatal(err)
	}
	for seed := range uint64(200) {
		f.Add(seed, message[:len(message)*int(seed)/200])
	}
	f.Fuzz(func(t *testing.T, seed uint64, wire []byte) {
		r := &runtimeapi.CreateContainerRequest{}
		random := rand.New(rand.NewPCG(seed, 0))
		if proto.Unmarshal(wire, r) != nil || seed%2 == 0 {
			r.Reset()
			protofuzz.Fill(r, random, "/var/lib/docker", "/dev/null", "files:1", "runc")
			// Without this most messages would fail at these fields.
			if r.GetConfig() != nil && seed%4 == 0 {
				r.Config.Metadata, r.Config.Windows, r.Config.Command, r.Config.LogPath = &runtimeapi.ContainerMetadata{Name: "c"}, nil, []string{"c"}, ""
			}
		}
		update := &runtimeapi.UpdateContainerResourcesRequest{}
		protofuzz.Fill(update, random)
		for _, features := range []engine.Features{{}, old, recent, kernel512} {
			p := params(features)
			p.Pod, p.Config, p.Premounts = r.GetSandboxConfig(), r.GetConfig(), fakePremounts{}
			p.PasswdFiles = identity.PasswdFiles{Passwd: wire, Group: wire}
			_, err := Container(p)
			check(t, err)
			_, err = Sandbox(SandboxParams{Pod: r.GetSandboxConfig(), Features: features, Bridge: seed%2 == 0})
			check(t, err)
			check(t, CheckUpdate(update))
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
		t.Errorf("%v is of neither kind", err)
	}
}

type fakePremounts struct{}

func (fakePremounts) Path(name names.Premount, _ int) string { return "/premounts/" + name.String() }
