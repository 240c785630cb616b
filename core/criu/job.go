package criu

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth/core/bundle"
	"berth/core/hostprobe"
	"berth/core/rootdiff"
)

// A job is a checkpoint in progress.
type job struct {
	target  Container
	runtime bundle.Runtime
	host    host
	spec    json.RawMessage
	name    string // of its directory, and the marker of its processes
	dir     string
	dumping bool // CRIU works, or was killed: the container may be frozen
}

// take has CRIU write the memory of the container, and writes the changes of its files, to the directory.
func (j *job) take(ctx context.Context) error {
	if err := j.dump(ctx); err != nil {
		return err
	}
	if err := j.writeRootfs(ctx); err != nil {
		return fmt.Errorf("changed files of the container: %w", err)
	}
	return nil
}

// callRuntime calls the OCI runtime of the container.
func (j *job) callRuntime(ctx context.Context, args ...string) (output string, err error) {
	return j.host.run(ctx, j.name, append([]string{j.runtime.Program, "--root", j.runtime.Root}, args...)...)
}

// dump has CRIU write the memory of the container's processes.
func (j *job) dump(ctx context.Context) error {
	images := filepath.Join(j.dir, metadata.CheckpointDirectory)
	if err := os.Mkdir(images, 0o700); err != nil {
		return err
	}
	// A path that the runtime sees: in its mount namespace the directory may be elsewhere, or nowhere.
	dir, err := os.OpenFile(j.dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	path := j.dir
	if !isSeenBy(j.runtime.Shim, dir) {
		path = filepath.Join("/proc", strconv.Itoa(os.Getpid()), "fd", strconv.Itoa(int(dir.Fd())))
	}
	j.dumping = true
	output, err := j.callRuntime(ctx, "checkpoint", "--leave-running",
		"--image-path", filepath.Join(path, metadata.CheckpointDirectory), "--work-path", path, j.target.ID)
	if ctx.Err() == nil && err == nil {
		j.dumping = false
		return nil
	}
	log, readErr := readTail(filepath.Join(j.dir, metadata.DumpLogFile))
	if readErr != nil {
		log = ""
	}
	if ctx.Err() != nil {
		return fmt.Errorf("CRIU has not finished; its log ends with %q: %w", j.hidePaths(lastLine(log)), context.Cause(ctx))
	}
	reason := lastLine(output)
	if log != "" {
		reason = errorLines(log)
	}
	return fmt.Errorf("CRIU cannot checkpoint the container: %s: %w", j.hidePaths(reason), errdefs.ErrFailedPrecondition)
}

// isSeenBy reports whether the process pid finds the directory at the same path.
func isSeenBy(pid int, dir *os.File) bool {
	other, err := hostprobe.OpenAs(pid, dir.Name(), unix.O_PATH)
	if err != nil {
		return false
	}
	defer other.Close()
	a, errA := dir.Stat()
	b, errB := other.Stat()
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// readTail returns the end of a file.
func readTail(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	text := make([]byte, min(info.Size(), maxOutput))
	n, err := f.ReadAt(text, info.Size()-int64(len(text)))
	return string(text[:n]), err
}

// hidePaths replaces the sources of the container's mounts in a text by their destinations: who may see the error may not know where
// the node keeps volumes with secrets.
func (j *job) hidePaths(text string) string {
	mounts, err := j.mounts()
	if err != nil {
		return ""
	}
	slices.SortFunc(mounts, func(a, b ociMount) int { return cmp.Compare(len(b.Source), len(a.Source)) })
	for _, m := range mounts {
		if len(m.Source) > 1 && strings.HasPrefix(m.Source, "/") {
			text = strings.ReplaceAll(text, m.Source, m.Destination)
		}
	}
	return strings.ReplaceAll(text, j.dir, "")
}

// An ociMount is a mount in an OCI spec.
type ociMount struct{ Source, Destination, Type string }

// mounts returns the mounts of the container.
func (j *job) mounts() ([]ociMount, error) {
	var spec struct{ Mounts []ociMount }
	err := json.Unmarshal(j.spec, &spec)
	return spec.Mounts, err
}

// errRemoved is the error of status for a container that the OCI runtime does not know any more.
var errRemoved = errors.New("the container has been removed")

// status returns what the OCI runtime says of the container.
func (j *job) status(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, runtimeTimeout)
	defer cancel()
	var state struct{ Status string }
	output, err := j.callRuntime(ctx, "state", j.target.ID)
	switch {
	case err != nil && strings.Contains(output, "does not exist"):
		err = fmt.Errorf("%w: %w", errRemoved, err)
	case err == nil:
		err = json.Unmarshal([]byte(output), &state)
	}
	if err != nil {
		return "", fmt.Errorf("state of the container: %w: %s", err, lastLine(output))
	}
	return state.Status, nil
}

// resume lets the container go on if it is frozen: CRIU does so, unless it is killed.
func (j *job) resume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, runtimeTimeout)
	defer cancel()
	status, err := j.status(ctx)
	if errors.Is(err, errRemoved) {
		return nil
	}
	if err != nil || status != "paused" {
		return err
	}
	if output, err := j.callRuntime(ctx, "resume", j.target.ID); err != nil {
		return fmt.Errorf("resume the container: %w: %s", err, lastLine(output))
	}
	return nil
}

// writeRootfs writes the changes of the container's root file system.
func (j *job) writeRootfs(ctx context.Context) (err error) {
	upperPath, lowerPaths, err := j.layers()
	if err != nil {
		return err
	}
	upper, err := hostprobe.OpenAs(j.runtime.Shim, upperPath, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer upper.Close()
	var lowers []*os.File
	defer func() {
		for _, f := range lowers {
			f.Close()
		}
	}()
	f, err := os.OpenFile(filepath.Join(j.dir, metadata.RootFsDiffTar), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	layers := rootdiff.Layers{Upper: upper, Skip: map[string]bool{}}
	layers.Lowers = func() ([]*os.File, error) {
		for i := len(lowers); i < len(lowerPaths); i++ {
			f, err := hostprobe.OpenAs(j.runtime.Shim, lowerPaths[i], unix.O_PATH|unix.O_DIRECTORY)
			if err != nil {
				return nil, err
			}
			lowers = append(lowers, f)
		}
		if len(lowers) == 0 {
			return nil, errors.New("they are not in the mount table")
		}
		return lowers, nil
	}
	mounts, err := j.mounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		layers.Skip[filepath.Clean(m.Destination)] = true
	}
	deleted, err := rootdiff.Write(ctx, f, layers)
	if err != nil || len(deleted) == 0 {
		return err
	}
	return j.writeJSON(metadata.DeletedFilesFile, deleted)
}

// writeMetadata writes what describes the container.
func (j *job) writeMetadata() error {
	spec, err := j.annotatedSpec()
	if err != nil {
		return err
	}
	mounts, err := j.bindMounts()
	if err != nil {
		return err
	}
	return errors.Join(j.writeJSON(metadata.ConfigDumpFile, j.target.Config), j.writeJSON(metadata.SpecDumpFile, spec),
		j.writeJSON(metadata.StatusDumpFile, j.target.Status), j.writeJSON(bindMountsFile, mounts))
}

func (j *job) writeJSON(name string, value any) error {
	_, err := metadata.WriteJSONFile(value, j.dir, name)
	return err
}

// annotatedSpec returns the OCI spec with the annotations added. All fields are kept, also unknown ones.
func (j *job) annotatedSpec() (map[string]json.RawMessage, error) {
	var spec map[string]json.RawMessage
	if err := json.Unmarshal(j.spec, &spec); err != nil {
		return nil, err
	}
	annotations := map[string]string{}
	if raw, ok := spec["annotations"]; ok {
		if err := json.Unmarshal(raw, &annotations); err != nil {
			return nil, fmt.Errorf("annotations of the OCI spec: %w", err)
		}
	}
	if annotations == nil { // null
		annotations = map[string]string{}
	}
	maps.Copy(annotations, j.target.Annotations)
	raw, err := json.Marshal(annotations)
	spec["annotations"] = raw
	return spec, err
}

// A bindMount is an element of bindMountsFile.
type bindMount struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	FileType    string `json:"file_type"`
	Permissions uint32 `json:"permissions"`
}

// bindMounts returns the bind mounts of the container whose source the runtime sees.
func (j *job) bindMounts() ([]bindMount, error) {
	all, err := j.mounts()
	if err != nil {
		return nil, err
	}
	mounts := []bindMount{}
	for _, m := range all {
		if m.Type != "bind" || !filepath.IsAbs(m.Source) {
			continue
		}
		f, err := hostprobe.OpenAs(j.runtime.Shim, m.Source, unix.O_PATH)
		if err != nil {
			continue // a volume that has been replaced since, as of a config map
		}
		info, err := f.Stat()
		f.Close()
		if err != nil {
			return nil, err
		}
		kind := "file"
		if info.IsDir() {
			kind = "directory"
		}
		mounts = append(mounts, bindMount{m.Source, m.Destination, kind, uint32(info.Mode().Perm())})
	}
	return mounts, nil
}
