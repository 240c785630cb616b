// Command packaging builds berthd and berth-oci for all supported architectures, and a deb, an rpm
// and an SBOM for each. The builds are reproducible: the same sources give the same
// bytes. With a key it signs the packages and SHA256SUMS, and builds signed repositories
// for apt and dnf.
package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb" // registers itself
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm" // registers itself
)

// A machine is an architecture that berthd is built for. Its name is that of SBOMs and
// staged programs.
type machine struct {
	name     string
	goarch   string
	level    string // the oldest processors: set, so that the builder's environment does not matter
	packager string // name in nfpm, which knows those of Debian and rpm
}

var machines = []machine{
	{"amd64", "amd64", "GOAMD64=v1", "amd64"},
	{"arm64", "arm64", "GOARM64=v8.0", "arm64"},
	{"armv7", "arm", "GOARM=7", "arm7"}, // armhf, armv7hl
	{"ppc64le", "ppc64le", "GOPPC64=power8", "ppc64le"},
	{"riscv64", "riscv64", "GORISCV64=rva20u64", "riscv64"},
	{"s390x", "s390x", "", "s390x"},
}

// choose returns the machines with these names, separated by commas or spaces; all if there
// are none.
func choose(names string) ([]machine, error) {
	var chosen []machine
	for _, name := range strings.FieldsFunc(names, func(r rune) bool { return r == ',' || r == ' ' }) {
		i := slices.IndexFunc(machines, func(m machine) bool { return m.name == name })
		if i < 0 {
			var known []string
			for _, m := range machines {
				known = append(known, m.name)
			}
			return nil, fmt.Errorf("-machines %s: must be of %s", name, strings.Join(known, ", "))
		}
		chosen = append(chosen, machines[i])
	}
	if len(chosen) == 0 {
		return machines, nil
	}
	return chosen, nil
}

// A release is the version that is packaged.
type release struct {
	version string // output of git describe
	commit  string
	date    time.Time // of the sources; packages contain no other time
	out     string    // output directory

	machines []machine
	signer   *signer // nil if nothing is signed
}

func main() {
	var r release
	var date int64
	flag.StringVar(&r.version, "version", "0.0.0", "version, as git describe prints it")
	flag.StringVar(&r.commit, "commit", "unknown", "commit of the sources")
	flag.Int64Var(&date, "date", 0, "date of the sources, in seconds since 1970")
	flag.StringVar(&r.out, "out", "../dist", "output directory")
	names := flag.String("machines", "", "architectures, separated by commas (default all)")
	key := flag.String("key", "", "`file` with the OpenPGP private key that signs; its passphrase is in the environment variable "+passphraseVariable)
	passphrase := flag.String("passphrase-file", "", "`file` whose first line is the passphrase of the key")
	flag.Parse()
	r.date = time.Unix(date, 0).UTC()
	if err := r.run(*names, *key, *passphrase); err != nil {
		fmt.Fprintln(os.Stderr, "packaging:", err)
		os.Exit(1)
	}
}

// run builds the packages of the named machines and says whether they are signed.
func (r release) run(names, key, passphraseFile string) (err error) {
	if r.machines, err = choose(names); err != nil {
		return err
	}
	if key == "" {
		if passphraseFile != "" {
			return errors.New("-passphrase-file: only with -key")
		}
	} else if r.signer, err = readSigner(key, passphraseFile); err != nil {
		return fmt.Errorf("-key: %w", err)
	}
	if err := r.build(); err != nil {
		return err
	}
	if r.signer == nil {
		fmt.Println("The packages and SHA256SUMS are not signed, and there are no repositories: this needs a key (make packages SIGNING_KEY=file).")
	} else {
		fmt.Printf("The packages, SHA256SUMS and repositories are signed with the key %s.\n", r.signer)
	}
	return nil
}

// build builds all packages. It runs in the directory of its sources.
func (r release) build() error {
	// Packages of an earlier build must not be mixed with those of this build.
	for _, dir := range []string{"packages", "repository"} {
		if err := os.RemoveAll(filepath.Join(r.out, dir)); err != nil {
			return err
		}
	}
	for _, dir := range []string{"packages", "stage"} {
		if err := os.MkdirAll(filepath.Join(r.out, dir), 0o755); err != nil {
			return err
		}
	}
	for _, m := range r.machines {
		for _, program := range programs() {
			if err := r.compile(program, m); err != nil {
				return fmt.Errorf("build %s for %s: %w", program, m.name, err)
			}
		}
	}
	if err := r.documents(); err != nil {
		return err
	}
	var names []string
	for _, m := range r.machines {
		for _, format := range []string{"deb", "rpm"} {
			name, err := r.pack(m, format)
			if err != nil {
				return fmt.Errorf("%s for %s: %w", format, m.name, err)
			}
			names = append(names, name)
		}
		name := fmt.Sprintf("berth_%s_%s.spdx.json", r.number(), m.name)
		if err := r.sbom(r.staged("berthd-"+m.name), filepath.Join(r.out, "packages", name)); err != nil {
			return fmt.Errorf("SBOM for %s: %w", m.name, err)
		}
		names = append(names, name)
	}
	if err := r.sums(names); err != nil {
		return err
	}
	if r.signer == nil {
		return nil
	}
	return r.repositories(names)
}

func (r release) staged(name string) string { return filepath.Join(r.out, "stage", name) }

// programs lists the programs whose sources are here.
func programs() []string {
	found := []string{"berthd"}
	if _, err := os.Stat("../cmd/" + ociRuntime); err == nil {
		found = append(found, ociRuntime)
	}
	return found
}

// ociRuntime is the OCI runtime, which a package has if its sources are here.
const ociRuntime = "berth-oci"

// compile builds a static program.
func (r release) compile(program string, m machine) error {
	path, err := filepath.Abs(r.staged(program + "-" + m.name))
	if err != nil {
		return err
	}
	return r.goBuild("./cmd/"+program, path, append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+m.goarch, m.level))
}

// goBuild builds the program of the package into path.
func (r release) goBuild(pkg, path string, environ []string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags", "nri_no_wasm,grpcnotrace",
		"-ldflags", fmt.Sprintf("-s -w -buildid= -X main.version=%s -X main.commit=%s", r.version, r.commit), "-o", path, pkg)
	cmd.Dir = ".."
	cmd.Env = environ
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

// native returns the path of a berthd that runs here, which is built for the documents alone
// if this machine is none of those that packages are built for.
func (r release) native() (string, error) {
	name := "berthd-native"
	for _, m := range r.machines {
		if m.goarch == runtime.GOARCH {
			name = "berthd-" + m.name
		}
	}
	path, err := filepath.Abs(r.staged(name))
	if err != nil || name != "berthd-native" {
		return path, err
	}
	return path, r.goBuild("./cmd/berthd", path, append(os.Environ(), "CGO_ENABLED=0"))
}

// documents writes the manual page, the bash completion and the Debian changelog.
func (r release) documents() error {
	berthd, err := r.native()
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
func (r release) pack(m machine, format string) (string, error) {
	variables := map[string]string{"VERSION": r.number(), "MACHINE": m.name, "PACKAGER": m.packager, "STAGE": filepath.Join(r.out, "stage"), "MAINTAINER": maintainer}
	config, err := nfpm.ParseFileWithEnvMapping("berth.yaml", func(name string) string { return variables[name] })
	if err != nil {
		return "", err
	}
	info, err := config.Get(format)
	if err != nil {
		return "", err
	}
	info.MTime = r.date
	if r.signer != nil {
		info.Deb.Signature.SignFn, info.RPM.Signature.SignFn = r.signer.armored, r.signer.binary
	}
	if !slices.Contains(programs(), ociRuntime) {
		info.Contents = slices.DeleteFunc(info.Contents, func(c *files.Content) bool { return filepath.Base(c.Destination) == ociRuntime })
	}
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

// sums writes SHA256SUMS, for sha256sum --check, and SHA256SUMS.asc, for gpg --verify.
func (r release) sums(names []string) error {
	var text strings.Builder
	for _, name := range names {
		content, err := os.ReadFile(filepath.Join(r.out, "packages", name))
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "%x  %s\n", sha256.Sum256(content), name)
	}
	if err := r.write("packages/SHA256SUMS", []byte(text.String())); err != nil {
		return err
	}
	if r.signer == nil {
		return nil
	}
	signature, err := r.signer.armored(strings.NewReader(text.String()))
	if err != nil {
		return fmt.Errorf("SHA256SUMS.asc: %w", err)
	}
	return r.write("packages/SHA256SUMS.asc", signature)
}
