package ociinstall

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"berth/core/dockerconfig"
	"berth/core/trust"
)

// A Program is one file of berth-oci.
type Program struct {
	Path    string `json:"path"`
	Version string `json:"version,omitempty"` // only of an installed one
	SHA256  string `json:"sha256"`

	content []byte
}

// unfit matches what may not be in a file name made of a version.
var unfit = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`[^A-Za-z0-9.+~_-]+`) })

// versionPrefix is before the versions of the program in its directory.
const versionPrefix = "version-"

// hashLength is how many digits of the hash a file name has.
const hashLength = 12

// fileName returns the name under which p is installed.
func (p *Program) fileName(version string) string {
	return versionPrefix + unfit().ReplaceAllString(version, "_") + "-" + p.SHA256[:hashLength]
}

// versionOf returns the version in a name that fileName has returned.
func versionOf(name string) string {
	version := strings.TrimPrefix(name, versionPrefix)
	if i := strings.LastIndexByte(version, '-'); i >= 0 {
		version = version[:i]
	}
	return version
}

// readProgram reads the program at path. It is an error if it cannot be executed, or if others than root can change it or a
// directory on the way to it: Docker runs it as root.
func readProgram(path string) (*Program, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("%s is not a regular file", path)
	case st.Mode&0o111 == 0:
		return nil, fmt.Errorf("%s is not executable", path)
	}
	if err := trust.File(path, &st); err != nil {
		return nil, err
	}
	if err := trust.Check(path); err != nil {
		return nil, err
	}
	var content bytes.Buffer
	if _, err := content.ReadFrom(file); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(content.Bytes())
	return &Program{Path: path, SHA256: hex.EncodeToString(sum[:]), content: content.Bytes()}, nil
}

// readInstalled returns the program that is installed in dir, nil if there is none.
func readInstalled(dir string) (*Program, error) {
	link := filepath.Join(dir, programName)
	target, err := os.Readlink(link)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, unix.EINVAL):
		return nil, fmt.Errorf("%s is not a link to a version: another program has replaced it", link)
	case err != nil:
		return nil, err
	}
	if target != filepath.Base(target) || !strings.HasPrefix(target, versionPrefix) {
		return nil, fmt.Errorf("%s is a link to %q, which is not a version beside it", link, target)
	}
	p, err := readProgram(filepath.Join(dir, target))
	if err != nil {
		return nil, err
	}
	p.Path, p.Version = link, versionOf(target)
	if !strings.HasSuffix(target, "-"+p.SHA256[:hashLength]) {
		return nil, fmt.Errorf("%s is damaged: its content is not that of its name", filepath.Join(dir, target))
	}
	return p, nil
}

// install makes p the program in dir. A call of Docker meanwhile runs the program before or p, never a part.
func (p *Program) install(dir, version string) error {
	if err := trust.Check(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if st.Flags&unix.ST_NOEXEC != 0 {
		return fmt.Errorf("%s is on a file system without execution of programs (noexec): give another --runtime-dir", dir)
	}
	name := p.fileName(version)
	if err := p.write(filepath.Join(dir, name)); err != nil {
		return err
	}
	return link(dir, programName, name)
}

// link makes the link name in dir, in the place of what is there.
func link(dir, name, target string) error {
	temp := filepath.Join(dir, "."+programName+".link")
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, temp); err != nil {
		return err
	}
	if err := os.Rename(temp, filepath.Join(dir, name)); err != nil {
		return err
	}
	return dockerconfig.SyncDir(dir)
}

// linkAll makes the links to the program that are missing in dir. It reports whether there were any.
func linkAll(dir string, names []string) (made bool, err error) {
	for _, name := range names {
		if target, err := os.Readlink(filepath.Join(dir, name)); err == nil && target == programName {
			continue
		}
		if err := link(dir, name, programName); err != nil {
			return made, err
		}
		made = true
	}
	return made, nil
}

// write writes the program to path as a whole.
func (p *Program) write(path string) (err error) {
	temp, err := os.CreateTemp(filepath.Dir(path), "."+programName+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = temp.Close()
			_ = os.Remove(temp.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if _, err := temp.Write(p.content); err != nil {
		return err
	}
	if err := errors.Join(temp.Chmod(0o755), temp.Sync(), temp.Close()); err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}

// prune removes what Install has put into dir, but for the names in keep. A process that runs a removed program goes on.
func prune(dir string, keep ...string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		made := name == programName || strings.HasPrefix(name, linkPrefix) || strings.HasPrefix(name, versionPrefix) || strings.HasPrefix(name, "."+programName+".")
		if made && !slices.Contains(keep, name) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeEmpty removes dir and the directory above it that Install may have made, if nothing else is in them.
func removeEmpty(dir string) {
	if os.Remove(dir) == nil && filepath.Base(filepath.Dir(dir)) == filepath.Base(filepath.Dir(DefaultDir)) {
		_ = os.Remove(filepath.Dir(dir))
	}
}
