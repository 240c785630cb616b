package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"berth/core/ociedit"
)

// capabilities are the names of capabilities(7), each at its number.
var capabilities = strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID
	CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK CAP_IPC_OWNER
	CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE CAP_SYS_RESOURCE
	CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE CAP_AUDIT_CONTROL CAP_SETFCAP CAP_MAC_OVERRIDE CAP_MAC_ADMIN
	CAP_SYSLOG CAP_WAKE_ALARM CAP_BLOCK_SUSPEND CAP_AUDIT_READ CAP_PERFMON CAP_BPF CAP_CHECKPOINT_RESTORE`)

// restrictions are the options of mounts that take something away. CRIU gives a mount those of the checkpoint.
var restrictions = []string{"ro", "rro", "nosuid", "nodev", "noexec", "rnosuid", "rnodev", "rnoexec"}

// Annotate sets an annotation.
func (s *Spec) Annotate(name, value string) error {
	annotations, err := s.object("annotations")
	if err != nil {
		return err
	}
	annotations[name] = value
	return nil
}

// FitsCheckpoint returns an error if the container of a checkpoint would get something else from CRIU than s says: more privileges, or
// other mounts and namespaces.
func (s *Spec) FitsCheckpoint(r *ociedit.Restore) error {
	process, err := s.object("process")
	if err != nil {
		return err
	}
	if terminal, _ := process["terminal"].(bool); terminal {
		return errors.New("a container with a terminal cannot be restored")
	}
	for _, check := range []func(*ociedit.Restore) error{s.sameMounts, s.sameNamespaces, s.sameProtection} {
		if err := check(r); err != nil {
			return err
		}
	}
	return hasCapabilities(process, r.Capabilities)
}

// sameMounts compares the mounts.
func (s *Spec) sameMounts(r *ociedit.Restore) error {
	mounts, err := s.mounts()
	if err != nil {
		return err
	}
	before := map[string]ociedit.RestoredMount{}
	for _, m := range r.Mounts {
		before[path.Clean("/"+m.Destination)] = m
	}
	var added, different []string
	for _, m := range mounts {
		at := path.Clean("/" + text(m, "destination"))
		old, ok := before[at]
		if !ok {
			added = append(added, at)
			continue
		}
		delete(before, at)
		elements, err := list(m, "options")
		if err != nil {
			return fmt.Errorf("mount %s: %w", at, err)
		}
		var options []string
		for _, e := range elements {
			if o, ok := e.(string); ok {
				options = append(options, o)
			}
		}
		var lost []string
		for _, o := range restrictions {
			kept := slices.Contains(old.Options, o) || o == "rro" && slices.Contains(old.Options, "ro") && isFile(text(m, "source"))
			if slices.Contains(options, o) && !kept {
				lost = append(lost, "not "+o)
			}
		}
		if kind := mountType(old.Type, old.Options); kind != mountType(text(m, "type"), options) {
			lost = append(lost, "of type "+kind)
		}
		if len(lost) > 0 {
			different = append(different, fmt.Sprintf("%s (%s)", at, strings.Join(lost, ", ")))
		}
	}
	missing := slices.Sorted(maps.Keys(before))
	if len(added)+len(different)+len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("the container must have the mounts of its checkpoint: only in the checkpoint: %s; only in the container: %s; different in the checkpoint: %s",
		nameAll(missing), nameAll(added), nameAll(different))
}

// isFile reports whether the source of a mount is no directory, so that read-only is recursively read-only: Docker 25 and newer have
// the latter for /etc/hosts, /etc/hostname and /etc/resolv.conf whatever they are asked for.
func isFile(source string) bool {
	info, err := os.Stat(source)
	return err == nil && !info.IsDir()
}

// mountType returns the type of a mount, which bind mounts need not have.
func mountType(kind string, options []string) string {
	if slices.Contains(options, "bind") || slices.Contains(options, "rbind") {
		return "bind"
	}
	return kind
}

// maxNamed bounds how many names an error has.
const maxNamed = 20

func nameAll(names []string) string {
	slices.Sort(names)
	more := ""
	if n := len(names) - maxNamed; n > 0 {
		names, more = names[:maxNamed], fmt.Sprintf(" and %d more", n)
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ") + more
}

// sameNamespaces compares which namespaces the container has, and which of them it joins.
func (s *Spec) sameNamespaces(r *ociedit.Restore) error {
	linux, err := s.object("linux")
	if err != nil {
		return err
	}
	elements, err := list(linux, "namespaces")
	if err != nil {
		return fmt.Errorf("linux.%w", err)
	}
	describe := func(n ociedit.RestoredNamespace) string {
		if n.Joined {
			return n.Type + " of another container"
		}
		return n.Type
	}
	var now, before []string
	for _, e := range elements {
		now = append(now, describe(ociedit.RestoredNamespace{Type: text(e, "type"), Joined: text(e, "path") != ""}))
	}
	for _, n := range r.Namespaces {
		// CRIU makes a new UTS namespace with the old hostname, also for one that containers shared. containerd has one in each pod.
		if n.Type == "uts" && !slices.Contains(now, describe(n)) {
			if !slices.Contains(now, "uts") && !slices.Contains(now, "uts of another container") {
				continue
			}
			n.Joined = false
		}
		before = append(before, describe(n))
	}
	slices.Sort(now)
	slices.Sort(before)
	if slices.Contains(now, "user") || slices.Contains(now, "user of another container") {
		return errors.New("a container with a user namespace cannot be restored")
	}
	if !slices.Equal(now, before) {
		return fmt.Errorf("the container must have the namespaces of its checkpoint: the checkpoint has %s; the container %s", nameAll(before), nameAll(now))
	}
	return nil
}

// sameProtection fails if the checkpoint lacks a restriction that the container has.
func (s *Spec) sameProtection(r *ociedit.Restore) error {
	process, _ := s.fields["process"].(map[string]any)
	linux, _ := s.fields["linux"].(map[string]any)
	root, _ := s.fields["root"].(map[string]any)
	user, _ := process["user"].(map[string]any)
	if id, _ := user["uid"].(json.Number); r.Root && id != "" && id != "0" {
		return fmt.Errorf("the user of the container is %s, and the checkpoint has processes of root", id)
	}
	if on, _ := process["noNewPrivileges"].(bool); on && !r.NoNewPrivileges {
		return errors.New("the processes of the checkpoint may get new privileges, those of the container may not")
	}
	if linux["seccomp"] != nil && !r.Seccomp {
		return errors.New("the container has a seccomp profile, and the checkpoint has processes without")
	}
	if on, _ := root["readonly"].(bool); on && !r.ReadonlyRoot {
		return errors.New("the root file system is read-only in the container, but not in the checkpoint")
	}
	for name, before := range map[string][]string{"maskedPaths": r.MaskedPaths, "readonlyPaths": r.ReadonlyPaths} {
		paths, err := list(linux, name)
		if err != nil {
			return fmt.Errorf("linux.%w", err)
		}
		var lost []string
		for _, p := range paths {
			if p, ok := p.(string); ok && !slices.Contains(before, p) {
				lost = append(lost, p)
			}
		}
		if len(lost) > 0 {
			return fmt.Errorf("%s of the container that the checkpoint does not have: %s", name, nameAll(lost))
		}
	}
	return nil
}

// hasCapabilities fails if process may not have the capabilities in the set.
func hasCapabilities(process map[string]any, set uint64) error {
	sets, err := (&Spec{process}).object("capabilities")
	if err != nil {
		return fmt.Errorf("process.%w", err)
	}
	bounding, err := list(sets, "bounding")
	if err != nil {
		return fmt.Errorf("process.capabilities.%w", err)
	}
	var more []string
	for number := range 64 {
		if set&(1<<number) == 0 {
			continue
		}
		name := fmt.Sprintf("capability %d", number)
		if number < len(capabilities) {
			name = capabilities[number]
		}
		if !slices.Contains(bounding, any(name)) {
			more = append(more, name)
		}
	}
	if len(more) > 0 {
		return fmt.Errorf("the checkpoint has processes with capabilities that the container does not have: %s", nameAll(more))
	}
	return nil
}

// RestoreFlags returns the flags of "runc restore" that give the processes the labels of s, and not those of the checkpoint.
func (s *Spec) RestoreFlags() []string {
	process, linux := s.fields["process"], s.fields["linux"]
	var flags []string
	if label := text(process, "selinuxLabel"); label != "" {
		flags = append(flags, "--lsm-profile", "selinux:"+label)
		if mount := text(linux, "mountLabel"); mount != "" {
			flags = append(flags, "--lsm-mount-context", mount)
		}
	} else if profile := text(process, "apparmorProfile"); profile != "" && profile != "unconfined" { // a confined checkpoint stays so
		flags = append(flags, "--lsm-profile", "apparmor:"+profile)
	}
	return flags
}
