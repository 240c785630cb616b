package spec

import (
	"errors"
	"fmt"
	"slices"

	"berth/core/ociedit"
)

// Bind is a bind mount of a container.
type Bind struct {
	Destination, Source string
	// Recursive says that the mounts below Source belong to it.
	Recursive bool
	// UIDs and GIDs are the mappings of an id-mapped mount, or empty.
	UIDs, GIDs []ociedit.IDMapping

	mount map[string]any
}

// Binds returns the bind mounts with what u says about each.
func (s *Spec) Binds(u *ociedit.UserNamespace) (binds []*Bind, err error) {
	mounts, err := s.mounts()
	if err != nil {
		return nil, err
	}
	named := make([]bool, len(u.Mounts))
	for _, m := range mounts {
		options, err := list(m, "options")
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", text(m, "destination"), err)
		}
		recursive := slices.Contains(options, any("rbind"))
		if text(m, "type") != "bind" && !recursive && !slices.Contains(options, any("bind")) {
			continue
		}
		b := &Bind{Destination: text(m, "destination"), Source: text(m, "source"), Recursive: recursive, mount: m}
		if u.IDMapOthers {
			b.UIDs, b.GIDs = u.UIDMappings, u.GIDMappings
		}
		for n, mapping := range u.Mounts {
			if sameDestination(m, mapping.Destination) {
				b.UIDs, b.GIDs, named[n] = mapping.UIDMappings, mapping.GIDMappings, true
			}
		}
		binds = append(binds, b)
	}
	if n := slices.Index(named, false); n >= 0 {
		return nil, fmt.Errorf("mappings of mount %s: the container has no such bind mount", u.Mounts[n].Destination)
	}
	return binds, nil
}

// Replace gives the mount another source, and options that it must have.
func (b *Bind) Replace(source string, options ...string) error {
	b.mount["source"] = source
	return addOptions(b.mount, options...)
}

// Root returns the directory of the root file system.
func (s *Spec) Root() (string, error) {
	root := text(s.fields["root"], "path")
	if root == "" || root[0] != '/' {
		return "", fmt.Errorf("root.path %q is not an absolute path", root)
	}
	return root, nil
}

// SetRoot replaces the directory of the root file system.
func (s *Spec) SetRoot(path string) error {
	root, err := s.object("root")
	if err == nil {
		root["path"] = path
	}
	return err
}

// namespace returns the path of a namespace, and whether the container has one, be it new or joined.
func (s *Spec) namespace(kind string) (path string, ok bool, err error) {
	linux, err := s.object("linux")
	if err != nil {
		return "", false, err
	}
	namespaces, err := list(linux, "namespaces")
	if err != nil {
		return "", false, fmt.Errorf("linux.%w", err)
	}
	for _, n := range namespaces {
		if text(n, "type") == kind {
			return text(n, "path"), true, nil
		}
	}
	return "", false, nil
}

// NetworkNamespace returns the path of the network namespace that the container joins, "" for a new one. host reports that
// it has the host's.
func (s *Spec) NetworkNamespace() (path string, host bool, err error) {
	path, ok, err := s.namespace("network")
	return path, !ok, err
}

// UseHostNetwork removes the network namespace, so that the container has that of the runtime.
func (s *Spec) UseHostNetwork() error {
	linux, err := s.object("linux")
	if err != nil {
		return err
	}
	namespaces, err := list(linux, "namespaces")
	if err == nil {
		linux["namespaces"] = slices.DeleteFunc(namespaces, func(n any) bool { return text(n, "type") == "network" })
	}
	return err
}

// pingGroupRange is a sysctl that Docker >= 20.10 sets to all groups if the container does not, so that ping needs no capability.
const (
	pingGroupRange = "net.ipv4.ping_group_range"
	allGroups      = "0 2147483647"
)

// SetUserNamespace gives the container a user namespace: a new one if path is empty. sys is a mounted sysfs for /sys, if the kernel
// refuses the container one of its own, or empty.
func (s *Spec) SetUserNamespace(u *ociedit.UserNamespace, path, sys string) error {
	if _, ok, err := s.namespace("user"); err != nil || ok {
		return errors.Join(err, existing(ok))
	}
	if err := s.setNamespace("user", path); err != nil {
		return err
	}
	linux, err := s.object("linux")
	if err != nil {
		return err
	}
	linux["uidMappings"], linux["gidMappings"] = runtimeMappings(u.UIDMappings), runtimeMappings(u.GIDMappings)
	if sysctl, _ := linux["sysctl"].(map[string]any); sysctl[pingGroupRange] == allGroups {
		setPingGroupRange(sysctl, u.GIDMappings)
	}
	if sys != "" {
		return s.bindSys(sys)
	}
	return nil
}

func existing(ok bool) error {
	if ok {
		return errors.New("the Engine gives the container a user namespace itself (userns-remap)")
	}
	return nil
}

// runtimeMappings returns mappings in the form of the OCI specification.
func runtimeMappings(mappings []ociedit.IDMapping) (list []any) {
	for _, m := range mappings {
		list = append(list, map[string]any{"containerID": m.ContainerID, "hostID": m.HostID, "size": m.Size})
	}
	return list
}

// setPingGroupRange allows all groups of the namespace: the kernel refuses groups that are not mapped with EINVAL.
func setPingGroupRange(sysctl map[string]any, gids []ociedit.IDMapping) {
	for _, m := range gids {
		if m.ContainerID == 0 {
			sysctl[pingGroupRange] = fmt.Sprintf("0 %d", min(m.Size-1, 1<<31-1))
			return
		}
	}
	delete(sysctl, pingGroupRange)
}

// bindSys replaces sysfs by a bind mount of the one at source, read-only.
func (s *Spec) bindSys(source string) error {
	mounts, err := s.mounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if text(m, "type") == "sysfs" {
			m["type"], m["source"] = "bind", source
			m["options"] = []any{"bind", "nosuid", "noexec", "nodev", "ro"}
		}
	}
	return nil
}
