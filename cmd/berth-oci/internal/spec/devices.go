package spec

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"berth/core/ociedit"
)

// deviceNode is an ociedit.Device in linux.devices, deviceRule one in linux.resources.devices.
type deviceNode struct {
	Path     string  `json:"path"`
	Type     string  `json:"type"`
	Major    int64   `json:"major"`
	Minor    int64   `json:"minor"`
	FileMode *uint32 `json:"fileMode,omitempty"`
	UID      *uint32 `json:"uid,omitempty"`
	GID      *uint32 `json:"gid,omitempty"`
}

type deviceRule struct {
	Allow  bool   `json:"allow"`
	Type   string `json:"type"`
	Major  int64  `json:"major"`
	Minor  int64  `json:"minor"`
	Access string `json:"access"`
}

func (s *Spec) addDevices(i *ociedit.Instructions) error {
	for _, d := range i.Devices {
		linux, err := s.object("linux")
		if err != nil {
			return err
		}
		err = put(linux, "devices", "path", deviceNode{d.Path, d.Type, d.Major, d.Minor, d.FileMode, d.UID, d.GID})
		if err != nil {
			return fmt.Errorf("linux.%w", err)
		}
		if d.Access == "" || d.Type == "p" { // the cgroup has no rules for pipes
			continue
		}
		resources, err := s.object("linux", "resources")
		if err != nil {
			return err
		}
		rules, err := list(resources, "devices")
		if err != nil {
			return fmt.Errorf("linux.resources.%w", err)
		}
		rule, err := generic(deviceRule{true, ruleType(d.Type), d.Major, d.Minor, d.Access})
		if err != nil {
			return err
		}
		resources["devices"] = append(rules, rule)
	}
	return nil
}

// ruleType returns the type of a device in rules of the cgroup, which have no u for unbuffered character devices.
func ruleType(device string) string { return strings.Replace(device, "u", "c", 1) }

// setDeviceOwner changes the owner of nodes, but for those that the instructions add with one.
func (s *Spec) setDeviceOwner(i *ociedit.Instructions) error {
	if i.DeviceOwner == nil {
		return nil
	}
	nodes, err := s.deviceNodes()
	if err != nil {
		return err
	}
	for _, node := range nodes {
		path := text(node, "path")
		owned := slices.ContainsFunc(i.Devices, func(d ociedit.Device) bool { return d.Path == path && (d.UID != nil || d.GID != nil) })
		if owned || !slices.ContainsFunc(i.DeviceOwner.Paths, func(dir string) bool { return within(path, dir) }) {
			continue
		}
		if uid := i.DeviceOwner.UID; uid != nil {
			node["uid"] = *uid
		}
		if gid := i.DeviceOwner.GID; gid != nil {
			node["gid"] = *gid
		}
	}
	return nil
}

// within reports whether a path is dir or below it.
func within(name, dir string) bool {
	name, dir = path.Clean(name), path.Clean(dir)
	return name == dir || strings.HasPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}

// deviceNodes returns the nodes in linux.devices, each as an object.
func (s *Spec) deviceNodes() (nodes []map[string]any, err error) {
	linux, err := s.object("linux")
	if err != nil {
		return nil, err
	}
	elements, err := list(linux, "devices")
	if err != nil {
		return nil, fmt.Errorf("linux.%w", err)
	}
	for _, e := range elements {
		node, ok := e.(map[string]any)
		if !ok {
			return nil, errors.New("linux.devices has an element that is not an object")
		}
		nodes = append(nodes, node)
	}
	return nodes, nil
}

// boundHostDevices leaves a privileged container the devices that the instructions list. What every container may use, like /dev/null, the
// runtime below adds to the rules itself.
func (s *Spec) boundHostDevices(i *ociedit.Instructions) error {
	if i.HostDevices == nil {
		return nil
	}
	nodes, err := s.deviceNodes()
	if err != nil {
		return err
	}
	kept, rules := []any{}, []any{map[string]any{"allow": false, "access": "rwm"}}
	for _, node := range nodes {
		n := slices.IndexFunc(i.HostDevices.Allowed, func(a ociedit.DeviceAccess) bool { return within(text(node, "path"), a.Path) })
		if n < 0 {
			continue
		}
		kept = append(kept, node)
		rules = append(rules, map[string]any{
			"allow": true, "type": ruleType(text(node, "type")), "major": node["major"], "minor": node["minor"], "access": i.HostDevices.Allowed[n].Access,
		})
	}
	linux, err := s.object("linux")
	if err != nil {
		return err
	}
	resources, err := s.object("linux", "resources")
	if err != nil {
		return err
	}
	linux["devices"], resources["devices"] = kept, rules
	return nil
}
