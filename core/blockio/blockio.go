// Package blockio has the block I/O classes of a node: what containers of a class get of its disks, by the names that NRI plugins
// use. The file is the one that containerd and CRI-O read (blockio_config_file, the format of github.com/intel/goresctrl).
package blockio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/docker/api/types/blkiodev"
	"github.com/docker/docker/api/types/container"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"berth/core/quantity"
)

// maxFile bounds the file, in bytes.
const maxFile = 1 << 20

// Classes are the classes of a file, by name.
type Classes map[string][]parameters

// parameters are limits, of devices or of all.
type parameters struct {
	devices                                []string // paths or globs
	weight                                 uint16   // of devices, or without devices of all disks
	readBps, writeBps, readIOPS, writeIOPS uint64   // 0 for none
}

// Load reads a file; the path "" is that of no classes.
func Load(path string) (Classes, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, err
	case len(text) > maxFile:
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	classes, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return classes, nil
}

// parse parses a file. Names of fields are in any case, as goresctrl reads them.
func parse(text []byte) (Classes, error) {
	var file map[string]map[string][]map[string]yaml.Node
	if err := yaml.NewDecoder(bytes.NewReader(text)).Decode(&file); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	out := Classes{}
	for section, classes := range file {
		if !strings.EqualFold(section, "classes") {
			return nil, fmt.Errorf("%s: must be classes", section)
		}
		for name, list := range classes {
			out[name] = []parameters{}
			for _, fields := range list {
				p, err := newParameters(fields)
				if err != nil {
					return nil, fmt.Errorf("class %s: %w", name, err)
				}
				out[name] = append(out[name], p)
			}
		}
	}
	return out, nil
}

func newParameters(fields map[string]yaml.Node) (p parameters, err error) {
	limits := map[string]*uint64{"throttlereadbps": &p.readBps, "throttlewritebps": &p.writeBps, "throttlereadiops": &p.readIOPS, "throttlewriteiops": &p.writeIOPS}
	for name, node := range fields {
		key := strings.ToLower(name)
		switch {
		case key == "devices":
			if err := node.Decode(&p.devices); err != nil {
				return p, fmt.Errorf("%s: %w", name, err)
			}
		case key == "weight":
			weight, ok := quantity.Parse(node.Value, 10, 1000)
			if !ok {
				return p, fmt.Errorf("%s %q: must be a number from 10 to 1000", name, node.Value)
			}
			p.weight = uint16(weight)
		case limits[key] != nil:
			v, ok := quantity.Parse(node.Value, 0, math.MaxInt64)
			if !ok {
				return p, fmt.Errorf("%s %q: must be a quantity like 50M", name, node.Value)
			}
			*limits[key] = uint64(v)
		default:
			return p, fmt.Errorf("%s: must be devices, weight, throttleReadBps, throttleWriteBps, throttleReadIOPS or throttleWriteIOPS", name)
		}
	}
	for _, device := range p.devices {
		if _, err := filepath.Match(device, ""); err != nil || !filepath.IsAbs(device) {
			return p, fmt.Errorf("device %q: must be an absolute path, with or without * and ?", device)
		}
	}
	if len(p.devices) == 0 && p.readBps+p.writeBps+p.readIOPS+p.writeIOPS > 0 {
		return p, errors.New("limits need devices")
	}
	return p, nil
}

// Apply sets what a class has in the resources of a container. Devices are those that the node has now.
func (c Classes) Apply(class string, r *container.Resources) error {
	list, ok := c[class]
	if !ok {
		return fmt.Errorf("there is no such class in blockio-config-file")
	}
	for _, p := range list {
		if len(p.devices) == 0 {
			r.BlkioWeight = p.weight
			continue
		}
		for _, pattern := range p.devices {
			paths, err := filepath.Glob(pattern)
			if err != nil {
				return err
			}
			found := 0
			for _, path := range paths {
				var st unix.Stat_t
				if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
					continue
				}
				found++
				p.apply(path, r)
			}
			if found == 0 {
				return fmt.Errorf("the node has no block device %s", pattern)
			}
		}
	}
	return nil
}

// apply sets the limits of one device. Of several for the same device the last one counts, as in the kernel.
func (p parameters) apply(path string, r *container.Resources) {
	if p.weight > 0 {
		r.BlkioWeightDevice = append(r.BlkioWeightDevice, &blkiodev.WeightDevice{Path: path, Weight: p.weight})
	}
	for _, limit := range []struct {
		list *[]*blkiodev.ThrottleDevice
		rate uint64
	}{
		{&r.BlkioDeviceReadBps, p.readBps}, {&r.BlkioDeviceWriteBps, p.writeBps}, {&r.BlkioDeviceReadIOps, p.readIOPS}, {&r.BlkioDeviceWriteIOps, p.writeIOPS},
	} {
		if limit.rate > 0 {
			*limit.list = append(*limit.list, &blkiodev.ThrottleDevice{Path: path, Rate: limit.rate})
		}
	}
}
