package netns

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"
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
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/net/dev")
	if err != nil {
		return nil, err
	}
	return parseTraffic(data)
}

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
		fields := bytes.Fields(values)
		if len(fields) < 12 {
			return nil, fmt.Errorf("counters of %s: want at least 12 fields: %q", c.Name, values)
		}
		for i, counter := range map[int]*uint64{
			0: &c.RxBytes, 1: &c.RxPackets, 2: &c.RxErrors, 3: &c.RxDropped,
			8: &c.TxBytes, 9: &c.TxPackets, 10: &c.TxErrors, 11: &c.TxDropped,
		} {
			value, err := strconv.ParseUint(string(fields[i]), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("counters of %s: %w", c.Name, err)
			}
			*counter = value
		}
		all = append(all, c)
	}
	return all, nil
}
