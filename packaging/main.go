// Command packaging builds berthd for all supported architectures, and a deb, an rpm
// and an SBOM for each. The builds are reproducible: the same sources give the same
// bytes.
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

// A release is the version that is packaged.
type release struct {
	version string // output of git describe
	commit  string
	date    time.Time // of the sources; packages contain no other time
	out     string    // output directory
}

func main() {
	var r release
	var date int64
	flag.StringVar(&r.version, "version", "0.0.0", "version, as git describe prints it")
	flag.StringVar(&r.commit, "commit", "unknown", "commit of the sources")
	flag.Int64Var(&date, "date", 0, "date of the sources, in seconds since 1970")
	flag.StringVar(&r.out, "out", "../dist", "output directory")
	flag.Parse()
	r.date = time.Unix(date, 0).UTC()
	if err := r.build(); err != nil {
		fmt.Fprintln(os.Stderr, "packaging:", err)
		os.Exit(1)
	}
}

// build builds all packages. It runs in the directory of its sources.
func (r release) build() error {
	// Packages of an earlier build must not be mixed with those of this build.
	if err := os.RemoveAll(filepath.Join(r.out, "packages")); err != nil {
		return err
	}
	for _, dir := range []string{"packages", "stage"} {
		if err := os.MkdirAll(filepath.Join(r.out, dir), 0o755); err != nil {
			return err
		}
	}
	for _, machine := range machines {
		if err := r.compile(machine); err != nil {
			return fmt.Errorf("build for %s: %w", machine, err)
		}
	}
	if err := r.documents(); err != nil {
		return err
	}
	var names []string
	for _, machine := range machines {
		for _, format := range []string{"deb", "rpm"} {
			name, err := r.pack(machine, format)
			if err != nil {
				return fmt.Errorf("%s for %s: %w", format, machine, err)
			}
			names = append(names, name)
		}
		name := fmt.Sprintf("berth_%s_%s.spdx.json", r.number(), machine)
		if err := r.sbom(r.staged("berthd-"+machine), filepath.Join(r.out, "packages", name)); err != nil {
			return fmt.Errorf("SBOM for %s: %w", machine, err)
		}
		names = append(names, name)
	}
	return r.sums(names)
}

func (r release) staged(name string) string { return filepath.Join(r.out, "stage", name) }

// compile builds a static berthd.
func (r release) compile(machine string) error {
	path, err := filepath.Abs(r.staged("berthd-" + machine))
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", fmt.Sprintf("-s -w -buildid= -X main.version=%s -X main.commit=%s", r.version, r.commit), "-o", path, "./cmd/berthd")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+machine)
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

// documents writes the manual page, the bash completion and the Debian changelog.
func (r release) documents() error {
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
	changelog := fmt.Sprintf("berth (%s-1) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- %s  %s\n",
		r.number(), maintainer, r.date.Format(time.RFC1123Z))
	for name, text := range map[string][]byte{
		"berthd.8.gz": compress(manual), "completion": completion, "changelog.gz": compress([]byte(changelog)),
	} {
		if err := os.WriteFile(r.staged(name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// compress returns text in gzip format, without a file name or a time.
func compress(text []byte) []byte {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		panic(err) // the level is valid
	}
	w.Write(text) // a Buffer returns no errors
	w.Close()
	return out.Bytes()
}

const maintainer = "The berth developers <developers@berth.invalid>"

var (
	tagged   = regexp.MustCompile(`^v?([0-9]+\.[0-9]+\.[0-9]+)(?:-([a-z][a-z0-9.]*))?(?:-([0-9]+-g[0-9a-f]+))?(-dirty)?$`)
	untagged = regexp.MustCompile(`^([0-9a-f]{7,40})(-dirty)?$`)
)

// number returns the version in the form of package versions: sources without a tag sort
// before every release, sources after a tag sort after it.
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

// pack builds one package and returns its file name.
func (r release) pack(machine, format string) (string, error) {
	variables := map[string]string{"VERSION": r.number(), "MACHINE": machine, "STAGE": filepath.Join(r.out, "stage"), "MAINTAINER": maintainer}
	config, err := nfpm.ParseFileWithEnvMapping("berth.yaml", func(name string) string { return variables[name] })
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
