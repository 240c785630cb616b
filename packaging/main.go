// Command packaging builds berthd for all machines that there are packages for,
// and makes a deb, an rpm and a list of contents (SBOM) for each. The same sources
// give the same bytes.
package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb" // registers itself
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm" // registers itself
)

var machines = []string{"amd64", "arm64"}

// A release is what is packaged.
type release struct {
	version string // as git tells it
	commit  string
	date    time.Time // of the sources: no clock gets into a package
	out     string    // directory of the packages
}

func main() {
	var r release
	var date int64
	flag.StringVar(&r.version, "version", "0.0.0", "as git describe tells it")
	flag.StringVar(&r.commit, "commit", "unknown", "of the sources")
	flag.Int64Var(&date, "date", 0, "of the sources, in seconds since 1970")
	flag.StringVar(&r.out, "out", "../dist", "directory for the packages")
	flag.Parse()
	r.date = time.Unix(date, 0).UTC()
	if err := r.make(); err != nil {
		fmt.Fprintln(os.Stderr, "packaging:", err)
		os.Exit(1)
	}
}

// make makes everything. It runs in its own source directory.
func (r release) make() error {
	// Packages of other sources must not lie beside those of these.
	if err := os.RemoveAll(filepath.Join(r.out, "packages")); err != nil {
		return err
	}
	for _, dir := range []string{"packages", "stage"} {
		if err := os.MkdirAll(filepath.Join(r.out, dir), 0o755); err != nil {
			return err
		}
	}
	for _, machine := range machines {
		if err := r.build(machine); err != nil {
			return fmt.Errorf("build for %s: %w", machine, err)
		}
	}
	if err := r.texts(); err != nil {
		return err
	}
	var made []string
	for _, machine := range machines {
		for _, format := range []string{"deb", "rpm"} {
			name, err := r.pack(machine, format)
			if err != nil {
				return fmt.Errorf("%s for %s: %w", format, machine, err)
			}
			made = append(made, name)
		}
		name := fmt.Sprintf("berth_%s_%s.spdx.json", r.number(), machine)
		if err := r.sbom(r.staged("berthd-"+machine), filepath.Join(r.out, "packages", name)); err != nil {
			return fmt.Errorf("list of contents for %s: %w", machine, err)
		}
		made = append(made, name)
	}
	return r.sums(made)
}

func (r release) staged(name string) string { return filepath.Join(r.out, "stage", name) }

// build builds berthd, which needs nothing of the system but the kernel.
func (r release) build(machine string) error {
	to, err := filepath.Abs(r.staged("berthd-" + machine))
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", fmt.Sprintf("-s -w -buildid= -X main.version=%s -X main.commit=%s", r.version, r.commit), "-o", to, "./cmd/berthd")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+machine)
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

// texts makes what berthd says of itself and what packages say of their past.
func (r release) texts() error {
	berthd, err := filepath.Abs(r.staged("berthd-" + runtime.GOARCH))
	if err != nil {
		return err
	}
	manual, err := exec.Command(berthd, "man").Output()
	if err != nil {
		return fmt.Errorf("berthd man: %w", err)
	}
	completion, err := exec.Command(berthd, "completion", "bash").Output()
	if err != nil {
		return fmt.Errorf("berthd completion bash: %w", err)
	}
	changes := fmt.Sprintf("berth (%s-1) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- %s  %s\n",
		r.number(), maintainer, r.date.Format(time.RFC1123Z))
	for name, text := range map[string][]byte{
		"berthd.8.gz": compress(manual), "completion": completion, "changelog.gz": compress([]byte(changes)),
	} {
		if err := os.WriteFile(r.staged(name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// compress returns text as gzip writes it without a name or a time.
func compress(text []byte) []byte {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		panic(err) // there is such a level
	}
	w.Write(text) // a Buffer takes everything
	w.Close()
	return out.Bytes()
}

const maintainer = "The berth developers <developers@berth.invalid>"

var (
	tagged   = regexp.MustCompile(`^v?([0-9]+\.[0-9]+\.[0-9]+)(?:-([a-z][a-z0-9.]*))?(?:-([0-9]+-g[0-9a-f]+))?(-dirty)?$`)
	untagged = regexp.MustCompile(`^([0-9a-f]{7,40})(-dirty)?$`)
)

// number returns the version as packages have it: sources without a tag are older
// than any release, those after a tag are newer than it.
func (r release) number() string {
	if m := tagged.FindStringSubmatch(r.version); m != nil {
		number := m[1]
		if m[2] != "" {
			number += "~" + m[2]
		}
		if m[3] != "" {
			number += "+" + strings.ReplaceAll(m[3], "-", ".")
		}
		return number + strings.ReplaceAll(m[4], "-", ".")
	}
	if m := untagged.FindStringSubmatch(r.version); m != nil {
		return "0.0.0~" + r.date.Format("20060102.150405") + "." + m[1] + strings.ReplaceAll(m[2], "-", ".")
	}
	return r.version
}

// pack makes one package and returns its file name.
func (r release) pack(machine, format string) (string, error) {
	words := map[string]string{"VERSION": r.number(), "MACHINE": machine, "STAGE": filepath.Join(r.out, "stage"), "MAINTAINER": maintainer}
	config, err := nfpm.ParseFileWithEnvMapping("berth.yaml", func(word string) string { return words[word] })
	if err != nil {
		return "", err
	}
	info, err := config.Get(format)
	if err != nil {
		return "", err
	}
	info.MTime = r.date
	for _, content := range info.Contents {
		if content.FileInfo == nil {
			content.FileInfo = &files.ContentFileInfo{}
		}
		content.FileInfo.MTime = r.date
	}
	if err := nfpm.PrepareForPackager(info, format); err != nil {
		return "", err
	}
	packager, err := nfpm.Get(format)
	if err != nil {
		return "", err
	}
	name := packager.ConventionalFileName(info)
	var out bytes.Buffer
	if err := packager.Package(info, &out); err != nil {
		return "", err
	}
	return name, os.WriteFile(filepath.Join(r.out, "packages", name), out.Bytes(), 0o644)
}

// sums writes SHA256SUMS, for sha256sum --check.
func (r release) sums(names []string) error {
	var text strings.Builder
	for _, name := range names {
		content, err := os.ReadFile(filepath.Join(r.out, "packages", name))
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "%x  %s\n", sha256.Sum256(content), name)
	}
	return os.WriteFile(filepath.Join(r.out, "packages", "SHA256SUMS"), []byte(text.String()), 0o644)
}
