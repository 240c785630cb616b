package netns

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"berth/core/kernelfile"
)

// Counters are the totals of a network interface since it was created.
type Counters struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Traffic returns the counters of all interfaces except lo in the network namespace of the
// process pid. The error is of kind fs.ErrNotExist if there is no such process.
//
// It reads /proc/PID/net/dev and not netlink, which would have to enter the namespace: the
// kubelet asks for the statistics of all pods every few seconds.
func Traffic(pid int) ([]Counters, error) {
	buffer := buffers.Get().(*[bufferSize]byte) //nolint:forcetypeassert // the pool has no others
	defer buffers.Put(buffer)
	data, err := kernelfile.Read("/proc/"+strconv.Itoa(pid)+"/net/dev", buffer[:])
	if err != nil {
		return nil, err
	}
	return parseTraffic(data)
}

// bufferSize is enough for the counters of about 60 interfaces.
const bufferSize = 8192

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// parseTraffic parses the content of /proc/PID/net/dev (proc(5)). procfs.NetDev would parse
// all 16 columns into a map, for each pod and every few seconds.
func parseTraffic(data []byte) ([]Counters, error) {
	var all []Counters
	for line := range bytes.Lines(data) {
		name, values, ok := bytes.Cut(line, []byte{':'})
		if !ok {
			continue // one of the two header lines
		}
		c := Counters{Name: string(bytes.TrimSpace(name))}
		if c.Name == "lo" {
			continue
		}
		if !utf8.ValidString(c.Name) {
			// The kernel accepts any bytes in a name, also from within a pod; protobuf and
			// Prometheus accept UTF-8 only.
			c.Name = strings.Trim(strconv.Quote(c.Name), `"`)
		}
		columns := [...]*uint64{
			&c.RxBytes, &c.RxPackets, &c.RxErrors, &c.RxDropped, nil, nil, nil, nil,
			&c.TxBytes, &c.TxPackets, &c.TxErrors, &c.TxDropped,
		}
		n := 0
		for field := range bytes.FieldsSeq(values) {
			if n == len(columns) {
				break
			}
			if to := columns[n]; to != nil {
				value, err := strconv.ParseUint(string(field), 10, 64)
				if err != nil {
					return nil, fmt.Errorf("counters of %s: %w", c.Name, err)
				}
				*to = value
			}
			n++
		}
		if n < len(columns) {
			return nil, fmt.Errorf("counters of %s: want at least %d fields: %q", c.Name, len(columns), values)
		}
		all = append(all, c)
	}
	return all, nil
}
