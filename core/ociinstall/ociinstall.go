// Package ociinstall installs the OCI runtime berth-oci on a node: a copy of the program that does not belong to the
// package of berth, and runtimes in daemon.json that call it.
//
// Install and Remove change the node, Inspect returns a Report. There is one runtime for each that Docker has: "berth"
// calls runc, and "berth-NAME" calls the runtime NAME. Docker reads daemon.json again on SIGHUP, without an effect on
// running containers. What could make Docker fail then is refused before anything is changed, and if Docker does
// not have the runtimes in time, the file is as before.
//
// A container needs the program as long as it runs: for exec, kill and delete. So the program has a place of its own,
// where a newer one replaces it by rename, and Remove refuses while there are containers with one of the runtimes.
package ociinstall

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"berth/core/dockerconfig"
	"berth/core/engine"
	"berth/core/hostprobe"
)

const (
	// DefaultProgram is the program in the package.
	DefaultProgram = "/usr/libexec/berth/berth-oci"
	// DefaultDir is where the program is copied: like /opt/cni, also writable on nodes whose /usr is not.
	DefaultDir = "/opt/berth/oci"

	// reloadTimeout is how long Docker may take to read its configuration again. It takes less than a second unless the
	// node is overloaded.
	reloadTimeout  = 30 * time.Second
	reloadInterval = 200 * time.Millisecond
)

// Config is where things are.
type Config struct {
	Docker       engine.Config
	ConfigFile   string // daemon.json
	Program      string // the program to install
	Dir          string // where it is installed
	Instructions string // directory of the instructions for containers
	Version      string // of the program
	Root         string // directory with the files of the node; only Inspect supports others than /

	// find returns the dockerd at the socket. Tests replace it.
	find          func(socket string) (dockerd, error)
	reloadTimeout time.Duration
}

// A dockerd is the process that serves the Engine API.
type dockerd struct {
	hostprobe.Process
	process interface{ Signal(os.Signal) error }
}

// withDefaults sets the fields that only tests set.
func (c Config) withDefaults() Config {
	if c.Root == "" {
		c.Root = "/"
	}
	if c.find == nil {
		c.find = findDockerd
	}
	if c.reloadTimeout == 0 {
		c.reloadTimeout = reloadTimeout
	}
	return c
}

// path returns where the file of the node is for this process.
func (c Config) path(name string) string { return filepath.Join(c.Root, name) }

// findDockerd returns the dockerd that listens on the Unix socket.
func findDockerd(socket string) (dockerd, error) {
	const proc = "/proc"
	found, err := hostprobe.Dockerd(proc, socket)
	if err != nil && os.Geteuid() != 0 {
		return dockerd{}, fmt.Errorf("%w, as far as this user can see: run it as root", err)
	}
	if err != nil {
		return dockerd{}, err
	}
	process, err := os.FindProcess(found.PID) // a pidfd: from here on the ID cannot become that of another process
	if err != nil {
		return dockerd{}, err
	}
	again, err := hostprobe.Dockerd(proc, socket)
	if err != nil || again.PID != found.PID {
		return dockerd{}, fmt.Errorf("dockerd at %s has just been restarted: try again", socket)
	}
	return dockerd{found, process}, nil
}

// An operation is one change of the node.
type operation struct {
	cfg     Config
	conn    *engine.Conn
	dockerd dockerd
	file    *dockerconfig.File
	info    info
	users   map[string][]User // by runtime
}

// begin connects to Docker, reads everything and checks that Docker would use runtimes in the file. Unless dryRun is
// set it locks the file; end unlocks it.
func begin(ctx context.Context, cfg Config, dryRun bool) (_ *operation, err error) {
	o := &operation{cfg: cfg.withDefaults()}
	if o.conn, err = dial(ctx, cfg.Docker); err != nil {
		return nil, fmt.Errorf("docker: %w", err)
	}
	defer func() {
		if err != nil {
			o.end()
		}
	}()
	socket, isUnix := strings.CutPrefix(o.conn.DaemonHost(), "unix://")
	if !isUnix {
		return nil, fmt.Errorf("docker is at %s: its configuration can only be changed on its own node, through its Unix socket", o.conn.DaemonHost())
	}
	if o.dockerd, err = o.cfg.find(socket); err != nil {
		return nil, err
	}
	if err := o.checkFlags(); err != nil {
		return nil, err
	}
	read := dockerconfig.Lock
	if dryRun {
		read = dockerconfig.Read
	}
	if o.file, err = read(o.cfg.ConfigFile); err != nil {
		return nil, err
	}
	if o.info, err = getInfo(ctx, o.conn); err != nil {
		return nil, err
	}
	o.users, err = listUsers(ctx, o.conn)
	return o, err
}

// dialAttempts is how often a Docker is called that is there and does not answer in time, as on an overloaded node.
const dialAttempts = 4

// dial connects to Docker.
func dial(ctx context.Context, cfg engine.Config) (conn *engine.Conn, err error) {
	docker, err := engine.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	for range dialAttempts {
		if conn, err = docker.Dial(ctx); err == nil || !engine.IsUnanswered(err) || ctx.Err() != nil {
			break
		}
	}
	return conn, err
}

// end releases what begin has taken.
func (o *operation) end() {
	if o.file != nil {
		o.file.Unlock()
	}
	_ = o.conn.Close() // its idle connections
}

// checkFlags returns an error if dockerd was started, or will be, with flags that do not go together with runtimes in the
// file.
func (o *operation) checkFlags() error {
	for _, flags := range flagsOf(o.dockerd.Process, o.cfg.Root) {
		if reason, fix := flags.Conflict(o.cfg.ConfigFile); reason != "" {
			return fmt.Errorf("%s; %s", reason, fix)
		}
	}
	return nil
}

// flagsOf returns the flags of the dockerd that runs and, if it belongs to docker.service, those for its next start.
func flagsOf(p hostprobe.Process, root string) []dockerconfig.Flags {
	flags := []dockerconfig.Flags{dockerconfig.ParseFlags(p.Args)}
	if p.Unit == "docker.service" {
		if next, ok := dockerconfig.ServiceFlags(root); ok {
			flags = append(flags, next)
		}
	}
	return flags
}

// checkReload returns an error if Docker would crash, or not work any more, when it reads next.
//
// Docker 20.10 dereferences nil if its default runtime is not among those that it has read (info_unix.go, fillPlatformInfo), and it loses its
// other names of runc. Docker 25 and newer refuse the file.
func (o *operation) checkReload(next *dockerconfig.Document) error {
	standard := o.info.defaultRuntime
	if name := next.DefaultRuntime(); name != "" {
		standard = name
	}
	_, listed := next.Runtime(standard)
	shim := strings.HasPrefix(standard, "io.containerd.") && o.info.shims
	if standard != "" && standard != stockRuntime && !listed && !shim {
		return fmt.Errorf("the default runtime %q of Docker %s is not among the runtimes in %s, and Docker could crash when it reads the file: add it there, or restart Docker with another default-runtime first",
			standard, o.info.version, o.cfg.ConfigFile)
	}
	if users := o.users[stockShim]; len(users) > 0 && !o.info.shims {
		return fmt.Errorf("docker %s does not know the runtime %s any more once it has read its configuration again, and these containers use it: %s; create them anew with the runtime runc",
			o.info.version, stockShim, describe(users))
	}
	return nil
}
