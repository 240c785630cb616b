package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// readFiles sets the options that the configuration file at path and the drop-ins beside it give.
// If the file is not required, it may be missing.
func (o *Options) readFiles(path string, required bool) error {
	byName := map[string]*option{}
	for _, opt := range o.options {
		byName[opt.name] = opt
	}
	err := readFile(byName, path)
	if err != nil && (required || !errors.Is(err, fs.ErrNotExist)) {
		return err
	}
	dropIns := filepath.Join(filepath.Dir(path), "config.d")
	entries, err := os.ReadDir(dropIns) // sorted by name
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return UsageErrorf("drop-ins of the configuration: %w", err)
	}
	for _, e := range entries {
		switch ext := filepath.Ext(e.Name()); {
		case strings.HasPrefix(e.Name(), "."):
			continue
		case ext == ".yml":
			return UsageErrorf("%s: drop-ins end in .yaml: rename it", filepath.Join(dropIns, e.Name()))
		case ext != ".yaml":
			continue
		}
		if err := readFile(byName, filepath.Join(dropIns, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// readFile sets the options that one file gives. Errors begin with the file and, where there is
// one, the line.
func readFile(byName map[string]*option, path string) error {
	root, err := parseMapping(path)
	if err != nil || root == nil {
		return err
	}
	lines := map[string]int{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, node := root.Content[i], root.Content[i+1]
		opt, known := byName[key.Value]
		if !known {
			return UsageErrorf("%s:%d: unknown option %q (--help lists all options)", path, key.Line, key.Value)
		}
		if line, twice := lines[opt.name]; twice {
			return UsageErrorf("%s:%d: option %q is given in line %d already", path, key.Line, opt.name, line)
		}
		lines[opt.name] = key.Line
		text, err := flagText(node, opt.value)
		if err != nil {
			return UsageErrorf("%s:%d: option %q: %w", path, node.Line, opt.name, err)
		}
		if err := opt.value.Set(text); err != nil {
			return UsageErrorf("%s:%d: option %q: %q: %w", path, node.Line, opt.name, text, err)
		}
		opt.source = fmt.Sprintf("%s:%d", path, key.Line)
	}
	return nil
}

// parseMapping returns the YAML mapping in the file at path, nil if the file is empty or has comments only.
func parseMapping(path string) (*yaml.Node, error) {
	text, err := os.ReadFile(path)
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err // without the path
	}
	if err != nil {
		return nil, UsageErrorf("configuration file %s: %w", path, err)
	}
	var doc yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, UsageErrorf("%s: %w", path, err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, UsageErrorf("%s: one YAML document is expected, and nothing after it", path)
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, UsageErrorf("%s:%d: must be options as KEY: VALUE", path, root.Line)
	}
	return root, nil
}

// flagText returns a value of a file as it would be written on the command line.
func flagText(n *yaml.Node, v value) (string, error) {
	_, isList := v.yaml().([]string)
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		return "", errors.New(`has no value; write "" if it shall be empty`)
	case n.Kind == yaml.ScalarNode:
		return n.Value, nil
	case n.Kind != yaml.SequenceNode, !isList:
		return "", errors.New("must be a single plain value")
	}
	var items []string
	for _, item := range n.Content {
		if item.Kind != yaml.ScalarNode {
			return "", errors.New("must be a list of plain values")
		}
		items = append(items, item.Value)
	}
	return strings.Join(items, ","), nil
}
