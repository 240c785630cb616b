// Command bench measures how fast a node is through the CRI, and what that
// costs: in one run a berthd, the same steps as bare calls to its Docker
// Engine and the same CNI plugins, and another CRI socket if one is given.
//
// What is absolute depends on the machine, and on who else uses it. The sides
// take turns, so that it is the same for all; the ratios are what to look at.
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

// A plan is what to measure, and on what.
type plan struct {
	Docker, Berthd             string // sockets
	Peer, PeerEngine           string // sockets, or empty
	Image, PeerImage           string // with a busybox in it
	CNIConf, CNIBin            string
	Rounds, Bursts, Burst      int
	Wide                       int // how many pods of a burst are begun at a time
	Pods                       []int
	Relist, Idle, Probing      time.Duration
	LogRounds, LogLines        int
	JSON, SVG, Again           string // files
	IdleContainers, ProbesEach int    // containers at rest; probes a minute
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

// run measures what args say and reports to out.
func run(ctx context.Context, args []string, out io.Writer) error {
	p, err := parse(args)
	if err != nil {
		return err
	}
	if p.Again != "" {
		r, err := load(p.Again)
		if err != nil {
			return err
		}
		return r.publish(p, out)
	}
	r, err := measure(ctx, p, os.Stderr)
	if err != nil {
		return err
	}
	return r.publish(p, out)
}

func parse(args []string) (*plan, error) {
	p := &plan{}
	pods := ""
	f := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	f.StringVar(&p.Docker, "docker", "unix:///var/run/docker.sock", "Docker Engine that berthd uses")
	f.StringVar(&p.Berthd, "berthd", "unix:///var/run/cri-dockerd.sock", "socket of berthd")
	f.StringVar(&p.Peer, "peer", "", "socket of another CRI runtime to measure")
	f.StringVar(&p.PeerEngine, "peer-engine", "", "Docker Engine that the peer uses, if it does")
	f.StringVar(&p.Image, "image", "busybox:latest", "image with a busybox; the Engine must have it")
	f.StringVar(&p.PeerImage, "peer-image", "", "the same for the peer, which pulls it if it has not (default that of --image)")
	f.StringVar(&p.CNIConf, "cni-conf", "/etc/cni/net.d", "CNI configuration for the bare calls")
	f.StringVar(&p.CNIBin, "cni-bin", "/opt/cni/bin", "CNI plugins for the bare calls")
	f.IntVar(&p.Rounds, "rounds", 20, "lives of a pod to measure, 0 for none")
	f.IntVar(&p.Bursts, "bursts", 3, "bursts to measure")
	f.IntVar(&p.Burst, "burst", 20, "pods of a burst")
	f.IntVar(&p.Wide, "wide", 10, "pods of a burst that are begun at a time")
	f.StringVar(&pods, "pods", "50", "numbers of pods to fill the node with, for example 50,110; 0 for none")
	f.DurationVar(&p.Relist, "relist", 30*time.Second, "how long to ask what a kubelet asks, 0 for not at all")
	f.DurationVar(&p.Idle, "idle", time.Minute, "how long to watch containers at rest, 0 for not at all")
	f.IntVar(&p.IdleContainers, "idle-containers", 100, "how many containers those are")
	f.DurationVar(&p.Probing, "probing", 30*time.Second, "how long to run exec probes, 0 for not at all")
	f.IntVar(&p.ProbesEach, "probes", 200, "exec probes a minute, over all pods")
	f.IntVar(&p.LogRounds, "log-rounds", 2, "times to measure what logs cost, 0 for none")
	f.IntVar(&p.LogLines, "log-lines", 1_000_000, "lines of 100 bytes that are printed for that")
	f.StringVar(&p.JSON, "json", "", "file to write all figures to")
	f.StringVar(&p.SVG, "svg", "", "file to draw a chart to")
	f.StringVar(&p.Again, "again", "", "file of --json to report once more, measuring nothing")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("what is %q? See --help", f.Arg(0))
	}
	for text := range strings.SplitSeq(pods, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("--pods %q: want numbers such as 50,110", pods)
		}
		if len(p.Pods) > 0 && n <= p.Pods[len(p.Pods)-1] {
			return nil, fmt.Errorf("--pods %q: want each number above the one before", pods)
		}
		if n > 0 {
			p.Pods = append(p.Pods, n)
		}
	}
	for name, n := range map[string]int{"wide": p.Wide, "burst": p.Burst, "probes": p.ProbesEach, "log-lines": p.LogLines} {
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
