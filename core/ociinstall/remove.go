package ociinstall

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"berth/core/dockerconfig"
)

// Remove takes the runtimes out of daemon.json and Docker, and removes the program. It refuses while there are containers
// with one of the runtimes, also stopped ones. It writes to out what it has done, or would do if dryRun is set.
func Remove(ctx context.Context, cfg Config, dryRun bool, out io.Writer) error {
	o, err := begin(ctx, cfg, dryRun)
	if err != nil {
		return err
	}
	defer o.end()
	var listed []string
	for _, r := range ours(o.file.Document) {
		listed = append(listed, r.Name)
	}
	dirs := dirsOf(ours(o.file.Document))
	if !slices.Contains(dirs, cfg.Dir) {
		dirs = append(dirs, cfg.Dir)
	}
	registered := o.registered()
	if err := o.checkUnused(slices.Concat(listed, registered)); err != nil {
		return err
	}
	reloaded, next, err := o.without(listed)
	if err != nil {
		return err
	}
	if err := o.checkReload(reloaded); err != nil {
		return err
	}
	if dryRun {
		return o.printRemoval(out, dirs, registered, next)
	}
	text := &strings.Builder{}
	defer func() { _, _ = io.WriteString(out, text.String()) }()
	if err := o.unregister(ctx, text, listed, registered, reloaded, next); err != nil {
		return err
	}
	_ = os.Remove(cfg.Instructions) // unless there are any
	return removePrograms(text, dirs)
}

// registered returns the runtimes of berth that Docker has.
func (o *operation) registered() (list []string) {
	for name, r := range o.info.runtimes {
		if isOurs(dockerconfig.Runtime{Path: r.Path}) {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

// checkUnused returns an error that names the containers with one of the runtimes.
func (o *operation) checkUnused(runtimes []string) error {
	var users []User
	for _, name := range slices.Compact(slices.Sorted(slices.Values(runtimes))) {
		users = append(users, o.users[name]...)
	}
	if len(users) == 0 {
		return nil
	}
	need := "1 container needs"
	if len(users) > 1 {
		need = fmt.Sprintf("%d containers need", len(users))
	}
	return fmt.Errorf("%s the runtime, running or not: remove these pods first: %s", need, describe(users))
}

// printRemoval writes what Remove would do.
func (o *operation) printRemoval(out io.Writer, dirs, registered []string, next *dockerconfig.Document) error {
	var text strings.Builder
	diff := dockerconfig.Diff(o.cfg.ConfigFile, o.file.Text(), next.Text())
	text.WriteString(diff)
	if diff != "" || len(registered) > 0 {
		fmt.Fprintf(&text, "would send SIGHUP to dockerd, process %d\n", o.dockerd.PID)
	}
	for _, dir := range dirs {
		if p, err := readInstalled(dir); p != nil || err != nil {
			fmt.Fprintf(&text, "would remove %s\n", filepath.Join(dir, programName))
		}
	}
	if text.Len() == 0 {
		text.WriteString(nothingInstalled)
	}
	_, err := io.WriteString(out, text.String())
	return err
}

const nothingInstalled = "nothing to do: the runtime is not installed\n"

// without returns the file without the runtimes: as Docker must read it once, to forget them, and as it stays.
func (o *operation) without(listed []string) (reloaded, next *dockerconfig.Document, err error) {
	next = o.file.Document
	if reloaded, err = next.With(nil, listed); err != nil {
		return nil, nil, err
	}
	if len(listed) > 0 {
		if next, err = reloaded.WithoutEmptyRuntimes(); err != nil {
			return nil, nil, err
		}
	}
	reloaded, err = reloaded.WithRuntimesKey()
	return reloaded, next, err
}

// unregister has the file and Docker forget the runtimes. If Docker does not, the file is as it was.
func (o *operation) unregister(ctx context.Context, text io.Writer, listed, registered []string, reloaded, next *dockerconfig.Document) error {
	if len(listed) == 0 && len(registered) == 0 {
		return nil
	}
	original := o.file.Copy()
	if err := o.file.Replace(reloaded); err != nil {
		return err
	}
	err := o.reload(ctx, func(i info) bool {
		return !slices.ContainsFunc(registered, func(name string) bool { _, ok := i.runtimes[name]; return ok })
	})
	if err != nil {
		return o.restore(original, err)
	}
	// A container may have been created after the first check. From now on Docker creates none.
	if o.users, err = listUsers(ctx, o.conn); err == nil {
		err = o.checkUnused(slices.Concat(listed, registered))
	}
	if err != nil {
		err = o.restore(original, err)
		wanted := ours(original.Document)
		if awaitErr := o.await(context.WithoutCancel(ctx), func(i info) bool { return i.knows(wanted) }); awaitErr != nil {
			err = fmt.Errorf("%w; %w", err, awaitErr)
		}
		return err
	}
	if len(listed) == 0 {
		if err := o.file.Restore(original); err != nil {
			return err
		}
		fmt.Fprintf(text, "Docker has forgotten %s\n", strings.Join(registered, ", "))
		return nil
	}
	if err := o.file.Amend(next); err != nil {
		return err
	}
	fmt.Fprintf(text, "removed %s from Docker and from %s, which was as in %s\n", strings.Join(listed, ", "), o.cfg.ConfigFile, o.file.Backup())
	return nil
}

// removePrograms removes the program from the directories where it is.
func removePrograms(text *strings.Builder, dirs []string) error {
	for _, dir := range dirs {
		if p, err := readInstalled(dir); p != nil || err != nil {
			fmt.Fprintf(text, "removed %s\n", filepath.Join(dir, programName))
		}
		if err := prune(dir); err != nil {
			return err
		}
		removeEmpty(dir)
	}
	if text.Len() == 0 {
		text.WriteString(nothingInstalled)
	}
	return nil
}
