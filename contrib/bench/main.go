// Command bench measures durations, CPU and memory of a node through the CRI. One run
// measures berthd, the same steps as bare calls to its Docker
// Engine and the same CNI plugins, and other CRI sockets, the peers, if they are given.
// A history of runs shows what got worse.
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
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

// A plan is what to measure, from the command line.
type plan struct {
	Docker                     string // socket
	Berth                      runtimePlan
	Peers                      []runtimePlan
	Image                      string // with a busybox in it
	CNIConf, CNIBin            string
	HostNetwork                bool
	Rounds, Bursts, Burst      int
	Parallel                   int   // pods of a burst that are started in parallel
	Pods                       []int // for lists and relist
	Shims                      []int // containers of the pods whose shims are measured, and nothing else
	Density                    []int // pods of the nodes that are measured, and nothing else
	Streams                    int   // MB of the transfers that are measured, and nothing else
	Restarts                   int   // of a runtime with so many pods
	Relist, Idle, Probing      time.Duration
	RelistRounds               int
	LogRounds, LogLines        int
	JSON, SVG, Load            string // files
	Page, History              string
	Check                      bool
	OnlyLoadPause              bool
	Flags                      string // further flags of berthd
	IdleContainers, ProbesEach int    // idle containers; exec probes per minute
}

// A runtimePlan is a runtime to measure.
type runtimePlan struct {
	Name, Socket string
	Engine       string // socket of its Docker Engine, or empty
	Image        string // with a busybox in it
	About        string // what it is, with its version; empty for what it reports
	HostNetwork  bool
	UserNS       bool // its pods have user namespaces
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process without removing pods
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	switch {
	case errors.Is(err, pflag.ErrHelp):
	case errors.Is(err, errWorse):
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "bench: interrupted:", err)
		os.Exit(130) // as a shell reports Ctrl-C
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
	var r *Report
	switch {
	case p.OnlyLoadPause:
		docker, _, err := connectEngine(ctx, p.Docker)
		if err != nil {
			return err
		}
		return errors.Join(loadPause(ctx, docker), docker.Close())
	case p.Load != "":
		r, err = load(p.Load)
	default:
		r, err = measure(ctx, p, os.Stderr)
	}
	if err != nil {
		return err
	}
	if err := r.writeAll(p, out); err != nil {
		return err
	}
	return r.keep(p, out)
}

// named are the values of flags that are given for each runtime: NAME=VALUE, or VALUE for all.
type named struct {
	peers, engines, images, about, userNS []string
}

func parse(args []string) (*plan, error) {
	p := &plan{Berth: runtimePlan{Name: "berth"}}
	pods, shims, density := "", "", ""
	var n named
	f := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	f.StringVar(&p.Docker, "docker", "unix:///var/run/docker.sock", "Docker Engine that berthd uses")
	f.StringVar(&p.Berth.Socket, "berthd", "unix:///var/run/cri-dockerd.sock", "socket of berthd")
	f.StringArrayVar(&n.peers, "peer", nil, "another CRI runtime to measure, as NAME=unix:///SOCKET; may be repeated")
	f.StringArrayVar(&n.engines, "peer-engine", nil, "Docker Engine that a peer uses, if any, as NAME=unix:///SOCKET")
	f.StringVar(&p.Image, "image", "busybox:latest", "image with a busybox; the Engine must have it")
	f.StringArrayVar(&n.images, "peer-image", nil, "the same for a peer, as NAME=IMAGE or for all; it pulls it if it is missing (default that of --image)")
	f.StringArrayVar(&n.about, "about", nil, "what the report has as description of berth or a peer, as NAME=TEXT (default what it reports)")
	f.StringArrayVar(&n.userNS, "user-namespaces", nil, "name of a peer whose pods get user namespaces; it may have the socket of another one")
	f.StringVar(&p.Flags, "berthd-flags", "", "flags of berthd, for the report: runs with others are not compared")
	f.StringVar(&p.CNIConf, "cni-conf", "/etc/cni/net.d", "CNI configuration for the bare calls")
	f.StringVar(&p.CNIBin, "cni-bin", "/opt/cni/bin", "CNI plugins for the bare calls")
	f.IntVar(&p.Rounds, "rounds", 20, "number of pods to measure step by step, 0 for none")
	f.IntVar(&p.Bursts, "bursts", 5, "number of bursts to measure")
	f.IntVar(&p.Burst, "burst", 20, "pods per burst")
	f.IntVar(&p.Parallel, "wide", 10, "pods of a burst that are started in parallel")
	f.StringVar(&pods, "pods", "50", "numbers of pods for lists and relist, for example 50,110; 0 for none")
	f.StringVar(&shims, "shims", "0", "measure only the shims of pods with these numbers of containers, for example 1,2,4, with --rounds pods of each")
	f.StringVar(&density, "density", "0", "measure only nodes with these numbers of pods, for example 110,250,500; restarts the runtimes, so only for private ones")
	f.IntVar(&p.Streams, "streams", 0, "measure only exec, attach and port-forward with so many MB each, --rounds times")
	f.BoolVar(&p.HostNetwork, "host-network", false, "pods are in the network of the node; --streams implies it, and --shims without --user-namespaces")
	f.IntVar(&p.Restarts, "restarts", 5, "restarts of each runtime with --density")
	f.DurationVar(&p.Relist, "relist", 30*time.Second, "duration of a kubelet's relist calls, 0 to skip them")
	f.IntVar(&p.RelistRounds, "relist-rounds", 3, "number of measurements of that duration")
	f.DurationVar(&p.Idle, "idle", time.Minute, "duration of the measurement of idle containers, 0 to skip it")
	f.IntVar(&p.IdleContainers, "idle-containers", 100, "number of idle containers")
	f.DurationVar(&p.Probing, "probing", 30*time.Second, "duration of exec probes, 0 to skip them")
	f.IntVar(&p.ProbesEach, "probes", 200, "exec probes per minute, over all pods")
	f.IntVar(&p.LogRounds, "log-rounds", 5, "number of measurements of the cost of logs, 0 for none")
	f.IntVar(&p.LogLines, "log-lines", 1_000_000, "lines of 100 bytes that each of these prints")
	f.StringVar(&p.JSON, "json", "", "file to write all samples to")
	f.StringVar(&p.SVG, "svg", "", "file to write a chart to")
	f.StringVar(&p.Page, "page", "", "Markdown page that has a place for the report, such as contrib/docs/bench.md; the chart is written beside it")
	f.StringVar(&p.Load, "again", "", "file written by --json to report again, without measuring")
	f.StringVar(&p.History, "history", "", "file with one line per run; the run is compared with the last one of the same machine, Engine and settings, and added")
	f.BoolVar(&p.Check, "check", false, "fail, and do not add the run to the history, if a row is worse than in the history by more than both spreads")
	f.BoolVar(&p.OnlyLoadPause, "load-pause", false, "only load the pause image of berth into the Engine, from which it can be copied to a peer")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q: see --help", f.Arg(0))
	}
	for _, list := range []struct {
		flag, text string
		to         *[]int
	}{{"pods", pods, &p.Pods}, {"shims", shims, &p.Shims}, {"density", density, &p.Density}} {
		var err error
		if *list.to, err = numbers(list.flag, list.text); err != nil {
			return nil, err
		}
	}
	return p, errors.Join(p.complete(n), p.verify())
}

// complete adds the peers.
func (p *plan) complete(n named) (err error) {
	p.HostNetwork = p.HostNetwork || len(p.Shims) > 0 && len(n.userNS) == 0 || p.Streams > 0
	p.Berth.Image, p.Berth.Engine, p.Berth.HostNetwork = p.Image, p.Docker, p.HostNetwork
	for _, text := range n.peers {
		name, socket, ok := strings.Cut(text, "=")
		if !ok {
			name, socket = "peer", text
		}
		p.Peers = append(p.Peers, runtimePlan{Name: name, Socket: socket, Image: p.Image, HostNetwork: p.HostNetwork})
	}
	set := func(flag string, values []string, forAll bool, field func(r *runtimePlan) *string) {
		for _, text := range values {
			name, value, ok := strings.Cut(text, "=")
			if !ok {
				name, value = "", text
			}
			found := false
			for _, r := range p.runtimes() {
				if r.Name == name || name == "" && forAll && r.Name != "berth" || name == "" && r.Name == "peer" {
					*field(r), found = value, true
				}
			}
			if !found && err == nil {
				err = fmt.Errorf("--%s %q: no runtime of that name is given with --peer", flag, text)
			}
		}
	}
	set("peer-engine", n.engines, false, func(r *runtimePlan) *string { return &r.Engine })
	set("peer-image", n.images, true, func(r *runtimePlan) *string { return &r.Image })
	set("about", n.about, false, func(r *runtimePlan) *string { return &r.About })
	for _, name := range n.userNS {
		i := slices.IndexFunc(p.Peers, func(r runtimePlan) bool { return r.Name == name })
		if i < 0 {
			return errors.Join(err, fmt.Errorf("--user-namespaces %q: no runtime of that name is given with --peer", name))
		}
		p.Peers[i].UserNS = true
	}
	return err
}

// runtimes returns berth and the peers.
func (p *plan) runtimes() []*runtimePlan {
	all := []*runtimePlan{&p.Berth}
	for i := range p.Peers {
		all = append(all, &p.Peers[i])
	}
	return all
}

// userNS reports whether pods of a peer get user namespaces.
func (p *plan) userNS() bool {
	return slices.ContainsFunc(p.Peers, func(r runtimePlan) bool { return r.UserNS })
}

// peerName matches names of peers. They are words in the table and in the chart.
var peerName = regexp.MustCompile(`^[a-z][a-z0-9.-]*$`)

// verify returns an error for values that cannot be measured.
func (p *plan) verify() error {
	for name, n := range map[string]int{"wide": p.Parallel, "burst": p.Burst, "probes": p.ProbesEach, "log-lines": p.LogLines, "relist-rounds": p.RelistRounds, "restarts": p.Restarts} {
		if n < 1 {
			return fmt.Errorf("--%s %d: want at least 1", name, n)
		}
	}
	sockets := map[string]string{"docker": p.Docker, "berthd": p.Berth.Socket}
	names := map[string]bool{"bare": true, "berth": true}
	for _, r := range p.Peers {
		if !peerName.MatchString(r.Name) || names[r.Name] {
			return fmt.Errorf("--peer %s=%s: want a name of its own, of lower-case letters, digits, dots and hyphens", r.Name, r.Socket)
		}
		names[r.Name] = true
		sockets["peer "+r.Name], sockets["peer-engine "+r.Name] = r.Socket, r.Engine
	}
	for name, socket := range sockets {
		if socket != "" && !strings.HasPrefix(socket, "unix://") {
			return fmt.Errorf("--%s %q: want unix:///path", name, socket)
		}
	}
	modes := 0
	for _, chosen := range []bool{len(p.Shims) > 0, len(p.Density) > 0, p.Streams > 0} {
		if chosen {
			modes++
		}
	}
	switch {
	case p.Check && p.History == "":
		return errors.New("--check needs --history FILE")
	case modes > 1:
		return errors.New("--shims, --density and --streams are runs of their own: give one of them")
	case (len(p.Shims) > 0 || p.Streams > 0) && p.Rounds == 0:
		return errors.New("--shims and --streams need --rounds of at least 1")
	case p.HostNetwork && p.userNS():
		return errors.New("--user-namespaces needs pods with a network of their own: not with --host-network or --streams")
	case p.Streams < 0:
		return fmt.Errorf("--streams %d: want at least 0", p.Streams)
	}
	return nil
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
