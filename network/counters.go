package network

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Counters are what has gone through an interface since it was made.
type Counters struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Traffic returns the counters of all interfaces but loopback in the network
// namespace of the process pid. The error is of kind fs.ErrNotExist if there is
// no such process.
//
// It reads a file of the process rather than asking netlink, which would have
// to enter the namespace: the kubelet asks for all pods every few seconds.
func Traffic(pid int) ([]Counters, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/net/dev")
	if err != nil {
		return nil, err
	}
	return parseTraffic(data)
}

// parseTraffic reads /proc/<pid>/net/dev.
func parseTraffic(data []byte) ([]Counters, error) {
	var all []Counters
	for line := range bytes.Lines(data) {
		name, rest, ok := bytes.Cut(line, []byte{':'})
		if !ok {
			continue // the head of the table
		}
		c := Counters{Name: string(bytes.TrimSpace(name))}
		if c.Name == "lo" {
			continue
		}
		if !utf8.ValidString(c.Name) {
			// The kernel takes any bytes from whoever may name an interface, in a
			// pod too; what hears of it speaks UTF-8 only.
			c.Name = strings.Trim(strconv.Quote(c.Name), `"`)
		}
		fields := bytes.Fields(rest)
		if len(fields) < 12 {
			return nil, fmt.Errorf("counters of %s: %q", c.Name, rest)
		}
		for i, to := range map[int]*uint64{
			0: &c.RxBytes, 1: &c.RxPackets, 2: &c.RxErrors, 3: &c.RxDropped,
			8: &c.TxBytes, 9: &c.TxPackets, 10: &c.TxErrors, 11: &c.TxDropped,
		} {
			n, err := strconv.ParseUint(string(fields[i]), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("counters of %s: %w", c.Name, err)
			}
			*to = n
		}
		all = append(all, c)
	}
	return all, nil
}
