// Package cnitemplate makes the CNI configuration of a node that has no other, from a
// template and the node's pod CIDR.
//
// A [Template] is a Go template with the values that the templates of containerd have
// (conf_template), or the built-in one. It has a part of the language of text/template. A [Generator] keeps the file of the configuration:
// it exists exactly while there is a template, the pod CIDR is known and nothing else has
// configured a network. A file that the Generator did not write is never replaced or removed.
package cnitemplate

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"berth/network/cniconf"
)

// Bridge is the source of the built-in template.
const Bridge = "bridge"

// bridgeText is the built-in template.
//
// Docker may set the policy of the FORWARD chain to DROP; firewall accepts what pods
// forward. forceAddress gives the bridge another address when the pod CIDR has changed,
// instead of an error for each new pod.
const bridgeText = `{
  "cniVersion": "1.0.0",
  "name": "berth",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "berth0",
      "isGateway": true,
      "forceAddress": true,
      "ipMasq": true,
      "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
        "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}},
    {"type": "firewall"}
  ]
}
`

// values are what a template can use. The names are those of containerd
// (internal/cri/server/update_runtime_config.go, cniConfigTemplate).
type values struct {
	PodCIDR       string   // the first of PodCIDRRanges
	PodCIDRRanges []string // one for each address family
	Routes        []string // the default route of each address family
}

// A Template makes configurations.
type Template struct {
	program *program
}

// Load returns the template with that source: Bridge, or the path of a file. A template
// that makes no valid configuration from any kind of pod CIDR is an error.
func Load(source string) (*Template, error) {
	name, text := source, bridgeText
	if source != Bridge {
		data, err := os.ReadFile(source)
		if err != nil {
			return nil, err
		}
		name, text = filepath.Base(source), string(data)
	}
	parsed, err := parseProgram(name, text)
	if err != nil {
		return nil, fmt.Errorf("template %s: %w", source, err)
	}
	t := &Template{parsed}
	v4, v6 := netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")
	var first error
	for _, subnets := range [][]netip.Prefix{{v4}, {v4, v6}, {v6}} {
		_, _, err := t.Render(subnets)
		if err == nil {
			return t, nil
		}
		if first == nil {
			first = fmt.Errorf("template %s: %w", source, err)
		}
	}
	return nil, first
}

// Render returns the configuration for the subnets, of which there is at least one, and the
// name of its network. The error says why it is not valid.
func (t *Template) Render(subnets []netip.Prefix) (data []byte, network string, err error) {
	v := values{PodCIDR: subnets[0].String()}
	var has4, has6 bool
	for _, subnet := range subnets {
		v.PodCIDRRanges = append(v.PodCIDRRanges, subnet.String())
		if subnet.Addr().Is4() {
			has4 = true
		} else {
			has6 = true
		}
	}
	if has4 {
		v.Routes = append(v.Routes, "0.0.0.0/0")
	}
	if has6 {
		v.Routes = append(v.Routes, "::/0")
	}
	data, err = t.program.execute(v)
	if err != nil {
		return nil, "", err
	}
	list, err := cniconf.Parse(data)
	if err != nil {
		return nil, "", err
	}
	if len(list.Plugins) == 0 {
		return nil, "", errors.New("it names no plugins (a list of plugins is expected, as in a .conflist file)")
	}
	return data, list.Name, nil
}
