package ociinstall

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth/core/dockerconfig"
	"berth/core/hostprobe"
	"berth/core/names"
)

const (
	installFix = "berthd runtime install"
	reloadFix  = "systemctl reload docker; if that does not help, its log says why (journalctl -u docker.service)"
)

// A Report is the state of the runtime on a node.
type Report struct {
	ConfigFile string    `json:"configFile"`
	Docker     string    `json:"docker,omitempty"`  // version, "" if it does not answer
	Program    *Program  `json:"program,omitempty"` // that is installed
	Package    *Program  `json:"package,omitempty"`
	Runtimes   []Runtime `json:"runtimes"`
	Problems   []Problem `json:"problems"`

	root string // of dockerd, as far as it is known
	info *info
}

// A Runtime is one of the runtimes of berth.
type Runtime struct {
	Name       string `json:"name"`
	Below      string `json:"below,omitempty"` // the program that it calls
	Configured bool   `json:"configured"`      // in the file
	Registered bool   `json:"registered"`      // Docker has it
	Users      []User `json:"users"`

	entry dockerconfig.Runtime
}

// A Problem is something that is wrong, with what the operator should do.
type Problem struct {
	Severe  bool   `json:"severe"` // containers fail
	Message string `json:"message"`
	Fix     string `json:"do"`
}

// Installed reports whether there is anything of the runtime on the node.
func (r *Report) Installed() bool { return r.Program != nil || len(r.Runtimes) > 0 }

// Err returns an error with the number of severe problems, nil if there is none.
func (r *Report) Err() error {
	n := len(slices.DeleteFunc(slices.Clone(r.Problems), func(p Problem) bool { return !p.Severe }))
	switch n {
	case 0:
		return nil
	case 1:
		return errors.New("1 thing is wrong with the runtime")
	default:
		return fmt.Errorf("%d things are wrong with the runtime", n)
	}
}

func (r *Report) fail(fix, format string, args ...any) {
	r.Problems = append(r.Problems, Problem{true, fmt.Sprintf(format, args...), fix})
}

func (r *Report) warn(fix, format string, args ...any) {
	r.Problems = append(r.Problems, Problem{false, fmt.Sprintf(format, args...), fix})
}

// Inspect finds out the state of the runtime, and changes nothing. What cannot be found out is one of the problems. If
// dockerd reads another file than ConfigFile, it is that one that is inspected.
func Inspect(ctx context.Context, cfg Config) *Report {
	cfg = cfg.withDefaults()
	r := &Report{ConfigFile: cfg.ConfigFile, Runtimes: []Runtime{}, Problems: []Problem{}, root: cfg.Root}
	users, process := r.inspectDocker(ctx, cfg)
	if process != nil {
		r.ConfigFile, r.root = dockerconfig.ParseFlags(process.Args).ConfigFile, process.Root
	}
	doc, err := readFile(cfg.path(r.ConfigFile))
	r.collect(doc, users)
	r.inspectPrograms(cfg)
	switch {
	case err != nil && r.Installed():
		r.fail("correct the file", "%v", err)
	case err != nil:
		r.warn("correct the file before: "+installFix, "%v", err)
	}
	if !r.Installed() {
		return r
	}
	r.checkRuntimes(cfg, doc)
	r.checkInstructions(cfg)
	if process == nil {
		return r
	}
	for _, flags := range flagsOf(*process, cfg.Root) {
		if reason, fix := flags.Conflict(r.ConfigFile); reason != "" {
			r.fail(fix, "%s", reason)
			break
		}
	}
	return r
}

// inspectDocker reads what Docker has. It returns the containers by runtime, and dockerd if that is a process of this node.
func (r *Report) inspectDocker(ctx context.Context, cfg Config) (map[string][]User, *hostprobe.Process) {
	users, process, err := func() (map[string][]User, *hostprobe.Process, error) {
		conn, err := dial(ctx, cfg.Docker)
		if err != nil {
			return nil, nil, err
		}
		defer conn.Close()
		found, err := getInfo(ctx, conn)
		if err != nil {
			return nil, nil, err
		}
		r.info, r.Docker = &found, found.version
		var process *hostprobe.Process
		if socket, ok := strings.CutPrefix(conn.DaemonHost(), "unix://"); ok && filepath.Clean(cfg.Root) == "/" {
			if d, err := cfg.find(socket); err == nil { // only root can see it
				process = &d.Process
			}
		}
		users, err := listUsers(ctx, conn)
		return users, process, err
	}()
	if err != nil {
		r.warn("see: berthd doctor", "docker cannot be asked for its runtimes: %v", err)
	}
	return users, process
}

// readFile reads the file, nil if it cannot be read.
func readFile(path string) (*dockerconfig.Document, error) {
	file, err := dockerconfig.Read(path)
	if err != nil {
		return nil, err
	}
	return file.Document, nil
}

// collect lists the runtimes of the file and of Docker, and those that containers name.
func (r *Report) collect(doc *dockerconfig.Document, users map[string][]User) {
	add := func(entry dockerconfig.Runtime) *Runtime {
		i := slices.IndexFunc(r.Runtimes, func(known Runtime) bool { return known.Name == entry.Name })
		if i < 0 {
			i = len(r.Runtimes)
			r.Runtimes = append(r.Runtimes, Runtime{Name: entry.Name, Users: append([]User{}, users[entry.Name]...), entry: entry})
			if entry.Path != "" {
				r.Runtimes[i].Below = belowOf(entry)
			}
		}
		return &r.Runtimes[i]
	}
	if doc != nil {
		for _, entry := range ours(doc) {
			add(entry).Configured = true
		}
	}
	if r.info != nil {
		for name, found := range r.info.runtimes {
			entry := dockerconfig.Runtime{Name: name, Path: found.Path, Args: found.Args, Type: found.Type}
			if isOurs(entry) {
				known := add(entry)
				known.Registered = !known.Configured || r.info.has(known.entry)
			}
		}
		for name := range users {
			// A runtime of another program with this name would be in what Docker has.
			if _, known := r.info.runtimes[name]; !known && names.BelowOCIRuntime(name) != "" {
				add(dockerconfig.Runtime{Name: name})
			}
		}
	}
	slices.SortFunc(r.Runtimes, func(a, b Runtime) int { return strings.Compare(a.Name, b.Name) })
}

// inspectPrograms reads the program in the package and each that a runtime calls.
func (r *Report) inspectPrograms(cfg Config) {
	var err error
	if r.Package, err = readProgram(cfg.path(cfg.Program)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.warn("install the package of berth again", "%v", err)
	}
	var entries []dockerconfig.Runtime
	for _, known := range r.Runtimes {
		if known.entry.Path != "" {
			entries = append(entries, known.entry)
		}
	}
	dirs := dirsOf(entries)
	if len(dirs) == 0 {
		dirs = append(dirs, cfg.Dir)
	}
	for _, dir := range dirs {
		installed, err := readInstalled(cfg.path(dir))
		switch {
		case err != nil:
			r.fail("correct that, and: "+installFix, "%v", err)
		case installed == nil && len(r.Runtimes) > 0:
			r.fail(installFix, "%s is missing, and Docker is to call it%s", filepath.Join(dir, programName), r.inUse())
		case installed == nil:
		default:
			installed.Path = filepath.Join(dir, programName)
			r.Program = installed
			if r.Package != nil && r.Package.SHA256 != installed.SHA256 {
				r.warn(installFix, "%s has version %s, which is not the one of the package", installed.Path, installed.Version)
			}
		}
	}
}

// inUse returns which pods have one of the runtimes, as the end of a message.
func (r *Report) inUse() string {
	var users []User
	for _, known := range r.Runtimes {
		users = append(users, known.Users...)
	}
	if len(users) == 0 {
		return ""
	}
	return ": pods that have it cannot be stopped properly: " + describe(users)
}

// checkRuntimes compares the file, Docker and the programs.
func (r *Report) checkRuntimes(cfg Config, doc *dockerconfig.Document) {
	for _, known := range r.Runtimes {
		used := ""
		if len(known.Users) > 0 {
			used = "; containers have it: " + describe(known.Users)
		}
		switch {
		case !known.Configured && !known.Registered && known.entry.Path == "":
			r.fail(installFix, "containers have the runtime %s, which Docker does not have: %s", known.Name, describe(known.Users))
		case !known.Configured && doc != nil:
			r.warn(installFix, "Docker has the runtime %s, but %s does not: it is gone after the next start of Docker%s", known.Name, r.ConfigFile, used)
		case known.Configured && r.info != nil && !known.Registered:
			r.fail(reloadFix, "the runtime %s is in %s, but Docker does not have it so%s", known.Name, r.ConfigFile, used)
		}
		if path := known.entry.Path; r.Program != nil && path != "" && !r.isProgram(path) {
			r.fail(installFix, "%s, which is the runtime %s, is missing%s", path, known.Name, used)
		}
		if known.Below != "" && !r.isProgram(known.Below) {
			r.fail("install it, or remove its runtime from "+r.ConfigFile+" and: "+installFix, "%s, which the runtime %s calls, is not installed%s", known.Below, known.Name, used)
		}
	}
	if doc == nil || len(r.Runtimes) == 0 {
		return
	}
	cfg.Dir = filepath.Dir(r.Runtimes[0].entry.Path)
	wanted, err := cfg.wantedRuntimes(doc)
	if err != nil {
		r.warn("correct that, and: "+installFix, "%v", err)
		return
	}
	if missing := changed(doc, wanted); len(missing) > 0 && len(ours(doc)) > 0 {
		r.warn(installFix, "%s does not have, or not as they should be: %s", r.ConfigFile, runtimeNames(missing))
	}
}

// programDirs are the directories of PATH in which Docker and containerd, as services, find programs.
var programDirs = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// isProgram reports whether a runtime can be executed. Other directories may be in the PATH of Docker; only absolute
// paths are certain.
func (r *Report) isProgram(name string) bool {
	if filepath.Base(name) == name {
		return name == stockRuntime || slices.ContainsFunc(programDirs, func(dir string) bool { return r.isProgram(filepath.Join(dir, name)) })
	}
	info, err := os.Stat(filepath.Join(r.root, name))
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

// checkInstructions checks the directory of the instructions, which berthd makes when it needs it.
func (r *Report) checkInstructions(cfg Config) {
	var st unix.Stat_t
	dir := cfg.path(cfg.Instructions)
	if err := unix.Lstat(dir, &st); err != nil {
		return
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() && st.Uid != 0 || st.Mode&0o077 != 0 {
		r.fail("remove it and: systemctl restart berth.service", "%s must be a directory that only root can read", cfg.Instructions)
	}
}
