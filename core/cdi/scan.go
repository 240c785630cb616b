package cdi

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"tags.cncf.io/container-device-interface/pkg/cdi"
)

const (
	// maxSpecSize bounds a specification. One that nvidia-ctk generates for a node with eight GPUs and all
	// their MIG devices has some 100 KiB.
	maxSpecSize = 4 << 20
	// maxSpecs bounds the specifications in one directory. DRA drivers write one per claim.
	maxSpecs = 8192
)

// A Problem is why a file or a directory of specifications, or a device in a file, is not used.
type Problem struct {
	Path string
	Err  error
}

// scan reads the specifications in dirs of the kinds (VENDOR/CLASS) that want accepts. It returns their devices by
// name and the problems in the order of directories and files; an invalid file does not affect the devices of
// others. As the CDI specification says, a later directory has priority, and a device that two
// files of the same directory define is in conflict: neither is used.
func scan(dirs []string, want func(kind string) bool) (map[string]*cdi.Device, []Problem) {
	devices := map[string]*cdi.Device{}
	var problems []Problem
	for priority, dir := range dirs {
		paths, err := specFiles(dir)
		if err != nil {
			problems = append(problems, Problem{dir, err})
		}
		here := map[string]*cdi.Device{}
		conflicts := map[string]bool{}
		for _, path := range paths {
			spec, err := readSpec(path, priority)
			if err != nil {
				problems = append(problems, Problem{path, err})
				continue
			}
			if spec == nil || !want(spec.Kind) {
				continue
			}
			for i := range spec.Devices {
				d := spec.GetDevice(spec.Devices[i].Name)
				name := d.GetQualifiedName()
				if other := here[name]; other != nil {
					conflicts[name] = true
					problems = append(problems, Problem{path, fmt.Errorf("device %s is defined by %s, too", name, other.GetSpec().GetPath())})
				}
				here[name] = d
			}
		}
		for name, d := range here {
			if devices[name] = d; conflicts[name] {
				delete(devices, name)
			}
		}
	}
	return devices, problems
}

// specFiles returns the paths of the specifications in a directory, sorted. A directory that does not exist has none.
func specFiles(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.ReadDir(maxSpecs + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(entries) > maxSpecs {
		return nil, fmt.Errorf("more than %d files", maxSpecs)
	}
	var paths []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".json" || ext == ".yaml") {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(paths)
	return paths, nil
}

// readSpec reads and validates a specification; nil if the file has been removed meanwhile.
func readSpec(path string, priority int) (*cdi.Spec, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("not a regular file") // reading a named pipe would block
	case info.Size() > maxSpecSize:
		return nil, fmt.Errorf("%d bytes: at most %d are read", info.Size(), maxSpecSize)
	}
	spec, err := cdi.ReadSpec(path, priority)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return spec, err
}
