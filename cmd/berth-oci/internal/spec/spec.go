// Package spec edits the config.json of an OCI bundle. It keeps every field that it does not know, and does no I/O.
//
// The file comes from the Engine, which has checked it; the edits come from berthd. What does not fit together is an error,
// never left out.
package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"berth/core/ociedit"
)

// MaxSize bounds a config.json, in bytes, as core/bundle does.
const MaxSize = 4 << 20

// Spec is a config.json.
type Spec struct {
	fields map[string]any // numbers are json.Number
}

// Parse reads a config.json.
func Parse(text []byte) (*Spec, error) {
	v, err := decode(text)
	if err != nil {
		return nil, err
	}
	fields, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("is not a JSON object")
	}
	return &Spec{fields}, nil
}

// Marshal returns the text of s.
func (s *Spec) Marshal() ([]byte, error) { return encode(s.fields) }

func decode(text []byte) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("is not JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("has something behind the JSON object")
	}
	return v, nil
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return b.Bytes(), err
}

// generic returns v as Parse would.
func generic(v any) (any, error) {
	text, err := encode(v)
	if err != nil {
		return nil, err
	}
	return decode(text)
}

// object returns the object at a path of names, which it creates if it is missing or null.
func (s *Spec) object(names ...string) (map[string]any, error) {
	o := s.fields
	for n, name := range names {
		switch v := o[name].(type) {
		case map[string]any:
			o = v
		case nil:
			next := map[string]any{}
			o[name] = next
			o = next
		default:
			return nil, fmt.Errorf("%s is not an object", strings.Join(names[:n+1], "."))
		}
	}
	return o, nil
}

// list returns the array name of o; one that is missing or null is empty.
func list(o map[string]any, name string) ([]any, error) {
	switch v := o[name].(type) {
	case []any:
		return v, nil
	case nil:
		return nil, nil
	}
	return nil, fmt.Errorf("%s is not an array", name)
}

// text returns the string name of v, which is "" if v is no object.
func text(v any, name string) string {
	o, _ := v.(map[string]any)
	s, _ := o[name].(string)
	return s
}

// CgroupPath returns the path of the cgroup, "" if it is not named by one.
func (s *Spec) CgroupPath() string {
	if path := text(s.fields["linux"], "cgroupsPath"); strings.HasPrefix(path, "/") {
		return path
	}
	return ""
}

// SystemdCgroup reports whether the cgroup is named as for systemd: slice:prefix:name.
func (s *Spec) SystemdCgroup() bool {
	linux, _ := s.fields["linux"].(map[string]any)
	slice, rest, ok := strings.Cut(text(linux, "cgroupsPath"), ":")
	_, name, hasName := strings.Cut(rest, ":")
	return ok && hasName && name != "" && !strings.Contains(name, ":") && (slice == "" || strings.HasSuffix(slice, ".slice"))
}

// Edit applies what i says, but for the user namespace.
func (s *Spec) Edit(i *ociedit.Instructions) error {
	for n, patch := range i.Patches {
		v, err := decode(patch)
		if err != nil {
			return fmt.Errorf("patch %d: %w", n+1, err)
		}
		object, ok := v.(map[string]any)
		if !ok {
			return fmt.Errorf("patch %d is not a JSON object", n+1)
		}
		mergePatch(s.fields, object)
	}
	steps := []func(*ociedit.Instructions) error{s.addHooks, s.boundHostDevices, s.addDevices, s.setDeviceOwner, s.setRlimits, s.addMountOptions, s.setUnified, s.addCapabilities, s.joinNamespaces, s.setNamespaces}
	for _, step := range steps {
		if err := step(i); err != nil {
			return err
		}
	}
	return nil
}

// mergePatch applies a JSON merge patch, RFC 7396.
func mergePatch(target, patch map[string]any) {
	for name, value := range patch {
		switch value := value.(type) {
		case nil:
			delete(target, name)
		case map[string]any:
			inner, ok := target[name].(map[string]any)
			if !ok {
				inner = map[string]any{}
				target[name] = inner
			}
			mergePatch(inner, value)
		default:
			target[name] = value
		}
	}
}

func (s *Spec) addHooks(i *ociedit.Instructions) error {
	if i.Hooks == nil {
		return nil
	}
	v, err := generic(i.Hooks)
	if err != nil {
		return err
	}
	hooks, err := s.object("hooks")
	if err != nil {
		return err
	}
	for kind, added := range v.(map[string]any) {
		before, err := list(hooks, kind)
		if err != nil {
			return fmt.Errorf("hooks.%w", err)
		}
		hooks[kind] = append(before, added.([]any)...)
	}
	return nil
}

// put replaces the element of an array that has the same key as v, or else appends v.
func put(o map[string]any, name, key string, v any) error {
	elements, err := list(o, name)
	if err != nil {
		return err
	}
	element, err := generic(v)
	if err != nil {
		return err
	}
	kept := slices.DeleteFunc(elements, func(e any) bool { return text(e, key) == text(element, key) })
	o[name] = append(kept, element)
	return nil
}

func (s *Spec) setRlimits(i *ociedit.Instructions) error {
	for _, r := range i.Rlimits {
		process, err := s.object("process")
		if err == nil {
			err = put(process, "rlimits", "type", r)
		}
		if err != nil {
			return fmt.Errorf("process: %w", err)
		}
	}
	return nil
}

func (s *Spec) setUnified(i *ociedit.Instructions) error {
	if len(i.Unified) == 0 {
		return nil
	}
	unified, err := s.object("linux", "resources", "unified")
	for name, value := range i.Unified {
		if err == nil {
			unified[name] = value
		}
	}
	return err
}

func (s *Spec) addCapabilities(i *ociedit.Instructions) error {
	if len(i.AmbientCapabilities)+len(i.InheritableCapabilities) == 0 {
		return nil
	}
	process, err := s.object("process")
	if err != nil {
		return err
	}
	return addCapabilities(process, i)
}

// addCapabilities adds the capabilities of i to a process.
func addCapabilities(process map[string]any, i *ociedit.Instructions) error {
	capabilities, err := (&Spec{process}).object("capabilities")
	if err != nil {
		return fmt.Errorf("process.%w", err)
	}
	for _, set := range []string{"bounding", "effective", "permitted", "inheritable", "ambient"} {
		added := i.AmbientCapabilities // the kernel raises an ambient capability only if it is permitted and inheritable
		if set == "inheritable" {
			added = slices.Concat(added, i.InheritableCapabilities)
		}
		names, err := list(capabilities, set)
		if err != nil {
			return fmt.Errorf("process.capabilities.%w", err)
		}
		for _, name := range added {
			if !slices.Contains(names, any(name)) {
				names = append(names, name)
			}
		}
		if len(names) > 0 {
			capabilities[set] = names
		}
	}
	return nil
}

// EditProcess gives the process of an exec, the text of an OCI process, the ambient capabilities of i.
func EditProcess(process []byte, i *ociedit.Instructions) ([]byte, error) {
	s, err := Parse(process)
	if err != nil {
		return nil, err
	}
	if err := addCapabilities(s.fields, &ociedit.Instructions{AmbientCapabilities: i.AmbientCapabilities}); err != nil {
		return nil, err
	}
	return s.Marshal()
}

// mounts returns the mounts, each as an object.
func (s *Spec) mounts() (mounts []map[string]any, err error) {
	elements, err := list(s.fields, "mounts")
	if err != nil {
		return nil, err
	}
	for _, e := range elements {
		m, ok := e.(map[string]any)
		if !ok {
			return nil, errors.New("mounts has an element that is not an object")
		}
		mounts = append(mounts, m)
	}
	return mounts, nil
}

// addOptions appends options to a mount that does not have them yet.
func addOptions(mount map[string]any, options ...string) error {
	before, err := list(mount, "options")
	if err != nil {
		return fmt.Errorf("mount %s: %w", text(mount, "destination"), err)
	}
	for _, o := range options {
		if !slices.Contains(before, any(o)) {
			before = append(before, o)
		}
	}
	mount["options"] = before
	return nil
}

func (s *Spec) addMountOptions(i *ociedit.Instructions) error {
	mounts, err := s.mounts()
	if err != nil {
		return err
	}
	for _, o := range i.MountOptions {
		found := false
		for _, m := range mounts {
			if !sameDestination(m, o.Destination) {
				continue
			}
			found = true
			if err := addOptions(m, o.Options...); err != nil {
				return err
			}
		}
		if !found {
			return fmt.Errorf("mount options of %s: the container has no such mount", o.Destination)
		}
	}
	return nil
}

func sameDestination(mount map[string]any, destination string) bool {
	return path.Clean("/"+text(mount, "destination")) == path.Clean("/"+destination)
}

func (s *Spec) joinNamespaces(i *ociedit.Instructions) error {
	for _, kind := range i.JoinNamespaces {
		if i.Sandbox == nil {
			return fmt.Errorf("namespace %s cannot be joined without a process of the sandbox", kind)
		}
		if err := s.setNamespace(kind, NamespacePath(i.Sandbox, kind)); err != nil {
			return err
		}
		if kind == "uts" { // the names of the namespace stay those of the pod
			delete(s.fields, "hostname")
			delete(s.fields, "domainname")
		}
	}
	return nil
}

func (s *Spec) setNamespaces(i *ociedit.Instructions) error {
	for _, n := range i.Namespaces {
		if !n.Remove {
			if err := s.setNamespace(n.Type, n.Path); err != nil {
				return err
			}
			continue
		}
		linux, err := s.object("linux")
		if err != nil {
			return err
		}
		all, err := list(linux, "namespaces")
		if err != nil {
			return fmt.Errorf("linux.%w", err)
		}
		linux["namespaces"] = slices.DeleteFunc(all, func(v any) bool { return text(v, "type") == n.Type })
	}
	return nil
}

// NamespacePath returns the file of a namespace of a process, kind as in the OCI specification ("uts", "user").
func NamespacePath(p *ociedit.Process, kind string) string {
	return fmt.Sprintf("/proc/%d/ns/%s", p.PID, kind)
}

// setNamespace gives the container a namespace, a new one if path is empty.
func (s *Spec) setNamespace(kind, path string) error {
	linux, err := s.object("linux")
	if err != nil {
		return err
	}
	namespace := map[string]any{"type": kind}
	if path != "" {
		namespace["path"] = path
	}
	if err := put(linux, "namespaces", "type", namespace); err != nil {
		return fmt.Errorf("linux.%w", err)
	}
	return nil
}
