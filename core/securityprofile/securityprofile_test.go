package securityprofile

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const profile = `{"defaultAction": "SCMP_ACT_ERRNO"}`

func TestLoadRequiresLoadedProfiles(t *testing.T) {
	dir := t.TempDir()
	list, seccomp := filepath.Join(dir, "profiles"), filepath.Join(dir, "seccomp.json")
	for path, text := range map[string]string{
		list:    "first one (enforce)\ncri-deny (complain)\nouter//inner (enforce)\n",
		seccomp: profile,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	local := func(ref string) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}
	}
	for name, tt := range map[string]struct {
		apparmor string
		list     string
		want     bool
	}{
		"loaded":                        {"cri-deny", list, true},
		"a name with a space":           {"first one", list, true},
		"a child profile":               {"outer//inner", list, true},
		"a stack":                       {"cri-deny//&first one", list, true},
		"not loaded":                    {"other", list, false},
		"the end of another name":       {"deny", list, false},
		"the beginning of another name": {"cri", list, false},
		"half a stack":                  {"cri-deny//&other", list, false},
		"Docker's own":                  {"docker-default", list, true},
		"no list":                       {"other", filepath.Join(dir, "none"), true},
	} {
		for form, sc := range map[string]*runtimeapi.LinuxContainerSecurityContext{
			"":             {Apparmor: local(tt.apparmor), Seccomp: local(seccomp)},
			", deprecated": {ApparmorProfile: "localhost/" + tt.apparmor, Seccomp: local(seccomp)},
		} {
			t.Run(name+form, func(t *testing.T) {
				got, err := load(sc, false, tt.list)
				if (err == nil) != tt.want || err == nil && got != profile || err != nil && !errdefs.IsFailedPrecondition(err) {
					t.Errorf("got %q, %v", got, err)
				}
			})
		}
	}
	if _, err := Load(&runtimeapi.LinuxSandboxSecurityContext{Seccomp: local(filepath.Join(dir, "none"))}, false); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a missing seccomp profile: %v", err)
	}
	if got, err := Load(&runtimeapi.LinuxSandboxSecurityContext{}, false); got != "" || err != nil {
		t.Errorf("no profile: %q, %v", got, err)
	}
}

// Docker would use its default profile, or no filter at all, for these files.
func TestLoadRefusesFilesThatAreNotAProfile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "seccomp.json")
	sc := &runtimeapi.LinuxContainerSecurityContext{Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: file}}
	for name, tt := range map[string]struct {
		content string
		want    bool
	}{
		"a profile":                      {profile, true},
		"other case of a key":            {"\n" + `{"DefaultAction": "SCMP_ACT_LOG", "syscalls": []}` + "\n", true},
		"empty":                          {"", false},
		"white space":                    {"\n", false},
		"truncated":                      {profile[:len(profile)-1], false},
		"unconfined":                     {"unconfined", false},
		"unconfined as JSON":             {`"unconfined"`, false},
		"builtin":                        {"builtin", false},
		"null":                           {"null", false},
		"a list":                         {"[" + profile + "]", false},
		"an empty object":                {"{}", false},
		"no default action":              {`{"syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}`, false},
		"two profiles":                   {profile + profile, false},
		"an action that is not a string": {`{"defaultAction": 1}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(file, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := Load(sc, false)
			if tt.want && (err != nil || got != tt.content) || !tt.want && (got != "" || !errdefs.IsFailedPrecondition(err)) {
				t.Errorf("got %q, %v", got, err)
			}
			if got, err := Load(sc, true); got != "" || err != nil {
				t.Errorf("privileged: %q, %v", got, err)
			}
		})
	}
}
