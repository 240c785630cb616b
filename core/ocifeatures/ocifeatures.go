// Package ocifeatures reads what an OCI runtime reports about itself, the features structure of the OCI runtime specification
// (features.md). Docker 25 and newer passes it on. Runtimes ignore fields of config.json that they do not know, so that what is not
// reported must not be relied on.
package ocifeatures

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// Features is what one runtime reports. The zero value is that of one that reports nothing.
type Features struct {
	Version           string // newest version of the specification that it knows
	RecursiveReadOnly bool   // the mount option rro
	NetDevices        bool   // linux.netDevices
	Rdt               bool   // linux.intelRdt
	RdtSchemata       bool   // linux.intelRdt.schemata
	RdtMonitoring     bool   // linux.intelRdt.enableMonitoring
	memoryPolicies    string // modes and flags of linux.memoryPolicy, each between blanks
}

// Parse reads the status of a runtime in Docker's GET /info.
func Parse(status map[string]string) Features {
	var f struct {
		OCIVersionMax string   `json:"ociVersionMax"`
		MountOptions  []string `json:"mountOptions"`
		Linux         struct {
			IntelRdt     struct{ Enabled, Schemata, Monitoring bool } `json:"intelRdt"`
			NetDevices   struct{ Enabled bool }                       `json:"netDevices"`
			MemoryPolicy struct{ Modes, Flags []string }              `json:"memoryPolicy"`
		} `json:"linux"`
	}
	if json.Unmarshal([]byte(status["org.opencontainers.runtime-spec.features"]), &f) != nil {
		return Features{}
	}
	out := Features{
		Version: f.OCIVersionMax, RecursiveReadOnly: slices.Contains(f.MountOptions, "rro"), NetDevices: f.Linux.NetDevices.Enabled,
		Rdt: f.Linux.IntelRdt.Enabled, RdtSchemata: f.Linux.IntelRdt.Schemata, RdtMonitoring: f.Linux.IntelRdt.Monitoring,
	}
	if policies := slices.Concat(f.Linux.MemoryPolicy.Modes, f.Linux.MemoryPolicy.Flags); len(policies) > 0 {
		out.memoryPolicies = " " + strings.Join(policies, " ") + " "
	}
	return out
}

// AtLeast reports whether the runtime knows a version of the specification, like 1, 2 for 1.2.0.
func (f Features) AtLeast(major, minor int) bool {
	first, rest, _ := strings.Cut(f.Version, ".")
	second, _, _ := strings.Cut(rest, ".")
	a, errA := strconv.Atoi(first)
	b, errB := strconv.Atoi(second)
	return errA == nil && errB == nil && (a > major || a == major && b >= minor)
}

// MemoryPolicy reports whether the runtime has a mode and flags of linux.memoryPolicy.
func (f Features) MemoryPolicy(names ...string) bool {
	return !slices.ContainsFunc(names, func(name string) bool { return !strings.Contains(f.memoryPolicies, " "+name+" ") })
}
