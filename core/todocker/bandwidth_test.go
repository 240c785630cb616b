package todocker

import (
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/bandwidth"
)

func TestBandwidthMustBeAQuantityInRange(t *testing.T) {
	for text, want := range map[string]int64{
		"1k": 1000, "10M": 10e6, "1P": 1e15, "1.5G": 1.5e9, "1Ki": 1024, "10Mi": 10 << 20, "1000": 1000, "+5M": 5e6, ".5M": 500e3, "5.M": 5e6,
		"1e6": 1e6, "1E6": 1e6, "15e+2": 1500, "1000000e-3": 1000, "1000000m": 1000, "1000.5": 1001, "1000000000000000": 1e15, "0.000001E": 1e12,
		// Invalid.
		"": 0, " 10M": 0, "10M ": 0, "NaN": 0, "nan": 0, "Inf": 0, "+Inf": 0, "-Inf": 0, "infinity": 0, "1E": 0, "1Ei": 0, "2P": 0, "1Pi": 0, "999": 0, "0": 0,
		"-1": 0, "-10M": 0, "10Mbit": 0, "10mb": 0, "10 M": 0, "1K": 0, "0x10M": 0, "1_000k": 0, "10M\n": 0, "M": 0, ".": 0, "1e": 0, "1e6k": 0, "1e1000": 0,
		"1e999": 0, "1e-999": 0, "1/2": 0, "1000000000000001": 0, "999.9": 0, "ten": 0, "\u0661k": 0,
		"1000000000000000000000000000000000000000000000000000000000000000000": 0,
	} {
		for _, annotation := range []string{"kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"} {
			config := pod(func(p *runtimeapi.PodSandboxConfig) { p.Annotations = map[string]string{annotation: text} })
			got, err := PodBandwidth(config)
			if want == 0 {
				if !errdefs.IsInvalidArgument(err) {
					t.Errorf("%s %q: %v, %v; want an invalid argument", annotation, text, got, err)
				}
				if _, err := Sandbox(SandboxParams{Features: old, Pod: config}); !errdefs.IsInvalidArgument(err) {
					t.Errorf("%s %q: sandbox: %v, want an invalid argument", annotation, text, err)
				}
				continue
			}
			if err != nil || got.Ingress+got.Egress != want || (got.Ingress != 0) != (annotation == "kubernetes.io/ingress-bandwidth") {
				t.Errorf("%s %q: %v, %v; want %d", annotation, text, got, err, want)
			}
		}
	}
	host := pod(func(p *runtimeapi.PodSandboxConfig) {
		p.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "NaN"}
		p.Linux.SecurityContext.NamespaceOptions.Network = modeNode
	})
	if got, err := PodBandwidth(host); err != nil || got != (bandwidth.Limits{}) {
		t.Errorf("in the node's network: %v, %v", got, err)
	}
}
