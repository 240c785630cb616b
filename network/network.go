// Package network gives pods their network. It runs the CNI plugins that the
// node's operator configured, holds pods' network namespaces by bind mounts of
// its own, knows the pods' addresses and dials into their namespaces.
//
// What has to be kept is kept by others: attachments by libcni, in its cache
// directory, in the same form that cri-dockerd used, so that either can detach
// what the other attached; a [Plan] by whoever asked for it.
package network

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
)

const (
	// ifName is the interface that every pod has.
	ifName = "eth0"

	// operationLimit bounds one ADD or DEL of a whole chain of plugins. It is
	// cri-dockerd's, and leaves the kubelet's four minutes room to clean up.
	operationLimit = 220 * time.Second
	// gcLimit bounds one GC.
	gcLimit = time.Minute
	// gcGrace is how long Attach waits for a GC before it stops it. Plugins look through
	// their own tables, which takes milliseconds.
	gcGrace = 2 * time.Second
)

// Config is what an operator can choose about the network. All paths are
// absolute.
type Config struct {
	// ConfDir is where network configurations are looked for. It need not
	// exist yet.
	ConfDir string
	// BinDirs are where plugins are looked for, first match wins.
	BinDirs []string
	// CacheDir is where libcni keeps what it attached.
	CacheDir string
	// RunDir is for state that need not survive a reboot.
	RunDir string
	// NetNSDir is where network namespaces are bind-mounted, each under a name
	// of ours; others may keep theirs there too, but no other CNI. Empty means
	// RunDir/netns. What is bound in RunDir/netns is found there in any case.
	//
	// Plugins are told these paths. Network agents that run in containers see
	// them only where they mount them, and what they commonly mount, with
	// propagation, is /var/run/netns.
	NetNSDir string
	// PodCIDR is the first value for SetPodCIDR.
	PodCIDR string
}

// A CNI is the pods' network as its configuration comes and goes. Run keeps it
// current. Its methods may be called concurrently; those that change one pod
// take turns.
type CNI struct {
	confDir  string
	binDirs  []string
	cacheDir string
	netnsDir string // where network namespaces are bound
	olderDir string // where they were in earlier versions; may be the same
	log      *slog.Logger
	lib      *libcni.CNIConfig

	statusTimeout time.Duration // of the STATUS of all plugins

	found atomic.Pointer[findings] // what is in confDir
	turns turns                    // one operation per pod at a time

	mounting sync.Mutex // guards mounted
	mounted  bool       // netnsDir has been prepared

	mu       sync.Mutex              // guards following
	subnets  []netip.Prefix          // what SetPodCIDR was told
	attached map[string]bool         // ids that Attach was called for and Detach was not
	known    map[string][]netip.Addr // addresses of attached ids
	detached recent                  // ids that have nothing left to detach
	gc       *collection             // the GC under way; nil without one
}

// New returns a CNI that knows the configuration there is now. That files or
// plugins are missing is no failure, see Status.
func New(cfg Config, log *slog.Logger) *CNI {
	older := filepath.Join(cfg.RunDir, "netns")
	if cfg.NetNSDir == "" {
		cfg.NetNSDir = older
	}
	n := &CNI{
		confDir:  filepath.Clean(cfg.ConfDir),
		binDirs:  cfg.BinDirs,
		cacheDir: filepath.Clean(cfg.CacheDir),
		// Symbolic links in it stay: agents look for the very text
		// /var/run/netns, which is /run/netns on most systems.
		netnsDir: filepath.Clean(cfg.NetNSDir),
		olderDir: older,
		log:      log,

		statusTimeout: statusTimeout,

		attached: map[string]bool{},
		known:    map[string][]netip.Addr{},
	}
	n.lib = libcni.NewCNIConfigWithCacheDir(n.binDirs, n.cacheDir, &plugins{log: log})
	if err := n.SetPodCIDR(cfg.PodCIDR); err != nil {
		log.Warn("the address range of pods is not known", slog.Any("err", err))
	}
	n.reload()
	return n
}
