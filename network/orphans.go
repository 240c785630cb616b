package network

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

const (
	// orphanRounds is how often EndOrphans looks for plugins: one that it kills may just have started another.
	orphanRounds = 3
	// orphanTimeout is how long a killed plugin may take to end, which it does not while it waits for a device.
	orphanTimeout = time.Second
)

// EndOrphans kills the plugins of pods that an earlier daemon has left running because it was killed. It is called once, before
// plugins are run: what an orphan does after the DEL of its pod, such as allocating an address, would never be undone.
//
// An orphan is known by its network namespace, which berth has named (CNI_NETNS; the plugins that it runs have it too). A
// process of a container that claims to be one is not killed unless it is in the node's PID namespace.
func (n *CNI) EndOrphans() {
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		n.log.Warn("cannot look for plugins that an earlier berthd has left behind", slog.Any("err", err))
		return
	}
	for range orphanRounds {
		processes, err := procfs.AllProcs()
		if err != nil {
			n.log.Warn("cannot look for plugins that an earlier berthd has left behind", slog.Any("err", err))
			return
		}
		killed := 0
		for _, p := range processes {
			if n.killOrphan(p, own) {
				killed++
			}
		}
		if killed == 0 {
			return
		}
	}
}

// killOrphan kills the process if it is an orphan in the PID namespace own, and waits until it has ended.
func (n *CNI) killOrphan(p procfs.Proc, own string) bool {
	if !n.isPlugin(p) {
		return false
	}
	pidfd, err := unix.PidfdOpen(p.PID, 0) // keeps referring to this process even if the PID is reused
	if err != nil {
		return false // it has ended
	}
	defer unix.Close(pidfd)
	pidNS, err := os.Readlink("/proc/" + strconv.Itoa(p.PID) + "/ns/pid")
	if err != nil || pidNS != own || !n.isPlugin(p) {
		return false
	}
	name, err := p.Comm()
	if err == nil {
		err = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
	}
	if err != nil {
		n.log.Warn("plugin of an earlier berthd not killed", slog.Int("pid", p.PID), slog.Any("err", err))
		return false
	}
	n.log.Info("killed a plugin that an earlier berthd has left behind", slog.String("plugin", name), slog.Int("pid", p.PID))
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(orphanTimeout/time.Millisecond)) // readable once it has ended
	return true
}

// isPlugin reports whether a process was started as a plugin for a pod of this node's berth.
func (n *CNI) isPlugin(p procfs.Proc) bool {
	environment, err := p.Environ()
	if err != nil {
		return false // it has ended
	}
	return slices.ContainsFunc(environment, func(variable string) bool {
		path, ok := strings.CutPrefix(variable, "CNI_NETNS=")
		return ok && filepath.IsAbs(path) && n.netns.Names(path)
	})
}
