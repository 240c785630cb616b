// Package cniconf finds, checks and selects the node's CNI configuration.
//
// A [Dir] reads the network configuration directory, watches it, and selects the network
// that new pods are attached to: the first in the order of file names that is valid and
// whose plugins are all installed, of those with the default network's name if there is one. The rules are those of libcni; in addition a Network
// has all of its plugins inlined, so that its bytes are enough for a later DEL. It runs no plugins.
package cniconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
)

// Config says where to look. All paths are absolute.
type Config struct {
	// Dir is the directory of network configurations. It need not exist yet.
	Dir string
	// BinDirs are the directories of plugins, the first match wins.
	BinDirs []string
	// DefaultNetwork is the name of the network that Select returns, "" for the first one.
	DefaultNetwork string
	// Generate is called before each read, and may write or remove a file of the directory. If
	// there is no network, its error says why, and it is retried. It may be nil.
	Generate func() error
	Log      *slog.Logger
}

// A Dir is the network configuration directory. Run keeps what it has read current. Its
// methods may be called concurrently, except Reload, which only New and Run call.
type Dir struct {
	path           string
	binDirs        []string
	defaultNetwork string
	generate       func() error
	log            *slog.Logger
	wake           chan struct{} // has an element if Run is to reload
	content        atomic.Pointer[content]
}

// A Network is one valid configuration file.
type Network struct {
	File string
	// List has all plugins inlined: its Bytes are everything that DEL needs.
	List *libcni.NetworkConfigList

	binDirs []string
	// complete is set once all plugins have been found, and stays set: while an upgrade
	// replaces a plugin, new pods must not get the next network.
	complete atomic.Bool
}

// content is the result of reading the directory once.
type content struct {
	networks    []*Network
	invalid     []invalidConf
	err         error // the directory could not be read
	generateErr error
}

// An invalidConf is a file that is not a valid configuration.
type invalidConf struct {
	file string
	err  error
}

// New returns a Dir that has been read once. Missing files or plugins are not an error, see Select.
func New(cfg Config) *Dir {
	d := &Dir{
		path: filepath.Clean(cfg.Dir), binDirs: cfg.BinDirs, defaultNetwork: cfg.DefaultNetwork, generate: cfg.Generate, log: cfg.Log,
		wake: make(chan struct{}, 1),
	}
	d.Reload()
	return d
}

// Reload reads the directory again. Networks whose configuration has not changed stay the
// same *Network.
func (d *Dir) Reload() {
	var generateErr error
	if d.generate != nil {
		generateErr = d.generate()
	}
	current, previous := d.read(), d.content.Load()
	current.generateErr = generateErr
	if previous == nil {
		previous = &content{}
	}
	for i, nw := range current.networks {
		for _, old := range previous.networks {
			if old.File == nw.File && bytes.Equal(old.List.Bytes, nw.List.Bytes) {
				current.networks[i] = old
			}
		}
	}
	d.content.Store(current)
	d.logChanges(previous, current)
}

// Trigger makes Run reload the directory soon, because the result of Config.Generate may have changed.
func (d *Dir) Trigger() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// read reads all configuration files, in the order of their names.
func (d *Dir) read() *content {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return &content{err: err}
	}
	c := &content{}
	for _, entry := range entries {
		if !IsConfig(entry) {
			continue
		}
		file := filepath.Join(d.path, entry.Name())
		list, err := readFile(file)
		if err != nil {
			c.invalid = append(c.invalid, invalidConf{file, err})
			continue
		}
		c.networks = append(c.networks, &Network{File: file, List: list, binDirs: d.binDirs})
	}
	return c
}

// IsConfig reports whether libcni takes the entry of the directory for a configuration.
func IsConfig(entry fs.DirEntry) bool {
	switch filepath.Ext(entry.Name()) {
	case ".conf", ".conflist", ".json":
		return !entry.IsDir()
	default:
		return false
	}
}

// readFile reads one configuration file, with the plugins of its subdirectory.
func readFile(file string) (*libcni.NetworkConfigList, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if filepath.Ext(file) != ".conflist" {
		if data, err = listOfOne(data); err != nil {
			return nil, err
		}
	}
	list, err := Parse(data)
	if err != nil {
		return nil, err
	}
	if !list.LoadOnlyInlinedPlugins {
		more, err := libcni.NetworkPluginConfsFromFiles(filepath.Dir(file), list.Name)
		if err != nil {
			return nil, err
		}
		if list, err = inline(list, more); err != nil {
			return nil, err
		}
	}
	if len(list.Plugins) == 0 {
		return nil, errors.New("it names no plugins")
	}
	return list, nil
}

// Parse parses and checks a list of plugins, which may be empty.
func Parse(data []byte) (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	// A *types.Error that is assigned to err would not be nil.
	if invalidName := utils.ValidateNetworkName(list.Name); invalidName != nil {
		return nil, invalidName
	}
	newer, err := version.GreaterThan(list.CNIVersion, version.Current())
	if err != nil {
		return nil, err
	}
	if newer {
		return nil, fmt.Errorf("cniVersion %s is newer than %s, the newest known here", list.CNIVersion, version.Current())
	}
	return list, nil
}

// listOfOne converts the configuration of a single plugin to a list of that plugin.
func listOfOne(data []byte) ([]byte, error) {
	plugin, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		if json.Valid(data) {
			return nil, fmt.Errorf("%w (a list of plugins belongs into a .conflist file)", err)
		}
		return nil, err
	}
	return json.Marshal(map[string]any{
		"name":                   plugin.Network.Name,
		"cniVersion":             plugin.Network.CNIVersion,
		"loadOnlyInlinedPlugins": true,
		"plugins":                []json.RawMessage{data},
	})
}

// inline returns list with more plugins appended.
func inline(list *libcni.NetworkConfigList, more []*libcni.PluginConfig) (*libcni.NetworkConfigList, error) {
	if len(more) == 0 {
		return list, nil
	}
	var object map[string]any
	if err := json.Unmarshal(list.Bytes, &object); err != nil {
		return nil, err
	}
	var plugins []json.RawMessage
	for _, plugin := range append(list.Plugins, more...) {
		plugins = append(plugins, plugin.Bytes)
	}
	object["plugins"] = plugins
	object["loadOnlyInlinedPlugins"] = true
	data, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	return Parse(data)
}

// logChanges logs files that have become invalid and a change of the first network.
func (d *Dir) logChanges(previous, current *content) {
	logged := map[string]string{}
	for _, conf := range previous.invalid {
		logged[conf.file] = conf.err.Error()
	}
	for _, conf := range current.invalid {
		if logged[conf.file] != conf.err.Error() {
			d.log.Warn("network configuration skipped", slog.String("file", conf.file), slog.Any("err", conf.err))
		}
	}
	if current.generateErr != nil && (previous.generateErr == nil || current.generateErr.Error() != previous.generateErr.Error()) {
		d.log.Warn("no network configuration generated", slog.String("dir", d.path), slog.Any("why", current.generateErr))
	}
	switch first := d.first(current); first {
	case d.first(previous):
	case nil:
		d.log.Warn("network configuration is gone", slog.String("dir", d.path))
	default:
		d.log.Info("network configuration", slog.String("network", first.List.Name), slog.String("file", first.File),
			slog.String("cni", first.List.CNIVersion))
	}
}

// candidates returns the networks that pods can get, the preferred one first.
func (d *Dir) candidates(c *content) []*Network {
	if d.defaultNetwork == "" {
		return c.networks
	}
	return slices.DeleteFunc(slices.Clone(c.networks), func(nw *Network) bool { return nw.List.Name != d.defaultNetwork })
}

// first returns the first network that pods can get, or nil.
func (d *Dir) first(c *content) *Network {
	if found := d.candidates(c); len(found) > 0 {
		return found[0]
	}
	return nil
}

// Networks returns all valid networks, in the order of their file names.
func (d *Dir) Networks() []*Network { return d.content.Load().networks }

// Select returns the network for new pods: the first that is complete or, if none is, the
// first. Without any network the error, of kind Unavailable, says why.
func (d *Dir) Select() (*Network, error) {
	current := d.content.Load()
	candidates := d.candidates(current)
	for _, nw := range candidates {
		if nw.complete.Load() {
			return nw, nil
		}
		if nw.missingPlugin() == "" {
			nw.complete.Store(true)
			return nw, nil
		}
	}
	if len(candidates) > 0 {
		return candidates[0], nil
	}
	return nil, errdefs.ErrUnavailable.WithMessage(d.noNetworkReason(current))
}

// noNetworkReason says, in one line, why there is no network.
func (d *Dir) noNetworkReason(c *content) string {
	if d.defaultNetwork != "" && len(c.networks) > 0 {
		var others []string
		for _, nw := range c.networks {
			others = append(others, fmt.Sprintf("%q of %s", nw.List.Name, nw.File))
		}
		return c.withInvalid(fmt.Sprintf("no CNI network %q (cni-default-network), there are: %s", d.defaultNetwork, strings.Join(others, ", ")))
	}
	switch {
	case c.generateErr != nil:
		return c.withInvalid(fmt.Sprintf("no CNI network: %v", c.generateErr))
	case errors.Is(c.err, fs.ErrNotExist):
		return fmt.Sprintf("no CNI network: the directory %s does not exist", d.path)
	case c.err != nil:
		return fmt.Sprintf("no CNI network: %v", c.err)
	case len(c.invalid) == 0:
		return fmt.Sprintf("no CNI network: there is no .conflist, .conf or .json file in %s", d.path)
	}
	return "no CNI network: " + strings.Join(c.invalidReasons(), "; ")
}

// withInvalid appends the files that are not valid to reason: one of them may be the missing network.
func (c *content) withInvalid(reason string) string {
	return strings.Join(append([]string{reason}, c.invalidReasons()...), "; ")
}

// invalidReasons says of each file that is not valid why.
func (c *content) invalidReasons() (reasons []string) {
	for _, conf := range c.invalid {
		reasons = append(reasons, fmt.Sprintf("%s is not valid: %v", conf.file, conf.err))
	}
	return reasons
}

// Complete reports whether Select has found all plugins of the network, now or before.
func (nw *Network) Complete() bool { return nw.complete.Load() }

// CheckPlugins returns an error of kind Unavailable if a plugin is not installed now.
func (nw *Network) CheckPlugins() error {
	if plugin := nw.missingPlugin(); plugin != "" {
		return errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("CNI network %q of %s: %v",
			nw.List.Name, nw.File, missingPluginError(plugin, nw.binDirs)))
	}
	return nil
}

// ipamCallers are the plugins of the CNI project that run the plugin in ipam.type. Others may not run it:
// azure-vnet has an ipam.type that is no program.
var ipamCallers = []string{"bridge", "ipvlan", "macvlan", "ptp", "vlan"}

// missingPlugin returns the first plugin that is in none of the directories, or "".
func (nw *Network) missingPlugin() string {
	for _, plugin := range nw.List.Plugins {
		needed := []string{plugin.Network.Type}
		if ipam := plugin.Network.IPAM.Type; ipam != "" && slices.Contains(ipamCallers, plugin.Network.Type) {
			needed = append(needed, ipam)
		}
		for _, name := range needed {
			if _, err := FindPlugin(name, nw.binDirs); err != nil {
				return name
			}
		}
	}
	return ""
}

// FindPlugin returns the path of the plugin name in the first of dirs that has an
// executable file of that name. If none has, the error is of kind Unavailable.
func FindPlugin(name string, dirs []string) (string, error) {
	if name != filepath.Base(name) {
		return "", fmt.Errorf("plugin name %q: must not be a path: %w", name, errdefs.ErrInvalidArgument)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", missingPluginError(name, dirs)
}

func missingPluginError(name string, dirs []string) error {
	return errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("there is no plugin %q in %s", name, strings.Join(dirs, " or ")))
}
