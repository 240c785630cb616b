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
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
	"k8s.io/klog/v2"
)

// Config is everything that an operator can choose. The keys of the file are
// the names of the flags.
type Config struct {
	Endpoint       string
	DockerEndpoint string
	PauseImage     string
	NetworkPlugin  string
	CNIConfDir     string
	CNIBinDirs     []string
	CNICacheDir    string
	PodCIDR        string
	RootDir        string
	RunDir         string
	PullProgress   time.Duration
	RequestTimeout time.Duration
	StreamingAddr  string
	LogLevel       string
	LogFormat      string

	warnings []string
}

// A usageError is what the operator did that makes no sense.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func misuse(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// Where a configuration is looked for unless --config says otherwise.
const defaultConfigFile = "/etc/berth/config.yaml"

// readFile sets the flags that the configuration file at path names, but for
// those that the command line has set.
func readFile(flags *pflag.FlagSet, path string) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && path == defaultConfigFile && !flags.Changed("config") {
		return nil
	}
	if err != nil {
		return misuse("--config: %v", err)
	}
	var doc yaml.Node
	if err := yaml.NewDecoder(bytes.NewReader(text)).Decode(&doc); errors.Is(err, io.EOF) {
		return nil // an empty file says nothing
	} else if err != nil {
		return misuse("%s: %v", path, err)
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return misuse("%s:%d: not a mapping of options to values", path, root.Line)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		f := flags.Lookup(key.Value)
		switch {
		case f == nil || !slices.Contains(fileKeys(flags), key.Value):
			return misuse("%s:%d: unknown option %q", path, key.Line, key.Value)
		case seen[key.Value]:
			return misuse("%s:%d: option %q stands twice", path, key.Line, key.Value)
		case flags.Changed(key.Value):
			seen[key.Value] = true
			continue
		}
		seen[key.Value] = true
		word, err := scalar(value)
		if err != nil {
			return misuse("%s:%d: option %q: %v", path, value.Line, key.Value, err)
		}
		if err := f.Value.Set(word); err != nil {
			return misuse("%s:%d: option %q: %q is no valid value: %v", path, value.Line, key.Value, word, err)
		}
	}
	return nil
}

// scalar reads a value, or a list of them as one with commas.
func scalar(n *yaml.Node) (string, error) {
	switch n.Kind {
	case yaml.ScalarNode:
		return n.Value, nil
	case yaml.SequenceNode:
		var words []string
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode {
				return "", errors.New("a list of plain values is wanted")
			}
			words = append(words, item.Value)
		}
		return strings.Join(words, ","), nil
	default:
		return "", errors.New("a plain value is wanted")
	}
}

// check says what is wrong with the values, each in itself a valid one.
func (c *Config) check() error {
	for _, p := range []struct{ flag, value string }{
		{"cni-conf-dir", c.CNIConfDir}, {"cni-cache-dir", c.CNICacheDir},
		{"cri-dockerd-root-directory", c.RootDir}, {"run-dir", c.RunDir},
	} {
		if !filepath.IsAbs(p.value) {
			return misuse("--%s: %q is not an absolute path", p.flag, p.value)
		}
	}
	for _, dir := range c.CNIBinDirs {
		if !filepath.IsAbs(dir) {
			return misuse("--cni-bin-dir: %q is not an absolute path", dir)
		}
	}
	if c.PullProgress <= 0 {
		return misuse("--image-pull-progress-deadline: %v is not a time to wait", c.PullProgress)
	}
	if c.RequestTimeout < 0 {
		return misuse("--runtime-request-timeout: %v is not a time to wait", c.RequestTimeout)
	}
	if c.PauseImage == "" {
		return misuse("--pod-infra-container-image: empty; leave it out for the default")
	}
	return nil
}

// newLog returns the daemon's log. What libraries say goes there too.
func newLog(w io.Writer, cfg Config) *slog.Logger {
	options := &slog.HandlerOptions{Level: levels[cfg.LogLevel]}
	var handler slog.Handler = slog.NewTextHandler(w, options)
	if cfg.LogFormat == "json" {
		handler = slog.NewJSONHandler(w, options)
	}
	log := slog.New(handler)
	klog.SetSlogLogger(log)
	return log
}

// levels are those of cri-dockerd, which logs with other words.
var levels = map[string]slog.Level{
	"trace": slog.LevelDebug, "debug": slog.LevelDebug, "info": slog.LevelInfo,
	"warn": slog.LevelWarn, "warning": slog.LevelWarn,
	"error": slog.LevelError, "fatal": slog.LevelError, "panic": slog.LevelError,
}
