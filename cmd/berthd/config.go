package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"berth/streaming"
)

// Config is everything that an operator can choose. Where each field comes from
// is in the table of options.
type Config struct {
	Endpoint       string // unix:///PATH, fd:// or fd://NAME
	DockerEndpoint string // empty for the environment's
	PauseImage     string
	NetworkPlugin  string // cni or noCNI
	CNIConfDir     string
	CNIBinDirs     []string
	CNICacheDir    string
	PodCIDR        string // address ranges with commas, or empty
	RootDir        string
	RunDir         string
	PullProgress   time.Duration
	ContainerLogs  string // cri, symlink or follow
	RequestTimeout time.Duration
	StreamingAddr  string // host and port; port 0 for any
	StreamingTLS   streaming.KeyPair
	MetricsAddr    string // host and port, or empty for none
	Profiles       bool   // at MetricsAddr
	LogLevel       string // a key of levels
	LogFormat      string // text or json

	NodeCredentials bool // for pods whose pulls bring none

	verb     string // what to do
	doctor   doctorConfig
	warnings []warning
}

// A warning tells of an option that was given and has no effect.
type warning struct{ option, from, why string }

func (w warning) attrs() []slog.Attr {
	return []slog.Attr{slog.String("option", w.option), slog.String("given", w.from), slog.String("why", w.why)}
}

// A usageError is what the operator did that makes no sense.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func misuse(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// defaultConfigFile is where a configuration is looked for unless --config says otherwise.
const defaultConfigFile = "/etc/berth/config.yaml"

// theRunDir is the run-dir of the one berthd that a node should have.
const theRunDir = "/run/berth"

// readFiles sets the options that the configuration file at path gives, and then
// those of the drop-ins beside it. It need not exist unless it must.
func readFiles(table []group, path string, must bool) error {
	byName := map[string]*option{}
	for _, o := range all(table) {
		byName[o.name] = o
	}
	err := readFile(byName, path)
	if err != nil && (must || !errors.Is(err, fs.ErrNotExist)) {
		return err
	}
	dropIns := filepath.Join(filepath.Dir(path), "config.d")
	entries, err := os.ReadDir(dropIns) // by name
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return misuse("drop-ins of the configuration: %w", err)
	}
	for _, e := range entries {
		switch ext := filepath.Ext(e.Name()); {
		case strings.HasPrefix(e.Name(), "."):
			continue
		case ext == ".yml":
			return misuse("%s: drop-ins end in .yaml: rename it", filepath.Join(dropIns, e.Name()))
		case ext != ".yaml":
			continue
		}
		if err := readFile(byName, filepath.Join(dropIns, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// readFile sets the options that one file gives. What it says of an error begins
// with the file and, where there is one, the line.
func readFile(byName map[string]*option, path string) error {
	text, err := os.ReadFile(path)
	var at *fs.PathError
	if errors.As(err, &at) {
		return misuse("configuration file %s: %w", path, at.Err)
	}
	if err != nil {
		return misuse("configuration file %s: %w", path, err)
	}
	var doc yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
		return nil // an empty file says nothing
	} else if err != nil {
		return misuse("%s: %w", path, err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return misuse("%s: one YAML document is expected, and nothing after it", path)
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil // comments only
	}
	if root.Kind != yaml.MappingNode {
		return misuse("%s:%d: must be options as KEY: VALUE", path, root.Line)
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, node := root.Content[i], root.Content[i+1]
		o, known := byName[key.Value]
		if !known {
			return misuse("%s:%d: unknown option %q (--help tells what there is)", path, key.Line, key.Value)
		}
		if before, twice := seen[o.name]; twice {
			return misuse("%s:%d: option %q is given in line %d already", path, key.Line, o.name, before)
		}
		seen[o.name] = key.Line
		words, err := plainWords(node, o.value)
		if err != nil {
			return misuse("%s:%d: option %q: %w", path, node.Line, o.name, err)
		}
		if err := o.value.Set(words); err != nil {
			return misuse("%s:%d: option %q: %q: %w", path, node.Line, o.name, words, err)
		}
		o.from = fmt.Sprintf("%s:%d", path, key.Line)
	}
	return nil
}

// plainWords reads a value as it would stand on the command line.
func plainWords(n *yaml.Node, v value) (string, error) {
	_, isList := v.plain().([]string)
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		return "", errors.New(`has no value; write "" if it shall be empty`)
	case n.Kind == yaml.ScalarNode:
		return n.Value, nil
	case n.Kind != yaml.SequenceNode, !isList:
		return "", errors.New("must be a single plain value")
	}
	var words []string
	for _, item := range n.Content {
		if item.Kind != yaml.ScalarNode {
			return "", errors.New("must be a list of plain values")
		}
		words = append(words, item.Value)
	}
	return strings.Join(words, ","), nil
}

// printConfig writes the options in force, as a configuration file that says the same, and
// behind each that is not the default where it was given.
func printConfig(out io.Writer, table []group, warnings []warning) error {
	root := &yaml.Node{Kind: yaml.MappingNode}
	for _, o := range all(table) {
		if o.idle != "" {
			continue
		}
		key, node := new(yaml.Node), new(yaml.Node)
		key.SetString(o.name)
		if err := node.Encode(o.value.plain()); err != nil {
			return err
		}
		node.Style |= yaml.FlowStyle
		node.LineComment = o.from
		root.Content = append(root.Content, key, node)
	}
	text, err := yaml.Marshal(root)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		text = fmt.Appendf(text, "# %s (%s) has no effect: %s\n", w.option, w.from, w.why)
	}
	_, err = out.Write(text)
	return err
}
