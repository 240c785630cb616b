// Package network attaches pods to the node's CNI network.
//
// A [CNI] runs the plugins of the network that the node's operator has configured: ADD
// for new pods, DEL for stopped ones, GC and STATUS where plugins have them (CNI 1.1). It
// owns the pods' network namespaces (package netns) and follows the configuration (package
// cniconf). Operations on one pod are serialized; pods do not wait for each other.
//
// It keeps no state of its own on disk. Attachments are in libcni's cache directory, in
// the form that cri-dockerd used, so that each can detach what the other has attached. A
// [Plan] is kept by the caller.
package network

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"

	"berth/core/kmutex"
	"berth/network/cniconf"
	"berth/network/cnitemplate"
	"berth/network/netns"
)

const (
	// ifName is the interface of every pod.
	ifName = "eth0"

	// operationTimeout bounds one ADD or DEL of a whole list of plugins. It is the value
	// of cri-dockerd, and leaves time to clean up within the kubelet's four minutes.
	operationTimeout = 220 * time.Second
	// gcTimeout bounds one GC.
	gcTimeout = time.Minute
	// gcGrace is how long Attach waits for a GC before it cancels it. Plugins look through
	// their own tables, which takes milliseconds.
	gcGrace = 2 * time.Second
)

// Config is what an operator can configure. All paths are absolute.
type Config struct {
	// ConfDir is the directory of network configurations. It need not exist yet.
	ConfDir string
	// BinDirs are the directories of plugins, the first match wins.
	BinDirs []string
	// CacheDir is libcni's cache directory, where it records attachments.
	CacheDir string
	// RunDir is for state that need not survive a reboot.
	RunDir string
	// NetNSDir is where network namespaces are bound, each in a file named for its pod.
	// Other programs may use the directory too. Empty means RunDir/netns, where earlier
	// versions bound them and where they are found in any case.
	//
	// Plugins are given these paths. Network agents that run in containers can open them
	// only in directories that they mount, and the one that they commonly mount, with
	// propagation, is /var/run/netns.
	NetNSDir string
	// PodCIDR is the initial value of SetPodCIDR.
	PodCIDR string
	// DefaultNetwork is the name of the network of pods, "" for the first one by file name.
	DefaultNetwork string
	// Template makes a configuration of the pod CIDR while ConfDir has no other. It may be nil.
	Template *cnitemplate.Template
	// Generated keeps what is known of the file that Template has made. If it is nil, no file
	// is written or removed.
	Generated cnitemplate.Record
}

// A CNI attaches pods to the network. Its methods may be called concurrently. Run keeps
// its configuration current.
type CNI struct {
	cacheDir string
	log      *slog.Logger
	lib      *libcni.CNIConfig
	conf     *cniconf.Dir
	netns    *netns.Store
	podLocks kmutex.Mutex // by pod ID, held by Attach, Detach and Forget

	statusTimeout time.Duration // for STATUS of all plugins

	mu        sync.Mutex // guards following
	subnets   []netip.Prefix
	attached  map[string]bool         // pods that were given to Attach, and not yet released
	addresses map[string][]netip.Addr // of attached pods, by pod ID
	detached  recentIDs               // pods that have nothing left to detach
	gc        *gcRun                  // the GC in progress, or nil
	health    map[*cniconf.Network]*health
}

// New returns a CNI with the configuration that there is now. Missing files or plugins
// are not an error, see Status.
func New(cfg Config, log *slog.Logger) *CNI {
	legacyDir := filepath.Join(cfg.RunDir, "netns")
	if cfg.NetNSDir == "" {
		cfg.NetNSDir = legacyDir
	}
	n := &CNI{
		cacheDir: filepath.Clean(cfg.CacheDir),
		log:      log,
		netns:    netns.New(netns.Config{Dir: cfg.NetNSDir, LegacyDir: legacyDir, Log: log}),

		statusTimeout: statusTimeout,

		attached:  map[string]bool{},
		addresses: map[string][]netip.Addr{},
		health:    map[*cniconf.Network]*health{},
	}
	n.lib = libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, n.cacheDir, &pluginExec{log: log})
	subnets, err := parseCIDRs(cfg.PodCIDR)
	if err != nil {
		log.Warn("the configured pod CIDR is ignored", slog.Any("err", err))
	}
	n.subnets = subnets
	n.conf = cniconf.New(cniconf.Config{
		Dir: cfg.ConfDir, BinDirs: cfg.BinDirs, DefaultNetwork: cfg.DefaultNetwork, Generate: n.generator(cfg), Log: log,
	})
	return n
}

// generator returns the function that keeps the configuration of cfg.Template, or nil.
func (n *CNI) generator(cfg Config) func() error {
	if cfg.Generated == nil {
		return nil
	}
	g := cnitemplate.New(cnitemplate.Config{
		Dir: cfg.ConfDir, Template: cfg.Template, DefaultNetwork: cfg.DefaultNetwork, Record: cfg.Generated, Log: n.log,
	})
	return func() error { return g.Sync(n.podCIDR()) }
}

// Run keeps the configuration current until ctx ends. It returns nil.
func (n *CNI) Run(ctx context.Context) error { return n.conf.Run(ctx) }

// Bind keeps the network namespace of the process pid for the pod id, by a bind mount that
// outlives the process, and returns its path. It is idempotent; another namespace that is
// bound for the pod is unbound first. The error is of kind FailedPrecondition if the
// process has ended, or is in the network namespace of the daemon.
func (n *CNI) Bind(id string, pid int) (string, error) { return n.netns.Bind(id, pid) }

// Bound returns the IDs of all pods whose network namespaces are bound.
func (n *CNI) Bound() ([]string, error) { return n.netns.List() }

// InNetNS reports whether the process pid is in the network namespace that is bound for
// the pod id. It is true for pods without a bind mount, such as those of cri-dockerd.
func (n *CNI) InNetNS(id string, pid int) bool { return n.netns.Contains(id, pid) }

// NetNS returns a path of the network namespace of the pod id, in which the process pid runs.
func (n *CNI) NetNS(id string, pid int) string { return n.netns.PathOrProcess(id, pid) }

// Dial connects to a TCP port on the loopback interface of the pod id, whose pause process
// is pid.
func (n *CNI) Dial(ctx context.Context, id string, pid, port int) (net.Conn, error) {
	return n.netns.Dial(ctx, id, pid, port)
}
