package todocker

import (
	"testing"

	"github.com/containerd/errdefs"
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
	bare := "seccomp=unconfined" // the options without any profile
	for name, tt := range map[string]struct {
		features   engine.Features
		privileged bool
		in         *runtimeapi.LinuxContainerSecurityContext
		want       []string
	}{
		"no profile":                        {old, false, nil, []string{bare}},
		"seccomp, the default":              {recent, false, (&runtimeapi.LinuxContainerSecurityContext{Seccomp: profile(runtimeDefault, "")}), []string{"seccomp=builtin"}},
		"seccomp, the default, 20.10":       {old, false, (&runtimeapi.LinuxContainerSecurityContext{Seccomp: profile(runtimeDefault, "")}), nil},
		"seccomp, unconfined":               {recent, false, (&runtimeapi.LinuxContainerSecurityContext{Seccomp: profile(unconfined, "")}), []string{bare}},
		"seccomp, a file":                   {recent, false, (&runtimeapi.LinuxContainerSecurityContext{Seccomp: profile(localhost, "/p.json")}), []string{"seccomp={content}"}},
		"seccomp, privileged":               {recent, true, (&runtimeapi.LinuxContainerSecurityContext{Seccomp: profile(localhost, "/p.json")}), []string{bare, "apparmor=unconfined"}},
		"seccomp, deprecated default":       {recent, false, (&runtimeapi.LinuxContainerSecurityContext{SeccompProfilePath: "runtime/default"}), []string{"seccomp=builtin"}},
		"seccomp, deprecated file":          {recent, false, (&runtimeapi.LinuxContainerSecurityContext{SeccompProfilePath: "localhost//p.json"}), []string{"seccomp={content}"}},
		"seccomp, both fields":              {recent, false, (&runtimeapi.LinuxContainerSecurityContext{SeccompProfilePath: "runtime/default", Seccomp: profile(unconfined, "")}), []string{bare}},
		"AppArmor, the default":             {recent, false, (&runtimeapi.LinuxContainerSecurityContext{Apparmor: profile(runtimeDefault, "")}), []string{bare}},
		"AppArmor, unconfined":              {recent, false, (&runtimeapi.LinuxContainerSecurityContext{Apparmor: profile(unconfined, "")}), []string{bare, "apparmor=unconfined"}},
		"AppArmor, a profile":               {recent, false, (&runtimeapi.LinuxContainerSecurityContext{Apparmor: profile(localhost, "p")}), []string{bare, "apparmor=p"}},
		"AppArmor, deprecated field":        {recent, false, (&runtimeapi.LinuxContainerSecurityContext{ApparmorProfile: "localhost/p"}), []string{bare, "apparmor=p"}},
		"AppArmor, prefix in the new field": {recent, false, (&runtimeapi.LinuxContainerSecurityContext{Apparmor: profile(localhost, "localhost/p")}), []string{bare, "apparmor=p"}},
		"AppArmor, both fields":             {recent, false, (&runtimeapi.LinuxContainerSecurityContext{ApparmorProfile: "localhost/p", Apparmor: profile(unconfined, "")}), []string{bare, "apparmor=unconfined"}},
		"SELinux, a complete label": {old, false, (&runtimeapi.LinuxContainerSecurityContext{SelinuxOptions: &runtimeapi.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "s0:c5"}}),
			[]string{bare, "label=user:u", "label=role:r", "label=type:t", "label=level:s0:c5"}},
		"SELinux, the level of the pod by default": {old, false, (&runtimeapi.LinuxContainerSecurityContext{SelinuxOptions: &runtimeapi.SELinuxOption{Type: "t"}}),
			[]string{bare, "label=type:t", "label=level:s0:c1,c2"}},
		"SELinux, an empty label": {old, false, (&runtimeapi.LinuxContainerSecurityContext{SelinuxOptions: &runtimeapi.SELinuxOption{}}), []string{bare}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := securityOptions(tt.in, tt.privileged, tt.features, "{content}", "system_u:system_r:container_t:s0:c1,c2")
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

// The Pod Security Standards allow type Localhost where they forbid Unconfined, so names that the
// kernel reads as "no profile", or as an operator, must be refused.
func TestAppArmorLocalhostCannotBeUnconfined(t *testing.T) {
	for _, ref := range []string{
		"unconfined", "localhost/unconfined", " unconfined", "unconfined ", "\tunconfined", "unconfined\n", "p\n", "p\x00", "\u00a0p",
		":ns:unconfined", ":ns://unconfined", ":ns", ":ns:", "::unconfined", ":ns:p", ":root:unconfined", "localhost/:ns:unconfined",
		"p//&unconfined", "unconfined//&p", "p//& unconfined", "p//&:ns:unconfined", "&unconfined", "&p", "&:ns:unconfined", "= p",
		"p//&", "//&p", "//&", "localhost/", " ", "localhost/ unconfined", "p//&q//&unconfined",
	} {
		for form, sc := range map[string]SecurityContext{
			"container":  &runtimeapi.LinuxContainerSecurityContext{Apparmor: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}},
			"deprecated": &runtimeapi.LinuxContainerSecurityContext{ApparmorProfile: "localhost/" + ref},
			"sandbox":    &runtimeapi.LinuxSandboxSecurityContext{Apparmor: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}},
		} {
			for _, privileged := range []bool{false, true} {
				if got, err := securityOptions(sc, privileged, recent, "", ""); !errdefs.IsInvalidArgument(err) {
					t.Errorf("%s, %q, privileged %v: %q, %v; want an invalid argument", form, ref, privileged, got, err)
				}
			}
			if got, err := AppArmorProfile(sc); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s, %q: profile %q, %v; want an invalid argument", form, ref, got, err)
			}
		}
	}
	for _, ref := range []string{"p", "localhost/p", "p//inner", "p//&q", "first one", "/usr/bin/p", "docker-default", "Unconfined", "unconfined_p"} {
		sc := &runtimeapi.LinuxContainerSecurityContext{Apparmor: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}}
		if _, err := securityOptions(sc, false, recent, "", ""); err != nil {
			t.Errorf("%q: %v", ref, err)
		}
	}
}

// Docker would start these containers without the profile, with a warning or silently.
func TestProfilesThatDockerCannotApplyAreRefused(t *testing.T) {
	runtimeDefault := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	file := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/p.json"}
	for name, tt := range map[string]struct {
		features   engine.Features
		privileged bool
		in         *runtimeapi.LinuxContainerSecurityContext
		refused    bool
	}{
		"seccomp, not supported":                                {engine.Features{}, false, &runtimeapi.LinuxContainerSecurityContext{Seccomp: runtimeDefault}, true},
		"seccomp, not supported, deprecated field":              {engine.Features{}, false, &runtimeapi.LinuxContainerSecurityContext{SeccompProfilePath: "docker/default"}, true},
		"seccomp, not supported, new API":                       {engine.Features{SeccompBuiltin: true}, false, &runtimeapi.LinuxContainerSecurityContext{Seccomp: runtimeDefault}, true},
		"seccomp, not supported, a file":                        {engine.Features{}, false, &runtimeapi.LinuxContainerSecurityContext{Seccomp: file}, true},
		"seccomp, unconfined in daemon.json":                    {engine.Features{SeccompProfile: "unconfined"}, false, &runtimeapi.LinuxContainerSecurityContext{Seccomp: runtimeDefault}, true},
		"seccomp, unconfined in daemon.json, builtin available": {engine.Features{SeccompProfile: "unconfined", SeccompBuiltin: true}, false, &runtimeapi.LinuxContainerSecurityContext{Seccomp: runtimeDefault}, false},
		"seccomp, no profile":                                   {engine.Features{}, false, nil, false},
		"seccomp, privileged":                                   {engine.Features{}, true, &runtimeapi.LinuxContainerSecurityContext{Seccomp: runtimeDefault}, false},
		"AppArmor, not supported":                               {old, false, &runtimeapi.LinuxContainerSecurityContext{Apparmor: runtimeDefault}, true},
		"AppArmor, not supported, deprecated field":             {old, false, &runtimeapi.LinuxContainerSecurityContext{ApparmorProfile: "runtime/default"}, true},
		"AppArmor, not supported, a profile":                    {old, false, &runtimeapi.LinuxContainerSecurityContext{Apparmor: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "p"}}, true},
		"AppArmor, no profile":                                  {old, false, nil, false},
		"AppArmor, privileged":                                  {old, true, &runtimeapi.LinuxContainerSecurityContext{Apparmor: runtimeDefault}, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := securityOptions(tt.in, tt.privileged, tt.features, "{}", "")
			if tt.refused != errdefs.IsFailedPrecondition(err) || !tt.refused && err != nil {
				t.Errorf("%q, %v; refused should be %v", got, err, tt.refused)
			}
		})
	}
}
