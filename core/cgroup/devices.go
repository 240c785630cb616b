package cgroup

import (
	"bytes"
	"errors"
	"io/fs"
	"strconv"
	"strings"
)

// A Device is what has been read from a block device and written to it.
type Device struct {
	Major, Minor string
	// Bytes and Requests are by operation: Read, Write, and what else the kernel
	// tells.
	Bytes, Requests map[string]uint64
}

// Devices returns what g has done with block devices, in the order of the
// kernel; nothing where that is not counted.
func Devices(g Group) ([]Device, error) {
	if g.V2 != "" {
		data, err := read(g.V2+"/io.stat", make([]byte, 4096))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return devicesV2(data), err
	}
	dir, ok := g.V1["blkio"]
	if !ok {
		return nil, nil
	}
	var all devices
	for file, of := range map[string]func(*Device) map[string]uint64{
		"blkio.throttle.io_service_bytes": func(d *Device) map[string]uint64 { return d.Bytes },
		"blkio.throttle.io_serviced":      func(d *Device) map[string]uint64 { return d.Requests },
	} {
		// What is below counts too. Old kernels tell of the group alone.
		data, err := read(dir+"/"+file+"_recursive", make([]byte, 4096))
		if errors.Is(err, fs.ErrNotExist) {
			data, err = read(dir+"/"+file, make([]byte, 4096))
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for line := range bytes.Lines(data) {
			fields := strings.Fields(string(line)) // 8:0 Read 123
			if len(fields) != 3 {
				continue // the sum of all
			}
			if n, err := strconv.ParseUint(fields[2], 10, 64); err == nil {
				of(all.device(fields[0]))[fields[1]] = n
			}
		}
	}
	return all, nil
}

// devicesV2 reads io.stat: 8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6.
func devicesV2(data []byte) []Device {
	var all devices
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		if len(fields) < 2 {
			continue // a device that has gone
		}
		d := all.device(fields[0])
		for _, f := range fields[1:] {
			key, value, _ := strings.Cut(f, "=")
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				continue
			}
			switch key {
			case "rbytes":
				d.Bytes["Read"] = n
			case "wbytes":
				d.Bytes["Write"] = n
			case "dbytes":
				d.Bytes["Discard"] = n
			case "rios":
				d.Requests["Read"] = n
			case "wios":
				d.Requests["Write"] = n
			case "dios":
				d.Requests["Discard"] = n
			}
		}
	}
	return all
}

type devices []Device

// device returns the one that the kernel calls number, as 8:0.
func (all *devices) device(number string) *Device {
	major, minor, _ := strings.Cut(number, ":")
	for i := range *all {
		if d := &(*all)[i]; d.Major == major && d.Minor == minor {
			return d
		}
	}
	*all = append(*all, Device{Major: major, Minor: minor, Bytes: map[string]uint64{}, Requests: map[string]uint64{}})
	return &(*all)[len(*all)-1]
}
