package todocker

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine"
)

// A SecurityContext is what those of sandboxes and containers have in common.
type SecurityContext interface {
	GetSeccomp() *runtimeapi.SecurityProfile
	GetSeccompProfilePath() string
	GetApparmor() *runtimeapi.SecurityProfile
	GetSelinuxOptions() *runtimeapi.SELinuxOption
}

// Words of the deprecated seccomp_profile_path and apparmor_profile.
const (
	wordDefault    = "runtime/default"
	wordDocker     = "docker/default"
	wordUnconfined = "unconfined"
	wordLocalhost  = "localhost/"
)

// profile reads a security profile in its new form or, if there is none, in
// its deprecated one; nil stands for none at all.
func profile(p *runtimeapi.SecurityProfile, old string) (*runtimeapi.SecurityProfile, error) {
	if p != nil {
		kind, local := p.GetProfileType(), p.GetProfileType() == runtimeapi.SecurityProfile_Localhost
		if _, known := runtimeapi.SecurityProfile_ProfileType_name[int32(kind)]; !known {
			return nil, invalid("security profile of type %v", kind)
		}
		if local != (p.GetLocalhostRef() != "") {
			return nil, invalid("security profile of type %v with localhost_ref %q", kind, p.GetLocalhostRef())
		}
		return p, nil
	}
	ref, local := strings.CutPrefix(old, wordLocalhost)
	switch {
	case old == "":
		return nil, nil
	case old == wordDefault, old == wordDocker:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case old == wordUnconfined:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	case local && ref != "":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}, nil
	default:
		return nil, invalid("security profile %q", old)
	}
}

// SeccompFile returns the file whose content goes into the order, or "" if
// none does.
func SeccompFile(sc SecurityContext, privileged bool) (string, error) {
	p, err := profile(sc.GetSeccomp(), sc.GetSeccompProfilePath())
	if err != nil || privileged || p.GetProfileType() != runtimeapi.SecurityProfile_Localhost {
		return "", err
	}
	if !strings.HasPrefix(p.GetLocalhostRef(), "/") {
		return "", invalid("seccomp profile %q is not an absolute path", p.GetLocalhostRef())
	}
	return p.GetLocalhostRef(), nil
}

// AppArmorProfile returns the name of the profile of the node that sc asks
// for, or "" if it asks for none.
func AppArmorProfile(sc SecurityContext) (string, error) {
	p, err := appArmor(sc)
	return p.GetLocalhostRef(), err
}

// stackSeparator joins the names of profiles that are to confine a process together.
const stackSeparator = "//&"

// AppArmorStack returns the names of the profiles that a name, which may be a stack
// of several, consists of.
func AppArmorStack(name string) []string { return strings.Split(name, stackSeparator) }

// appArmor is profile for AppArmor. The name is without the prefix localhost/ that
// critest and old kubelets write in the new form too.
func appArmor(sc SecurityContext) (*runtimeapi.SecurityProfile, error) {
	var old string
	if withPath, ok := sc.(interface{ GetApparmorProfile() string }); ok {
		old = withPath.GetApparmorProfile()
	}
	p, err := profile(sc.GetApparmor(), old)
	if err != nil || p.GetProfileType() != runtimeapi.SecurityProfile_Localhost {
		return p, err
	}
	name := strings.TrimPrefix(p.GetLocalhostRef(), wordLocalhost)
	for _, part := range AppArmorStack(name) {
		if err := checkAppArmorName(part); err != nil {
			return nil, invalid("AppArmor profile %q: %v", p.GetLocalhostRef(), err)
		}
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: name}, nil
}

// checkAppArmorName refuses names that the kernel does not read as the name of one
// profile of the node. To it "unconfined" is the absence of a profile, a name that begins
// with a colon is in another namespace (":ns:unconfined", and ":ns" alone is the same), "&"
// and "=" at the beginning are operators, and blanks are skipped before all of these
// (security/apparmor/label.c aa_label_strn_parse, lib.c aa_splitn_fqname). Type Localhost is
// allowed where Unconfined is forbidden (Pod Security Standards), so none of them may pass.
func checkAppArmorName(name string) error {
	switch {
	case name == "":
		return errors.New("has no name")
	case strings.TrimSpace(name) != name, strings.ContainsFunc(name, unicode.IsControl):
		return errors.New("blanks at the beginning or end and control characters are not allowed")
	case name == wordUnconfined:
		return errors.New("unconfined is no profile that is loaded on the node: ask for it with type Unconfined")
	case strings.ContainsAny(name[:1], ":&="):
		return fmt.Errorf("must be loaded on the node itself and not begin with %q", name[:1])
	}
	return nil
}

// securityOptions returns the options for the seccomp and AppArmor profiles and the
// SELinux label of a container. content is that of a seccomp file, if one is
// asked for, and podLabel the label of the pod it is in, if it is in one.
//
// A profile that the Engine cannot enforce is refused, with one exception: see
// sandboxSeccomp.
func securityOptions(sc SecurityContext, privileged bool, can engine.Features, content, podLabel string) ([]string, error) {
	p, err := profile(sc.GetSeccomp(), sc.GetSeccompProfilePath())
	if err != nil {
		return nil, err
	}
	options, err := seccompOptions(p, privileged, can, content)
	if err != nil {
		return nil, err
	}

	p, err = appArmor(sc)
	switch {
	case err != nil:
		return nil, err
	case privileged && p == nil, p != nil && p.GetProfileType() == runtimeapi.SecurityProfile_Unconfined:
		options = append(options, "apparmor=unconfined")
	case p.GetProfileType() == runtimeapi.SecurityProfile_Localhost && !can.AppArmor:
		return nil, invalid("AppArmor profile %q asked for, but Docker has no AppArmor on this node", p.GetLocalhostRef())
	case p.GetProfileType() == runtimeapi.SecurityProfile_Localhost:
		options = append(options, "apparmor="+p.GetLocalhostRef())
	case p != nil && !can.AppArmor && !privileged:
		// A kubelet only sends this for pods that ask for it. To privileged containers
		// AppArmor is not applied (LinuxContainerSecurityContext.privileged in the CRI).
		return nil, failed("AppArmor profile RuntimeDefault asked for, but Docker has no AppArmor on this node")
	}

	return append(options, labelOptions(sc.GetSelinuxOptions(), podLabel)...), nil
}

// seccompOptions returns the options for a seccomp profile, nil for none.
func seccompOptions(p *runtimeapi.SecurityProfile, privileged bool, can engine.Features, content string) ([]string, error) {
	switch {
	case privileged, p == nil, p.GetProfileType() == runtimeapi.SecurityProfile_Unconfined:
		// The CRI has it that no profile means no filter. Said of privileged
		// containers too, for Engines from 23 on would filter those.
		return []string{"seccomp=unconfined"}, nil
	case can.SeccompProfile == "":
		return nil, failed("seccomp profile %v asked for, but Docker has no seccomp on this node (docker info, Security Options)", p.GetProfileType())
	case p.GetProfileType() == runtimeapi.SecurityProfile_Localhost:
		return []string{"seccomp=" + content}, nil
	case can.SeccompBuiltin:
		return []string{"seccomp=builtin"}, nil
	case can.SeccompProfile == wordUnconfined:
		// Before API 1.42 the default of daemon.json is all that there is.
		return nil, failed("seccomp profile RuntimeDefault asked for, but seccomp-profile is unconfined in daemon.json, and this Docker (before 23) cannot be asked for its built-in one")
	default:
		return nil, nil
	}
}

// sandboxSeccomp returns the security context of a sandbox without RuntimeDefault where
// the Engine cannot enforce that. The kubelet asks for RuntimeDefault for every sandbox,
// whatever the pod says (generatePodSandboxLinuxConfig, since 1.19); it is about the pause process
// alone, which runs nothing of the pod's. Containers get what they ask for or are refused.
func sandboxSeccomp(sc SecurityContext, can engine.Features) SecurityContext {
	p, err := profile(sc.GetSeccomp(), sc.GetSeccompProfilePath())
	if err != nil || p == nil || p.GetProfileType() != runtimeapi.SecurityProfile_RuntimeDefault {
		return sc
	}
	if _, err := seccompOptions(p, false, can, ""); err == nil {
		return sc
	}
	return unfiltered{sc}
}

// unfiltered is a security context with the seccomp profile Unconfined.
type unfiltered struct{ SecurityContext }

func (unfiltered) GetSeccomp() *runtimeapi.SecurityProfile {
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
}

// labelOptions says which SELinux label a container has. One that asks for none
// gets that of its pod from the Engine, with the pod's IPC namespace.
func labelOptions(se *runtimeapi.SELinuxOption, podLabel string) (options []string) {
	for _, part := range []struct{ key, value string }{
		{"user", se.GetUser()}, {"role", se.GetRole()}, {"type", se.GetType()}, {"level", se.GetLevel()},
	} {
		if part.value != "" {
			options = append(options, "label="+part.key+":"+part.value)
		}
	}
	if len(options) > 0 && se.GetLevel() == "" {
		// The Engine would make up a level, and the container could not read
		// what the others of its pod have written.
		const parts = 4 // user:role:type:level, and the level may have colons
		if label := strings.SplitN(podLabel, ":", parts); len(label) == parts {
			options = append(options, "label=level:"+label[parts-1])
		}
	}
	return options
}

// capabilities settles add and drop before the Engine does, for it and the CRI
// differ where a capability is in both: here the drop wins.
func capabilities(c *runtimeapi.Capability) (add, drop []string, err error) {
	if len(c.GetAddAmbientCapabilities()) > 0 {
		return nil, nil, invalid("ambient capabilities cannot be given by Docker")
	}
	const all = "ALL"
	add, drop = capNames(c.GetAddCapabilities()), capNames(c.GetDropCapabilities())
	add = slices.DeleteFunc(add, func(name string) bool {
		return name != all && slices.Contains(drop, name)
	})
	if slices.Contains(add, all) && slices.Contains(drop, all) {
		add = slices.DeleteFunc(add, func(name string) bool { return name == all })
	}
	return add, drop, nil
}

// capNames returns names as the Engine writes them: CAP_X, or ALL.
func capNames(names []string) []string {
	var out []string
	for _, name := range names {
		name = strings.ToUpper(name)
		if name != "ALL" && !strings.HasPrefix(name, "CAP_") {
			name = "CAP_" + name
		}
		out = append(out, name)
	}
	return out
}

// pauseUser returns the user of the pause process as the Engine takes it.
func pauseUser(sc *runtimeapi.LinuxSandboxSecurityContext) (string, error) {
	if err := groupsPolicy(sc.GetSupplementalGroupsPolicy()); err != nil {
		return "", err
	}
	if err := checkIDs(sc); err != nil {
		return "", err
	}
	uid, gid := sc.GetRunAsUser(), sc.GetRunAsGroup()
	switch {
	case uid == nil:
		// The API allows run_as_group alone for a pod, and policies set it so. The pause
		// process keeps the user and group of its image then: it opens no files.
		// For containers the CRI has it refused (identify).
		return "", nil
	case gid == nil && sc.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Strict:
		// With a group that is named, the Engine adds none of the image's.
		return strconv.FormatInt(uid.GetValue(), 10) + ":0", nil
	case gid == nil:
		return strconv.FormatInt(uid.GetValue(), 10), nil
	default:
		return strconv.FormatInt(uid.GetValue(), 10) + ":" + strconv.FormatInt(gid.GetValue(), 10), nil
	}
}

// groupsPolicy refuses a policy that there is not.
func groupsPolicy(p runtimeapi.SupplementalGroupsPolicy) error {
	if _, known := runtimeapi.SupplementalGroupsPolicy_name[int32(p)]; !known {
		return invalid("supplemental_groups_policy %v", p)
	}
	return nil
}

// errGroupAlone is about a security context that the CRI does not allow.
var errGroupAlone = invalid("run_as_group without run_as_user or run_as_username")

func groups(ids []int64) []string {
	var out []string
	for _, id := range ids {
		out = append(out, strconv.FormatInt(id, 10))
	}
	return out
}
