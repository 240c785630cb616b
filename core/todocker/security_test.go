package todocker

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
)

func TestSecurityOptions(t *testing.T) {
	const (
		runtimeDefault = runtimeapi.SecurityProfile_RuntimeDefault
		unconfined     = runtimeapi.SecurityProfile_Unconfined
		localhost      = runtimeapi.SecurityProfile_Localhost
	)
	profile := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	}
	bare := "seccomp=unconfined" // what is said where nothing is asked for
	for name, tt := range map[string]struct {
		can        engine.Record
		privileged bool
		in         *runtimeapi.LinuxContainerSecurityContext
		want       []string
	}{
		"nothing":                     {old, false, nil, []string{bare}},
		"seccomp, the default":        {recent, false, (&runtimeapi.LinuxContainerSecurityContext{Seccomp: profile(runtimeDefault, "")}), []string{"seccomp=builtin"}},
		"seccomp, the default, 20.10": {old, false, (&runtimeapi.LinuxContainerSecurityContext{Seccomp: profile(runtimeDefault, "")}), nil},
		"seccomp, unconfined":         {recent, false, (&runtimeapi.LinuxContainerSecurityContext{Seccomp: profile(unconfined, "")}), []string{bare}},
		"seccomp, a file":             {recent, false, (&runtimeapi.LinuxContainerSecurityContext{Seccomp: profile(localhost, "/p.json")}), []string{"seccomp={content}"}},
		"seccomp, privileged":         {recent, true, (&runtimeapi.LinuxContainerSecurityContext{Seccomp: profile(localhost, "/p.json")}), []string{bare, "apparmor=unconfined"}},
		"seccomp, old word":           {recent, false, (&runtimeapi.LinuxContainerSecurityContext{SeccompProfilePath: "runtime/default"}), []string{"seccomp=builtin"}},
		"seccomp, old file":           {recent, false, (&runtimeapi.LinuxContainerSecurityContext{SeccompProfilePath: "localhost//p.json"}), []string{"seccomp={content}"}},
		"seccomp, new before old":     {recent, false, (&runtimeapi.LinuxContainerSecurityContext{SeccompProfilePath: "runtime/default", Seccomp: profile(unconfined, "")}), []string{bare}},
		"AppArmor, the default":       {recent, false, (&runtimeapi.LinuxContainerSecurityContext{Apparmor: profile(runtimeDefault, "")}), []string{bare}},
		"AppArmor, unconfined":        {recent, false, (&runtimeapi.LinuxContainerSecurityContext{Apparmor: profile(unconfined, "")}), []string{bare, "apparmor=unconfined"}},
		"AppArmor, a profile":         {recent, false, (&runtimeapi.LinuxContainerSecurityContext{Apparmor: profile(localhost, "p")}), []string{bare, "apparmor=p"}},
		"AppArmor, old word":          {recent, false, (&runtimeapi.LinuxContainerSecurityContext{ApparmorProfile: "localhost/p"}), []string{bare, "apparmor=p"}},
		"AppArmor, both ways at once": {recent, false, (&runtimeapi.LinuxContainerSecurityContext{Apparmor: profile(localhost, "localhost/p")}), []string{bare, "apparmor=p"}},
		"AppArmor, new before old":    {recent, false, (&runtimeapi.LinuxContainerSecurityContext{ApparmorProfile: "localhost/p", Apparmor: profile(unconfined, "")}), []string{bare, "apparmor=unconfined"}},
		"SELinux, all of a label": {old, false, (&runtimeapi.LinuxContainerSecurityContext{SelinuxOptions: &runtimeapi.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "s0:c5"}}),
			[]string{bare, "label=user:u", "label=role:r", "label=type:t", "label=level:s0:c5"}},
		"SELinux, the pod's level for what has none": {old, false, (&runtimeapi.LinuxContainerSecurityContext{SelinuxOptions: &runtimeapi.SELinuxOption{Type: "t"}}),
			[]string{bare, "label=type:t", "label=level:s0:c1,c2"}},
		"SELinux, nothing of a label": {old, false, (&runtimeapi.LinuxContainerSecurityContext{SelinuxOptions: &runtimeapi.SELinuxOption{}}), []string{bare}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := securityOptions(tt.in, tt.privileged, tt.can, "{content}", "system_u:system_r:container_t:s0:c1,c2")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if got := labelOptions(&runtimeapi.SELinuxOption{Type: "t"}, ""); len(got) != 1 {
		t.Errorf("without SELinux: %q", got)
	}
}
