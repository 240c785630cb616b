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
	bare := "seccomp=unconfined" // what is said where nothing is asked for
	for name, tt := range map[string]struct {
		can        engine.Features
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

// Pod Security lets type Localhost through where Unconfined is forbidden: whatever the kernel
// would read as "no profile", or as an operator, is refused.
func TestAppArmorLocalhostCannotBeUnconfined(t *testing.T) {
	for _, ref := range []string{
		"unconfined", "localhost/unconfined", " unconfined", "unconfined ", "\tunconfined", "unconfined\n", "p\n", "p\x00", "\u00a0p",
		":ns:unconfined", ":ns://unconfined", ":ns", ":ns:", "::unconfined", ":ns:p", ":root:unconfined", "localhost/:ns:unconfined",
		"p//&unconfined", "unconfined//&p", "p//& unconfined", "p//&:ns:unconfined", "&unconfined", "&p", "&:ns:unconfined", "= p",
		"p//&", "//&p", "//&", "localhost/", " ", "localhost/ unconfined", "p//&q//&unconfined",
	} {
		for form, sc := range map[string]SecurityContext{
			"container": &runtimeapi.LinuxContainerSecurityContext{Apparmor: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}},
			"old form":  &runtimeapi.LinuxContainerSecurityContext{ApparmorProfile: "localhost/" + ref},
			"sandbox":   &runtimeapi.LinuxSandboxSecurityContext{Apparmor: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}},
		} {
			for _, privileged := range []bool{false, true} {
				if got, err := securityOptions(sc, privileged, recent, "", ""); !errdefs.IsInvalidArgument(err) {
					t.Errorf("%s, %q, privileged %v: %q, %v; want an invalid argument", form, ref, privileged, got, err)
				}
			}
			if got, err := AppArmorProfile(sc); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s, %q is looked up as %q, %v; want an invalid argument", form, ref, got, err)
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

// A profile that Docker would leave out with a warning, or in silence.
func TestProfilesThatDockerCannotEnforceAreRefused(t *testing.T) {
	asks := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	file := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/p.json"}
	for name, tt := range map[string]struct {
		can        engine.Features
		privileged bool
		in         *runtimeapi.LinuxContainerSecurityContext
		refused    bool
	}{
		"seccomp, Docker has none":                         {engine.Features{}, false, &runtimeapi.LinuxContainerSecurityContext{Seccomp: asks}, true},
		"seccomp, Docker has none, old word":               {engine.Features{}, false, &runtimeapi.LinuxContainerSecurityContext{SeccompProfilePath: "docker/default"}, true},
		"seccomp, Docker has none, new API":                {engine.Features{SeccompBuiltin: true}, false, &runtimeapi.LinuxContainerSecurityContext{Seccomp: asks}, true},
		"seccomp, Docker has none, a file":                 {engine.Features{}, false, &runtimeapi.LinuxContainerSecurityContext{Seccomp: file}, true},
		"seccomp, the default of daemon.json is no filter": {engine.Features{SeccompProfile: "unconfined"}, false, &runtimeapi.LinuxContainerSecurityContext{Seccomp: asks}, true},
		"seccomp, the same where builtin can be asked for": {engine.Features{SeccompProfile: "unconfined", SeccompBuiltin: true}, false, &runtimeapi.LinuxContainerSecurityContext{Seccomp: asks}, false},
		"seccomp, nothing asked for":                       {engine.Features{}, false, nil, false},
		"seccomp, privileged":                              {engine.Features{}, true, &runtimeapi.LinuxContainerSecurityContext{Seccomp: asks}, false},
		"AppArmor, Docker has none":                        {old, false, &runtimeapi.LinuxContainerSecurityContext{Apparmor: asks}, true},
		"AppArmor, Docker has none, old word":              {old, false, &runtimeapi.LinuxContainerSecurityContext{ApparmorProfile: "runtime/default"}, true},
		"AppArmor, nothing asked for":                      {old, false, nil, false},
		"AppArmor, privileged":                             {old, true, &runtimeapi.LinuxContainerSecurityContext{Apparmor: asks}, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := securityOptions(tt.in, tt.privileged, tt.can, "{}", "")
			if tt.refused != errdefs.IsFailedPrecondition(err) || !tt.refused && err != nil {
				t.Errorf("%q, %v; refused should be %v", got, err, tt.refused)
			}
		})
	}
}
