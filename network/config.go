package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
)

// A network is one valid configuration file.
type network struct {
	file string
	// list has every plugin inlined: its Bytes are all that DEL needs.
	list *libcni.NetworkConfigList
	// complete is set once all plugins were seen. It stays set: an upgrade
	// that replaces a plugin must not put pods on the next network meanwhile.
	complete atomic.Bool
	health   health
}

// findings is what reading the configuration directory gave.
type findings struct {
	networks []*network
	flaws    []flaw
	err      error // why the directory could not be read
}

// A flaw is a file that is no valid configuration, and why.
type flaw struct {
	file string
	err  error
}

// look reads all configurations in dir, in the order of their file names.
func look(dir string) *findings {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return &findings{err: err}
	}
	found := &findings{}
	for _, entry := range entries {
		switch filepath.Ext(entry.Name()) {
		case ".conf", ".conflist", ".json":
		default:
			continue
		}
		if entry.IsDir() {
			continue
		}
		file := filepath.Join(dir, entry.Name())
		list, err := read(file)
		if err != nil {
			found.flaws = append(found.flaws, flaw{file, err})
			continue
		}
		found.networks = append(found.networks, &network{file: file, list: list, health: newHealth()})
	}
	return found
}

// read returns the network that file describes.
func read(file string) (*libcni.NetworkConfigList, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if filepath.Ext(file) != ".conflist" {
		if data, err = chain(data); err != nil {
			return nil, err
		}
	}
	list, err := parse(data)
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

// parse reads data, a list of plugins, which may be empty.
func parse(data []byte) (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	if wrong := utils.ValidateNetworkName(list.Name); wrong != nil {
		return nil, wrong
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

// chain makes data, the configuration of a single plugin, a list of that one.
func chain(data []byte) ([]byte, error) {
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

// inline returns list with more plugins at its end.
func inline(list *libcni.NetworkConfigList, more []*libcni.PluginConfig) (*libcni.NetworkConfigList, error) {
	if len(more) == 0 {
		return list, nil
	}
	var whole map[string]any
	if err := json.Unmarshal(list.Bytes, &whole); err != nil {
		return nil, err
	}
	var plugins []json.RawMessage
	for _, plugin := range append(list.Plugins, more...) {
		plugins = append(plugins, plugin.Bytes)
	}
	whole["plugins"] = plugins
	whole["loadOnlyInlinedPlugins"] = true
	data, err := json.Marshal(whole)
	if err != nil {
		return nil, err
	}
	return parse(data)
}

// reload looks at the configuration directory again. Only New and Run call it.
func (n *CNI) reload() {
	found, before := look(n.confDir), n.found.Load()
	if before == nil {
		before = &findings{}
	}
	for i, nw := range found.networks {
		for _, old := range before.networks {
			if old.file == nw.file && bytes.Equal(old.list.Bytes, nw.list.Bytes) {
				found.networks[i] = old
			}
		}
	}
	n.found.Store(found)
	n.report(before, found)
}

// report logs what has changed between two looks.
func (n *CNI) report(before, found *findings) {
	told := map[string]string{}
	for _, f := range before.flaws {
		told[f.file] = f.err.Error()
	}
	for _, f := range found.flaws {
		if told[f.file] != f.err.Error() {
			n.log.Warn("network configuration skipped", slog.String("file", f.file), slog.Any("err", f.err))
		}
	}
	var was, is *network
	if len(before.networks) > 0 {
		was = before.networks[0]
	}
	if len(found.networks) > 0 {
		is = found.networks[0]
	}
	switch is {
	case was:
	case nil:
		n.log.Warn("network configuration is gone", slog.String("dir", n.confDir))
	default:
		n.log.Info("network configuration", slog.String("network", is.list.Name), slog.String("file", is.file),
			slog.String("cni", is.list.CNIVersion))
	}
}

// choose returns the network for new pods: the first whose plugins are all
// there, else the first. Without any the error, of kind Unavailable, says why.
func (n *CNI) choose() (*network, error) {
	found := n.found.Load()
	for _, nw := range found.networks {
		if nw.complete.Load() {
			return nw, nil
		}
		if n.missing(nw) == "" {
			nw.complete.Store(true)
			return nw, nil
		}
	}
	if len(found.networks) > 0 {
		return found.networks[0], nil
	}
	return nil, errdefs.ErrUnavailable.WithMessage(n.without(found))
}

// without says, in one line, why there is no network in found.
func (n *CNI) without(found *findings) string {
	switch {
	case errors.Is(found.err, fs.ErrNotExist):
		return fmt.Sprintf("no CNI network: the directory %s does not exist", n.confDir)
	case found.err != nil:
		return fmt.Sprintf("no CNI network: %v", found.err)
	case len(found.flaws) == 0:
		return fmt.Sprintf("no CNI network: there is no .conflist, .conf or .json file in %s", n.confDir)
	}
	var each []string
	for _, f := range found.flaws {
		each = append(each, fmt.Sprintf("%s is not valid: %v", f.file, f.err))
	}
	return "no CNI network: " + strings.Join(each, "; ")
}

// missing returns the first plugin of nw that is in none of the directories,
// or "".
func (n *CNI) missing(nw *network) string {
	for _, plugin := range nw.list.Plugins {
		if _, err := find(plugin.Network.Type, n.binDirs); err != nil {
			return plugin.Network.Type
		}
	}
	return ""
}

// lacks is the error, of kind Unavailable, for a plugin that nw misses.
func (n *CNI) lacks(nw *network, plugin string) error {
	return errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("CNI network %q of %s: %v",
		nw.list.Name, nw.file, missingPlugin(plugin, n.binDirs)))
}
