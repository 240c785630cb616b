// Package config holds the configuration of berthd: what an operator can set, the defaults and the
// checks of all values.
//
// Options is the main type. Each option is a command-line flag and a key of the same name
// in the configuration file. Load applies, in this order, the defaults, the configuration file, the
// drop-in files config.d/*.yaml beside it by name, and the command line; the last one
// wins. The result is a Config. Errors in what the operator wrote are UsageErrors: one line that
// names the flag, or the file and the line, with the value and what is allowed.
package config

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"berth/core/engine"
	"berth/core/image/pinning"
	"berth/core/podpolicy"
	"berth/core/restore"
	"berth/core/specfiles"
	"berth/streaming"
)

// DefaultFile is the configuration file that is read unless --config names another.
const DefaultFile = "/etc/berth/config.yaml"

// DefaultRunDir is the run-dir of the one berthd that a node should have.
const DefaultRunDir = "/run/berth"

// NoCNI is the network plugin for pods on Docker's own bridge.
const NoCNI = "no-op"

// defaultRequestTimeout is what runtime-request-timeout 0 means.
const defaultRequestTimeout = engine.DefaultTimeout

// Config is the configuration of the daemon: one field for each option that has an effect.
type Config struct {
	Endpoint       string // unix:///PATH, fd:// or fd://NAME
	DockerEndpoint string // empty: DOCKER_HOST of the environment
	PauseImage     string
	NetworkPlugin  string // cni or NoCNI
	CNIConfDir     string
	CNIBinDirs     []string
	CNICacheDir    string
	// CNIDefaultNetwork is the name of the network of pods, "" for the first one by file name.
	CNIDefaultNetwork string
	// CNIConfTemplate is cnitemplate.Bridge or the path of a template, "" for none.
	CNIConfTemplate string
	PodCIDR         string // address ranges separated by commas, or empty
	RootDir         string
	RunDir          string
	DebugSocket     string        // path, relative to RunDir; empty for none
	PullProgress    time.Duration // a pull without progress for so long is cancelled
	ContainerLogs   string        // cri, symlink or follow
	LogBuffer       string        // local or json-file, for ContainerLogs cri
	RequestTimeout  time.Duration // of short Engine calls
	StreamingAddr   string        // host and port; port 0 for any
	StreamingTLS    streaming.TLSFiles
	MetricsAddr     string // host and port, or empty for none
	Profiles        bool   // serve profiles at MetricsAddr
	Tracing         Tracing
	LogLevel        string // see SlogLevel
	LogFormat       string // text or json

	OCIAnnotations   []string // GLOB or RUNTIME=GLOB
	AllowAnnotations []string // ANNOTATION=NAMESPACE
	ShimRuntimes     []string // SHIM or HANDLER=SHIM
	ShimPerPod       bool     // the containers of a pod share one process of containerd's shim

	// The following need berth's OCI runtime.
	DeviceOwnership    bool     // devices belong to the user and group of the security context
	PodUTSNamespace    bool     // the containers of a pod share its UTS namespace
	WithoutHostDevices []string // handlers whose privileged containers do not get the devices of the node
	SpecDir            string   // directory of patches of OCI specs, or empty for none
	HooksDirs          []string // directories of OCI hooks
	RestoreArchiveDir  string   // directory of checkpoints, or empty for none
	RestoreImages      []string // globs of images that are checkpoints

	NodeCredentials bool // use the node's registry credentials for pulls that bring none

	KeepLocalImages bool     // pin images that no registry has and those of containers outside of pods
	PinnedImages    []string // globs of images that are pinned
	PinLabels       string   // built, all or none

	RegistryMirrors []string // each as HOST=MIRROR
	VerifierDir     string   // directory of image verifiers, or empty for none
	VerifierTimeout time.Duration
	VerifierMax     int // negative for no limit

	CDIAnnotations bool // annotations of containers request CDI devices
	CDISpecDirs    []string

	NRI NRI
}

// PodOptions returns what pods may have beyond the CRI.
func (c Config) PodOptions() podpolicy.Options {
	return podpolicy.Options{
		OCIAnnotations: c.OCIAnnotations, AllowAnnotations: c.AllowAnnotations, ShimRuntimes: c.ShimRuntimes, ShimPerPod: c.ShimPerPod,
		DeviceOwnership: c.DeviceOwnership, PodUTSNamespace: c.PodUTSNamespace, WithoutHostDevices: c.WithoutHostDevices,
	}
}

// SpecFiles returns where the operator's changes of OCI specs are.
func (c Config) SpecFiles() specfiles.Config {
	return specfiles.Config{SpecDir: c.SpecDir, HooksDirs: c.HooksDirs}
}

// Restore returns which checkpoints containers are restored from.
func (c Config) Restore() restore.Config {
	return restore.Config{ArchiveDir: c.RestoreArchiveDir, Images: patternsOf(c.RestoreImages)}
}

// PinnedPatterns returns the compiled PinnedImages, which were checked when they were set.
func (c Config) PinnedPatterns() *pinning.Patterns { return patternsOf(c.PinnedImages) }

func patternsOf(globs []string) *pinning.Patterns {
	patterns, err := pinning.ParsePatterns(globs)
	if err != nil {
		return nil // only if they were not set by Options
	}
	return patterns
}

// NetNSDir returns where network namespaces of pods are bound: where network agents that run in
// containers expect them. Namespaces there that belong to no known pod are removed, so a second
// berthd on a node, which has another run-dir, binds below that.
func (c *Config) NetNSDir() string {
	if c.RunDir == DefaultRunDir {
		return "/var/run/netns"
	}
	return ""
}

// Tracing is where traces are sent.
type Tracing struct {
	Endpoint          string // HOST:PORT or unix:///PATH of a collector, or empty for no traces
	SamplesPerMillion int    // of the calls without a trace context
}

// DebugSocketPath returns the path of the debug socket, empty for none.
func (c Config) DebugSocketPath() string {
	if c.DebugSocket == "" || filepath.IsAbs(c.DebugSocket) {
		return c.DebugSocket
	}
	return filepath.Join(c.RunDir, c.DebugSocket)
}

// Invocation holds the flags that concern one call of the program. A configuration file
// cannot set them.
type Invocation struct {
	ConfigFile string
	Help       bool
	Version    bool
	Buildinfo  bool

	JSON      bool   // for doctor, pods, pulls, images copy and runtime status
	Root      string // for doctor: directory with the files of the node
	Namespace string // for pods: of the pods to print, "" for all
	Output    string // for pods and runtime status: table, wide or json
	Watch     bool   // for pulls
	DryRun    bool   // for images copy, runtime install and runtime remove
	Copy      Copy
	Runtime   Runtime
}

// Names of commands with flags of their own.
const (
	DoctorCommand     = "doctor"
	PodsCommand       = "pods"
	PullsCommand      = "pulls"
	ImagesCopyCommand = "images copy"

	RuntimeInstallCommand = "runtime install"
	RuntimeStatusCommand  = "runtime status"
	RuntimeRemoveCommand  = "runtime remove"
)

// ClientEndpoint returns the endpoint of the CRI as a client needs it: a socket of systemd is that of
// berth.socket.
func (c *Config) ClientEndpoint() string {
	if strings.HasPrefix(c.Endpoint, "unix://") {
		return c.Endpoint
	}
	return "unix:///run/cri-dockerd.sock"
}

// Copy holds the flags of the command images copy.
type Copy struct {
	To        string // containerd or empty
	From      string // containerd or empty
	Address   string // path of containerd's socket
	Namespace string
	Used      bool // only images that containers use
}

// Runtime holds the flags of the commands runtime install, status and remove.
type Runtime struct {
	ConfigFile string // daemon.json
	Program    string // to install
	Dir        string // where it is installed
}

// A Warning is about an option that was given and has no effect.
type Warning struct {
	Option string
	Source string // where it was given: a file and line, or the command line
	Reason string
}

// A UsageError is an error in the command line or in a configuration file.
type UsageError struct{ err error }

// Error returns one line for the operator.
func (e *UsageError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *UsageError) Unwrap() error { return e.err }

// UsageErrorf returns a UsageError with that text; %w works as in fmt.Errorf.
func UsageErrorf(format string, args ...any) error {
	return &UsageError{fmt.Errorf(format, args...)}
}

// FlagError makes a UsageError of an error of pflag.
func FlagError(err error) error { return UsageErrorf("%w (--help lists all flags)", err) }
