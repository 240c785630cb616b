package ociinstall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth/core/dockerconfig"
)

// Install installs the program, or replaces an older one, and has Docker know the runtimes. It writes to out what it has done,
// or what it would do if dryRun is set. What is already so stays as it is.
func Install(ctx context.Context, cfg Config, dryRun bool, out io.Writer) error {
	o, err := begin(ctx, cfg, dryRun)
	if err != nil {
		return err
	}
	defer o.end()
	program, err := readProgram(cfg.Program)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is missing: it comes with the package of berth, or --runtime-program names another", cfg.Program)
	}
	if err != nil {
		return err
	}
	wanted, err := cfg.wantedRuntimes(o.file.Document)
	if err != nil {
		return err
	}
	stale, err := o.outdated(wanted)
	if err != nil {
		return err
	}
	next, err := o.file.With(changed(o.file.Document, wanted), stale)
	if err != nil {
		return err
	}
	if err := o.checkReload(next); err != nil {
		return err
	}
	if dryRun {
		return o.printPlan(out, program, wanted, next)
	}
	return o.install(ctx, out, program, wanted, next)
}

// outdated returns the runtimes in the file that are not wanted any more and that no container uses. It is an error if a runtime
// in use would change: Docker 25 and newer give a container the program and its arguments when it is created.
func (o *operation) outdated(wanted []dockerconfig.Runtime) (stale []string, err error) {
	for _, r := range ours(o.file.Document) {
		i := slices.IndexFunc(wanted, func(w dockerconfig.Runtime) bool { return w.Name == r.Name })
		users := o.users[r.Name]
		switch {
		case i >= 0 && !wanted[i].Equal(r) && len(users) > 0:
			return nil, fmt.Errorf("the runtime %q must change from %s %s to %s %s, but containers use it: remove these pods first: %s",
				r.Name, r.Path, strings.Join(r.Args, " "), wanted[i].Path, strings.Join(wanted[i].Args, " "), describe(users))
		case i < 0 && len(users) == 0:
			stale = append(stale, r.Name)
		}
	}
	return stale, nil
}

// changed returns those of the runtimes that are not in the file as they are.
func changed(doc *dockerconfig.Document, wanted []dockerconfig.Runtime) (missing []dockerconfig.Runtime) {
	for _, w := range wanted {
		if r, ok := doc.Runtime(w.Name); !ok || !r.Equal(w) {
			missing = append(missing, w)
		}
	}
	return missing
}

// runtimeNames returns the names of the runtimes for a message.
func runtimeNames(runtimes []dockerconfig.Runtime) string {
	var list []string
	for _, r := range runtimes {
		list = append(list, r.Name)
	}
	return strings.Join(list, ", ")
}

// isCurrent reports whether p is installed. Whatever is wrong with what is installed, the answer is no.
func (o *operation) isCurrent(p *Program) bool {
	installed, err := readInstalled(o.cfg.Dir)
	return err == nil && installed != nil && installed.SHA256 == p.SHA256
}

// knows reports whether Docker has all of the runtimes.
func (i info) knows(runtimes []dockerconfig.Runtime) bool {
	return !slices.ContainsFunc(runtimes, func(r dockerconfig.Runtime) bool { return !i.has(r) })
}

// printPlan writes what Install would do.
func (o *operation) printPlan(out io.Writer, p *Program, wanted []dockerconfig.Runtime, next *dockerconfig.Document) error {
	var text strings.Builder
	if !o.isCurrent(p) {
		fmt.Fprintf(&text, "would copy %s to %s, version %s\n", p.Path, o.cfg.Dir, o.cfg.Version)
	}
	diff := dockerconfig.Diff(o.cfg.ConfigFile, o.file.Text(), next.Text())
	text.WriteString(diff)
	if diff != "" || !o.info.knows(wanted) {
		fmt.Fprintf(&text, "would send SIGHUP to dockerd, process %d\n", o.dockerd.PID)
	}
	if text.Len() == 0 {
		text.WriteString(upToDate)
	}
	_, err := io.WriteString(out, text.String())
	return err
}

const upToDate = "nothing to do: the program is installed, and Docker knows the runtimes\n"

// install does what printPlan says.
func (o *operation) install(ctx context.Context, out io.Writer, p *Program, wanted []dockerconfig.Runtime, next *dockerconfig.Document) (err error) {
	text := &strings.Builder{}
	before, _ := readInstalled(o.cfg.Dir)
	former := dirsOf(ours(o.file.Document))
	needed := before != nil || len(former) > 0
	defer func() {
		if err != nil && !needed {
			if pruneErr := prune(o.cfg.Dir); pruneErr != nil {
				err = fmt.Errorf("%w; %w", err, pruneErr)
			}
			removeEmpty(o.cfg.Dir)
			text.Reset()
		}
		_, _ = io.WriteString(out, text.String()) // what was done, also if a later step has failed
	}()
	if !o.isCurrent(p) {
		if err := p.install(o.cfg.Dir, o.cfg.Version); err != nil {
			return err
		}
		fmt.Fprintf(text, "installed %s in %s, version %s\n", programName, o.cfg.Dir, o.cfg.Version)
	}
	linked, err := linkAll(o.cfg.Dir, linksOf(wanted))
	if err != nil {
		return err
	}
	if linked {
		fmt.Fprintf(text, "linked the program in %s for %s\n", o.cfg.Dir, runtimeNames(wanted))
	}
	if err := makePrivateDir(o.cfg.Instructions); err != nil {
		return err
	}
	if err := o.register(ctx, text, wanted, next); err != nil {
		return err
	}
	if text.Len() == 0 {
		text.WriteString(upToDate)
	}
	target, err := os.Readlink(filepath.Join(o.cfg.Dir, programName))
	if err != nil {
		return err
	}
	if err := prune(o.cfg.Dir, append(linksOf(ours(o.file.Document)), programName, target)...); err != nil {
		return err
	}
	for _, dir := range former {
		if !slices.Contains(append(dirsOf(ours(o.file.Document)), o.cfg.Dir), dir) { // it was installed with another --runtime-dir
			if err := prune(dir); err != nil {
				return err
			}
			removeEmpty(dir)
		}
	}
	return nil
}

// register has the file and Docker know the runtimes. If Docker does not, the file is as it was.
func (o *operation) register(ctx context.Context, text io.Writer, wanted []dockerconfig.Runtime, next *dockerconfig.Document) error {
	edited := string(next.Text()) != string(o.file.Text())
	if !edited && o.info.knows(wanted) {
		return nil
	}
	original := o.file.Copy()
	if edited {
		if err := o.file.Replace(next); err != nil {
			return err
		}
	}
	if err := o.reload(ctx, func(i info) bool { return i.knows(wanted) }); err != nil {
		if !edited {
			return err
		}
		return o.restore(original, err)
	}
	if edited {
		fmt.Fprintf(text, "changed the runtimes in %s", o.cfg.ConfigFile)
		if original.Existed() {
			fmt.Fprintf(text, ", which was as in %s", o.file.Backup())
		}
		fmt.Fprintln(text)
	}
	fmt.Fprintf(text, "Docker knows %s\n", runtimeNames(wanted))
	return nil
}

// makePrivateDir makes a directory that only root can read.
func makePrivateDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s must be a directory of root: remove what is there", dir)
	}
	return os.Chmod(dir, 0o700)
}
