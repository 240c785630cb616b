package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/blakesmith/ar"
)

// repositories builds signed repositories for apt and dnf in repository/apt and
// repository/rpm, which any web server can serve, and the public key beside them.
func (r release) repositories(names []string) error {
	public, err := r.signer.public()
	if err != nil {
		return err
	}
	if err := r.write("repository/berth.asc", public); err != nil {
		return err
	}
	if err := r.aptRepository(names); err != nil {
		return fmt.Errorf("apt repository: %w", err)
	}
	if err := r.rpmRepository(names); err != nil {
		return fmt.Errorf("rpm repository: %w", err)
	}
	return nil
}

const (
	suite     = "stable"
	component = "main"
)

// aptRepository writes the indices that are described in
// https://wiki.debian.org/DebianRepository/Format.
func (r release) aptRepository(names []string) error {
	indices := map[string]string{} // Packages, by architecture
	for _, name := range names {
		if filepath.Ext(name) != ".deb" {
			continue
		}
		pool := "pool/" + component + "/b/berth/" + name
		if err := r.publish(name, "apt/"+pool); err != nil {
			return err
		}
		content, err := os.ReadFile(filepath.Join(r.out, "packages", name))
		if err != nil {
			return err
		}
		control, err := debControl(content)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		_, arch, _ := strings.Cut(strings.TrimSuffix(name, ".deb"), "_")
		_, arch, _ = strings.Cut(arch, "_")
		indices[arch] += fmt.Sprintf("%s\nFilename: %s\nSize: %d\nSHA256: %x\n\n", control, pool, len(content), sha256.Sum256(content))
	}
	archs := slices.Sorted(maps.Keys(indices))
	var sums strings.Builder
	for _, arch := range archs {
		index := []byte(indices[arch])
		for i, content := range [][]byte{index, compress(index)} {
			path := component + "/binary-" + arch + "/" + []string{"Packages", "Packages.gz"}[i]
			if err := r.write("repository/apt/dists/"+suite+"/"+path, content); err != nil {
				return err
			}
			fmt.Fprintf(&sums, " %x %d %s\n", sha256.Sum256(content), len(content), path)
		}
	}
	text := fmt.Appendf(nil, "Origin: berth\nLabel: berth\nSuite: %s\nCodename: %s\nDate: %s\nArchitectures: %s\nComponents: %s\n"+
		"Description: Kubernetes pods on Docker Engine\nSHA256:\n%s",
		suite, suite, r.date.Format("Mon, 02 Jan 2006 15:04:05 UTC"), strings.Join(archs, " "), component, sums.String())
	inline, err := r.signer.inline(text)
	if err != nil {
		return err
	}
	detached, err := r.signer.armored(bytes.NewReader(text))
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{"Release": text, "InRelease": inline, "Release.gpg": detached} {
		if err := r.write("repository/apt/dists/"+suite+"/"+name, content); err != nil {
			return err
		}
	}
	return nil
}

// debControl returns the control file of a deb.
func debControl(deb []byte) (string, error) {
	members := ar.NewReader(bytes.NewReader(deb))
	for {
		member, err := members.Next()
		if err != nil {
			return "", fmt.Errorf("no control.tar.gz: %w", err)
		}
		if strings.TrimSuffix(member.Name, "/") != "control.tar.gz" {
			continue
		}
		raw, err := gzip.NewReader(members)
		if err != nil {
			return "", err
		}
		for files := tar.NewReader(raw); ; {
			file, err := files.Next()
			if err != nil {
				return "", fmt.Errorf("no control file: %w", err)
			}
			if filepath.Base(file.Name) == "control" {
				text, err := io.ReadAll(files)
				return strings.TrimSpace(string(text)), err
			}
		}
	}
}

// rpmRepository lets createrepo_c write the metadata.
func (r release) rpmRepository(names []string) error {
	dir := filepath.Join(r.out, "repository", "rpm")
	for _, name := range names {
		if filepath.Ext(name) != ".rpm" {
			continue
		}
		if err := r.publish(name, "rpm/"+name); err != nil {
			return err
		}
	}
	// gzip, because dnf in RHEL 8 reads no zstd, which is the default since createrepo_c 1.0.
	cmd := exec.Command("createrepo_c", "--quiet", "--no-database", "--general-compress-type=gz",
		"--revision", strconv.FormatInt(r.date.Unix(), 10), "--set-timestamp-to-revision", dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return errors.New("createrepo_c must be installed (Debian: createrepo-c, Fedora: createrepo_c)")
		}
		return fmt.Errorf("createrepo_c: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "repodata", "repomd.xml"))
	if err != nil {
		return err
	}
	signature, err := r.signer.armored(bytes.NewReader(text))
	if err != nil {
		return err
	}
	return r.write("repository/rpm/repodata/repomd.xml.asc", signature)
}

// publish puts a package into a repository.
func (r release) publish(name, path string) error {
	content, err := os.ReadFile(filepath.Join(r.out, "packages", name))
	if err != nil {
		return err
	}
	if err := r.write("repository/"+path, content); err != nil {
		return err
	}
	// createrepo_c records the time.
	return os.Chtimes(filepath.Join(r.out, "repository", path), r.date, r.date)
}

// write writes a file below the output directory, readable for a web server with any umask.
func (r release) write(path string, content []byte) error {
	path = filepath.Join(r.out, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o644)
}
