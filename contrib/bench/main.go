// Command bench measures durations, CPU and memory of a node through the CRI. One run
// measures berthd, the same steps as bare calls to its Docker
// Engine and the same CNI plugins, and another CRI socket if one is given.
//
// Absolute values depend on the machine and its load. The sides alternate, so that
// conditions are equal for all; compare ratios.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

// A plan is what to measure, from the command line.
type plan struct {
	Docker, Berthd             string // sockets
	Peer, PeerEngine           string // sockets, or empty
	Image, PeerImage           string // with a busybox in it
	CNIConf, CNIBin            string
	Rounds, Bursts, Burst      int
	Parallel                   int // pods of a burst that are started in parallel
	Pods                       []int
	Shims                      []int // containers of the pods whose shims are measured, and nothing else
	Relist, Idle, Probing      time.Duration
	LogRounds, LogLines        int
	JSON, SVG, Load            string // files
	IdleContainers, ProbesEach int    // idle containers; exec probes per minute
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	switch {
	case errors.Is(err, pflag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures according to args and writes the report to out.
func run(ctx context.Context, args []string, out io.Writer) error {
	p, err := parse(args)
	if err != nil {
		return err
	}
	if p.Load != "" {
		r, err := load(p.Load)
		if err != nil {
			return err
		}
		return r.writeAll(p, out)
	}
	if len(p.Shims) > 0 {
		return measureShims(ctx, p, out, os.Stderr)
	}
	r, err := measure(ctx, p, os.Stderr)
	if err != nil {
		return err
	}
	return r.writeAll(p, out)
}

func parse(args []string) (*plan, error) {
	p := &plan{}
	pods, shims := "", ""
	f := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	f.StringVar(&p.Docker, "docker", "unix:///var/run/docker.sock", "Docker Engine that berthd uses")
	f.StringVar(&p.Berthd, "berthd", "unix:///var/run/cri-dockerd.sock", "socket of berthd")
	f.StringVar(&p.Peer, "peer", "", "socket of another CRI runtime to measure")
	f.StringVar(&p.PeerEngine, "peer-engine", "", "Docker Engine that the peer uses, if any")
	f.StringVar(&p.Image, "image", "busybox:latest", "image with a busybox; the Engine must have it")
	f.StringVar(&p.PeerImage, "peer-image", "", "the same for the peer, which pulls it if it is missing (default that of --image)")
	f.StringVar(&p.CNIConf, "cni-conf", "/etc/cni/net.d", "CNI configuration for the bare calls")
	f.StringVar(&p.CNIBin, "cni-bin", "/opt/cni/bin", "CNI plugins for the bare calls")
	f.IntVar(&p.Rounds, "rounds", 20, "number of pods to measure step by step, 0 for none")
	f.IntVar(&p.Bursts, "bursts", 3, "number of bursts to measure")
	f.IntVar(&p.Burst, "burst", 20, "pods per burst")
	f.IntVar(&p.Parallel, "wide", 10, "pods of a burst that are started in parallel")
	f.StringVar(&pods, "pods", "50", "numbers of pods for lists and relist, for example 50,110; 0 for none")
	f.StringVar(&shims, "shims", "0", "measure only the shims of pods with these numbers of containers, for example 1,2,4, with --rounds pods of each; print the figures")
	f.DurationVar(&p.Relist, "relist", 30*time.Second, "duration of a kubelet's relist calls, 0 to skip them")
	f.DurationVar(&p.Idle, "idle", time.Minute, "duration of the measurement of idle containers, 0 to skip it")
	f.IntVar(&p.IdleContainers, "idle-containers", 100, "number of idle containers")
	f.DurationVar(&p.Probing, "probing", 30*time.Second, "duration of exec probes, 0 to skip them")
	f.IntVar(&p.ProbesEach, "probes", 200, "exec probes per minute, over all pods")
	f.IntVar(&p.LogRounds, "log-rounds", 2, "number of measurements of the cost of logs, 0 for none")
	f.IntVar(&p.LogLines, "log-lines", 1_000_000, "lines of 100 bytes that each of these prints")
	f.StringVar(&p.JSON, "json", "", "file to write all samples to")
	f.StringVar(&p.SVG, "svg", "", "file to write a chart to")
	f.StringVar(&p.Load, "again", "", "file written by --json to report again, without measuring")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q: see --help", f.Arg(0))
	}
	var err error
	if p.Pods, err = numbers("pods", pods); err != nil {
		return nil, err
	}
	if p.Shims, err = numbers("shims", shims); err != nil {
		return nil, err
	}
	for name, n := range map[string]int{"wide": p.Parallel, "burst": p.Burst, "probes": p.ProbesEach, "log-lines": p.LogLines} {
		if n < 1 {
			return nil, fmt.Errorf("--%s %d: want at least 1", name, n)
		}
	}
	for name, socket := range map[string]string{"docker": p.Docker, "berthd": p.Berthd, "peer": p.Peer, "peer-engine": p.PeerEngine} {
		if socket != "" && !strings.HasPrefix(socket, "unix://") {
			return nil, fmt.Errorf("--%s %q: want unix:///path", name, socket)
		}
	}
	if p.PeerImage == "" {
		p.PeerImage = p.Image
	}
	return p, nil
}

// numbers parses increasing numbers, separated by commas; 0 stands for an empty list.
func numbers(flag, text string) (list []int, err error) {
	for word := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("--%s %q: want numbers such as 50,110", flag, text)
		}
		if len(list) > 0 && n <= list[len(list)-1] {
			return nil, fmt.Errorf("--%s %q: want increasing numbers", flag, text)
		}
		if n > 0 {
			list = append(list, n)
		}
	}
	return list, nil
}
