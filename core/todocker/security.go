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

// A SecurityContext is what the security contexts of sandboxes and containers have in common.
type SecurityContext interface {
	GetSeccomp() *runtimeapi.SecurityProfile
	GetSeccompProfilePath() string
	GetApparmor() *runtimeapi.SecurityProfile
	GetSelinuxOptions() *runtimeapi.SELinuxOption
}

// Values of the deprecated fields seccomp_profile_path and apparmor_profile.
const (
	deprecatedDefault       = "runtime/default"
	deprecatedDockerDefault = "docker/default"
	deprecatedUnconfined    = "unconfined"
	deprecatedLocalhost     = "localhost/" // and a name or path
)

// profile returns a security profile: p or, if that is nil, the value of the deprecated
// field. It is nil if neither is set.
func profile(p *runtimeapi.SecurityProfile, deprecated string) (*runtimeapi.SecurityProfile, error) {
	if p != nil {
		kind, local := p.GetProfileType(), p.GetProfileType() == runtimeapi.SecurityProfile_Localhost
		if _, known := runtimeapi.SecurityProfile_ProfileType_name[int32(kind)]; !known {
			return nil, invalid("profile_type %v of a security profile: must be RuntimeDefault, Unconfined or Localhost", kind)
		}
		if local != (p.GetLocalhostRef() != "") {
			return nil, invalid("security profile of type %v with localhost_ref %q: must be set for type Localhost, and only for that", kind, p.GetLocalhostRef())
		}
		return p, nil
	}
	ref, local := strings.CutPrefix(deprecated, deprecatedLocalhost)
	switch {
	case deprecated == "":
		return nil, nil
	case deprecated == deprecatedDefault, deprecated == deprecatedDockerDefault:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case deprecated == deprecatedUnconfined:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	case local && ref != "":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}, nil
	default:
		return nil, invalid("security profile %q: must be %s, %s, %s or %s with a name or path",
			deprecated, deprecatedDefault, deprecatedDockerDefault, deprecatedUnconfined, deprecatedLocalhost)
	}
}

// SeccompFile returns the path of the seccomp profile whose content Docker must get, or ""
// if it needs none.
func SeccompFile(sc SecurityContext, privileged bool) (string, error) {
	p, err := profile(sc.GetSeccomp(), sc.GetSeccompProfilePath())
	if err != nil || privileged || p.GetProfileType() != runtimeapi.SecurityProfile_Localhost {
		return "", err
	}
	if !strings.HasPrefix(p.GetLocalhostRef(), "/") {
		return "", invalid("seccomp profile %q: must be an absolute path", p.GetLocalhostRef())
	}
	return p.GetLocalhostRef(), nil
}

// AppArmorProfile returns the name of the AppArmor profile that must be loaded on the node
// for sc, or "" if it needs none.
func AppArmorProfile(sc SecurityContext) (string, error) {
	p, err := appArmor(sc)
	return p.GetLocalhostRef(), err
}

// AppArmorStack returns the names of the profiles in name, which may be a stack of several
// profiles that confine a process together (aa_stack_profile(2)).
func AppArmorStack(name string) []string { return strings.Split(name, "//&") }

// appArmor returns the AppArmor profile of sc, nil for none. Its name is without the prefix
// localhost/, which critest and old kubelets send in apparmor, too.
func appArmor(sc SecurityContext) (*runtimeapi.SecurityProfile, error) {
	var deprecated string
	if c, ok := sc.(interface{ GetApparmorProfile() string }); ok { // of containers only
		deprecated = c.GetApparmorProfile()
	}
	p, err := profile(sc.GetApparmor(), deprecated)
	if err != nil || p.GetProfileType() != runtimeapi.SecurityProfile_Localhost {
		return p, err
	}
	name := strings.TrimPrefix(p.GetLocalhostRef(), deprecatedLocalhost)
	for _, part := range AppArmorStack(name) {
		if err := checkAppArmorName(part); err != nil {
			return nil, invalid("AppArmor profile %q: %v", p.GetLocalhostRef(), err)
		}
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: name}, nil
}

// checkAppArmorName refuses names that the kernel does not read as the name of one profile of
// the node: "unconfined" is no profile, a name with a colon first is in another namespace
// (":ns:unconfined", and ":ns" is the same), "&" and "=" are operators at the beginning, and
// leading blanks are skipped (aa_label_strn_parse in security/apparmor/label.c,
// aa_splitn_fqname in lib.c of Linux). The Pod Security Standards allow type Localhost where
// they forbid Unconfined, so a name must not mean the same as Unconfined.
func checkAppArmorName(name string) error {
	switch {
	case name == "":
		return errors.New("must have a name")
	case strings.TrimSpace(name) != name, strings.ContainsFunc(name, unicode.IsControl):
		return errors.New("must not begin or end with a blank or contain control characters")
	case name == deprecatedUnconfined:
		return errors.New("unconfined is not a profile of the node: use type Unconfined instead")
	case strings.ContainsAny(name[:1], ":&="):
		return fmt.Errorf("must be a profile of the node itself and not begin with %q", name[:1])
	}
	return nil
}

// securityOptions returns the SecurityOpt for the seccomp and AppArmor profiles and the
// SELinux label of a container. seccomp is the content of the file that SeccompFile
// returns, podLabel the SELinux label of the pod, "" for a sandbox.
//
// Where Docker would start a container without the profile, with a warning or silently,
// it is refused. sandboxSeccomp makes one exception.
func securityOptions(sc SecurityContext, privileged bool, features engine.Features, seccomp, podLabel string) ([]string, error) {
	p, err := profile(sc.GetSeccomp(), sc.GetSeccompProfilePath())
	if err != nil {
		return nil, err
	}
	options, err := seccompOptions(p, privileged, features, seccomp)
	if err != nil {
		return nil, err
	}
	if p, err = appArmor(sc); err != nil {
		return nil, err
	}
	confined, err := appArmorOptions(p, privileged, features)
	if err != nil {
		return nil, err
	}
	return slices.Concat(options, confined, labelOptions(sc.GetSelinuxOptions(), podLabel)), nil
}

// noNewPrivileges returns the SecurityOpt for no_new_privs. Without it the default in
// daemon.json would apply.
func noNewPrivileges(on bool) string { return "no-new-privileges=" + strconv.FormatBool(on) }

// seccompOptions returns the options for a seccomp profile; nil is none.
func seccompOptions(p *runtimeapi.SecurityProfile, privileged bool, features engine.Features, content string) ([]string, error) {
	switch {
	case privileged, p == nil, p.GetProfileType() == runtimeapi.SecurityProfile_Unconfined:
		// In the CRI, no profile is no filter. Docker would use its default profile, since
		// 23 for privileged containers, too.
		return []string{"seccomp=unconfined"}, nil
	case features.SeccompProfile == "":
		return nil, failed("seccomp profile %v: Docker has no seccomp on this node (see Security Options in docker info)", p.GetProfileType())
	case p.GetProfileType() == runtimeapi.SecurityProfile_Localhost:
		return []string{"seccomp=" + content}, nil
	case features.SeccompBuiltin:
		return []string{"seccomp=builtin"}, nil
	case features.SeccompProfile == deprecatedUnconfined:
		// Before API 1.42 there is only the default of daemon.json.
		return nil, failed("seccomp profile RuntimeDefault: seccomp-profile is unconfined in daemon.json; remove that, or use Docker 23 or newer, which has seccomp=builtin")
	default:
		return nil, nil
	}
}

// appArmorOptions returns the options for an AppArmor profile; nil is none.
func appArmorOptions(p *runtimeapi.SecurityProfile, privileged bool, features engine.Features) ([]string, error) {
	localhost := p.GetProfileType() == runtimeapi.SecurityProfile_Localhost
	switch {
	case privileged && p == nil, p != nil && p.GetProfileType() == runtimeapi.SecurityProfile_Unconfined:
		return []string{"apparmor=unconfined"}, nil
	case localhost && !features.AppArmor:
		return nil, failed("AppArmor profile %q: Docker has no AppArmor on this node", p.GetLocalhostRef())
	case localhost:
		return []string{"apparmor=" + p.GetLocalhostRef()}, nil
	case p != nil && !features.AppArmor && !privileged:
		// A kubelet sends RuntimeDefault only if the pod has it. In privileged containers
		// AppArmor is not applied (LinuxContainerSecurityContext.privileged in api.proto).
		return nil, failed("AppArmor profile RuntimeDefault: Docker has no AppArmor on this node")
	}
	return nil, nil
}

// sandboxSeccomp returns the security context of a sandbox without RuntimeDefault where
// Docker cannot apply that. The kubelet sends RuntimeDefault for every sandbox, even if the
// pod has another profile (generatePodSandboxLinuxConfig in pkg/kubelet/kuberuntime, since
// Kubernetes 1.19). It affects the pause process alone, which runs no code of the pod.
func sandboxSeccomp(sc SecurityContext, features engine.Features) SecurityContext {
	p, err := profile(sc.GetSeccomp(), sc.GetSeccompProfilePath())
	if err != nil || p == nil || p.GetProfileType() != runtimeapi.SecurityProfile_RuntimeDefault {
		return sc
	}
	if _, err := seccompOptions(p, false, features, ""); err == nil {
		return sc
	}
	return unfiltered{sc}
}

// unfiltered is a security context with the seccomp profile Unconfined.
type unfiltered struct{ SecurityContext }

func (unfiltered) GetSeccomp() *runtimeapi.SecurityProfile {
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
}

// labelOptions returns the options for the SELinux label of a container. One without any
// option gets the label of its pod from Docker, because it joins the pod's IPC namespace.
func labelOptions(se *runtimeapi.SELinuxOption, podLabel string) (options []string) {
	for _, part := range []struct{ key, value string }{
		{"user", se.GetUser()}, {"role", se.GetRole()}, {"type", se.GetType()}, {"level", se.GetLevel()},
	} {
		if part.value != "" {
			options = append(options, "label="+part.key+":"+part.value)
		}
	}
	if len(options) > 0 && se.GetLevel() == "" {
		// Docker would choose a random level, and the container could not read what
		// other containers of its pod have written.
		const parts = 4 // user:role:type:level; the level may have colons
		if label := strings.SplitN(podLabel, ":", parts); len(label) == parts {
			options = append(options, "label=level:"+label[parts-1])
		}
	}
	return options
}
