package ocifeatures

import "testing"

func TestParse(t *testing.T) {
	f := Parse(map[string]string{"org.opencontainers.runtime-spec.features": `{
		"ociVersionMin": "1.0.0", "ociVersionMax": "1.3.0", "mountOptions": ["ro", "rro"],
		"linux": {"intelRdt": {"enabled": true, "schemata": true}, "netDevices": {"enabled": true}, "memoryPolicy": {"modes": ["MPOL_BIND"], "flags": ["MPOL_F_STATIC_NODES"]}}}`})
	if !f.RecursiveReadOnly || !f.Rdt || !f.RdtSchemata || f.RdtMonitoring || !f.NetDevices || !f.AtLeast(1, 3) || !f.AtLeast(1, 2) || f.AtLeast(1, 4) || f.AtLeast(2, 0) {
		t.Errorf("%+v", f)
	}
	if !f.MemoryPolicy("MPOL_BIND", "MPOL_F_STATIC_NODES") || f.MemoryPolicy("MPOL_BIND", "MPOL_F_RELATIVE_NODES") || f.MemoryPolicy("MPOL") {
		t.Error("memory policies are not those of the runtime")
	}
	for _, text := range []string{"", "{", "[]", `{"ociVersionMax":"x.y"}`} {
		if f := Parse(map[string]string{"org.opencontainers.runtime-spec.features": text}); f.AtLeast(1, 0) || f.Rdt || f.MemoryPolicy("MPOL_BIND") {
			t.Errorf("%q: %+v", text, f)
		}
	}
}
