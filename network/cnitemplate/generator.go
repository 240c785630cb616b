package cnitemplate

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"berth/core/atomicfile"
	"berth/network/cniconf"
)

// FileName is the name of the generated file. It sorts behind the files of networks, and no
// other program has one of that name.
const FileName = "99-berth.conflist"

// A Record keeps a short text over restarts of the daemon.
type Record interface {
	Get() string
	Put(text string) error
}

// Config is what New needs.
type Config struct {
	// Dir is the directory of network configurations. It is created when it is needed.
	Dir string
	// Template makes the configuration. Without one, the file of an earlier run is removed.
	Template *Template
	// DefaultNetwork is the only network that pods get, if it is not empty. Configurations of
	// others then count as none.
	DefaultNetwork string
	// Record has the digests of what was written.
	Record Record
	Log    *slog.Logger
}

// A Generator keeps the generated file.
type Generator struct {
	cfg  Config
	path string
	// written are the digests of the file as it is, or was or will be within one write.
	written []string
}

// New returns a Generator. It removes what an interrupted write has left.
func New(cfg Config) *Generator {
	g := &Generator{cfg: cfg, path: filepath.Join(cfg.Dir, FileName), written: strings.Fields(cfg.Record.Get())}
	if len(g.written) > 0 {
		temporary, _ := filepath.Glob(filepath.Join(cfg.Dir, atomicfile.TempPattern(FileName)))
		for _, path := range temporary {
			_ = os.Remove(path) // one that stays is read by no program
		}
	}
	return g
}

// Sync writes, replaces or removes the file, or leaves it as it is. subnets are the pod CIDR of the node,
// none while it is not known. Only one Sync may run at a time.
func (g *Generator) Sync(subnets []netip.Prefix) error {
	if g.cfg.Template == nil && len(g.written) == 0 {
		return nil
	}
	content, own, err := g.read()
	if err != nil {
		return err
	}
	if !own && content != nil && g.makes(content, subnets) {
		if err := g.record(digest(content)); err != nil { // it was lost
			return err
		}
		own = true
	}
	other, err := g.otherFile(own)
	if err != nil {
		return err
	}
	want, err := g.want(subnets, other)
	switch {
	case want == nil && own:
		return errors.Join(err, g.remove())
	case want == nil:
		return errors.Join(err, g.record())
	case bytes.Equal(content, want):
		return nil
	case content != nil && !own:
		return fmt.Errorf("%s was changed, or not written by berth, and is not replaced: remove it", g.path)
	default:
		return g.write(content, want)
	}
}

// makes reports whether content is the configuration for the subnets.
func (g *Generator) makes(content []byte, subnets []netip.Prefix) bool {
	if g.cfg.Template == nil || len(subnets) == 0 {
		return false
	}
	made, _, err := g.cfg.Template.Render(subnets)
	return err == nil && bytes.Equal(content, made)
}

// read returns the content of the file, nil if there is none, and whether the Generator has written it.
func (g *Generator) read() (content []byte, own bool, err error) {
	info, err := os.Lstat(g.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, false, nil
	case err != nil:
		return nil, false, err
	case !info.Mode().IsRegular():
		return []byte{}, false, nil // something of the operator's
	}
	if content, err = os.ReadFile(g.path); err != nil {
		return nil, false, err
	}
	return content, slices.Contains(g.written, digest(content)), nil
}

// want returns the content that the file should have, nil if it should not exist. other is a configuration that
// is not the Generator's, "" without one.
func (g *Generator) want(subnets []netip.Prefix, other string) ([]byte, error) {
	if g.cfg.Template == nil || other != "" && g.cfg.DefaultNetwork == "" {
		return nil, nil
	}
	if len(subnets) == 0 {
		return nil, errors.New("cni-conf-template waits for the pod CIDR, which the kubelet has not sent yet: if it has none, set pod-cidr")
	}
	content, network, err := g.cfg.Template.Render(subnets)
	if err != nil {
		return nil, fmt.Errorf("cni-conf-template: with the pod CIDR %v: %w", subnets, err)
	}
	if g.cfg.DefaultNetwork != "" && network != g.cfg.DefaultNetwork {
		return nil, fmt.Errorf("cni-conf-template makes the network %q, and cni-default-network is %q", network, g.cfg.DefaultNetwork)
	}
	return content, nil
}

// otherFile returns a configuration that is not the Generator's, "" without one. One that is not valid
// counts: pods must not get another network because of a mistake in a file.
func (g *Generator) otherFile(own bool) (string, error) {
	entries, err := os.ReadDir(g.cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for _, e := range entries {
		if cniconf.IsConfig(e) && (e.Name() != FileName || !own) {
			return e.Name(), nil
		}
	}
	return "", nil
}

// write replaces content, nil for no file, by want. The digests of both are recorded before: if the daemon is killed
// meanwhile, the next one knows the file, whichever it is.
func (g *Generator) write(content, want []byte) error {
	if err := os.MkdirAll(g.cfg.Dir, 0o755); err != nil {
		return err
	}
	digests := []string{digest(want)}
	if content != nil {
		digests = append(digests, digest(content))
	}
	if err := g.record(digests...); err != nil {
		return err
	}
	if err := atomicfile.Write(g.path, want); err != nil {
		return err
	}
	g.cfg.Log.Info("CNI configuration written from cni-conf-template", slog.String("file", g.path))
	return nil
}

// remove removes the file.
func (g *Generator) remove() error {
	if err := atomicfile.Remove(g.path); err != nil {
		return err
	}
	g.cfg.Log.Info("CNI configuration from cni-conf-template removed: another one is there, or it is not wanted any more", slog.String("file", g.path))
	return g.record()
}

// record replaces the digests.
func (g *Generator) record(digests ...string) error {
	if slices.Equal(digests, g.written) {
		return nil
	}
	if err := g.cfg.Record.Put(strings.Join(digests, " ")); err != nil {
		return fmt.Errorf("record the CNI configuration: %w", err)
	}
	g.written = digests
	return nil
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}
