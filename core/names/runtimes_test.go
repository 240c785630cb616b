package names

import "testing"

func TestNamesOfOCIRuntimes(t *testing.T) {
	for below, want := range map[string]string{"runc": "berth", "io.containerd.runc.v2": "berth", "crun": "berth-crun", "nvidia": "berth-nvidia"} {
		if got := OCIRuntime(below); got != want {
			t.Errorf("the runtime that runs %s is %s, want %s", below, got, want)
		}
	}
	for name, want := range map[string]string{"berth": "runc", "berth-crun": "crun", "runc": "", "berthold": "", "": "", "berth-": ""} {
		if got := BelowOCIRuntime(name); got != want {
			t.Errorf("%q runs %q, want %q", name, got, want)
		}
	}
}

func TestInstructionsDir(t *testing.T) {
	for name, c := range map[string]struct {
		program string
		args    []string
		want    string
	}{
		"berth's":         {"/usr/lib/berth/berth-oci", []string{"--berth-instructions=/run/berth/oci", "--berth-runtime=runc"}, "/run/berth/oci"},
		"the default":     {"/usr/lib/berth/berth-oci", []string{"--berth-runtime=runc"}, DefaultInstructionsDir},
		"called by name":  {"/usr/lib/berth/berth-oci-crun", nil, DefaultInstructionsDir},
		"another program": {"/usr/bin/runc", []string{"--berth-instructions=/run/berth/oci"}, ""},
		"none":            {"", nil, ""},
	} {
		if got := InstructionsDir(c.program, c.args); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
