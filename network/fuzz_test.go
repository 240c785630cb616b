package network

import (
	"testing"

	"github.com/containernetworking/cni/pkg/types/create"
)

// FuzzResult reads whatever a plugin may print as its result.
func FuzzResult(f *testing.F) {
	for _, text := range []string{
		`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/run/netns/x"}],"ips":[{"interface":0,"address":"10.0.0.7/24"}]}`,
		`{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.7/24"},"ip6":{"ip":"fd00::7/64"}}`,
		`{"cniVersion":"1.0.0","ips":[null,{"interface":-1,"address":"::ffff:10.0.0.7/120"},{"interface":99,"address":"10.0.0.8/0"}],"interfaces":[null]}`,
		`{"cniVersion":"0.4.0","ips":[{"version":"4"}],"dns":null,"routes":[null]}`,
		`{"ips":null}`, `[]`, `null`, ``, `{"cniVersion":7}`,
	} {
		for _, version := range []string{"", "0.1.0", "0.2.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
			f.Add(version, []byte(text))
		}
	}
	f.Fuzz(func(t *testing.T, version string, text []byte) {
		result, err := create.Create(version, text)
		if err != nil || result == nil {
			return
		}
		got, err := addresses(result)
		if err != nil {
			return
		}
		for _, addr := range got {
			if !addr.IsValid() || addr.Is4In6() {
				t.Errorf("address %v", addr)
			}
		}
	})
}

// FuzzConfig reads whatever may be in a file of the configuration directory.
func FuzzConfig(f *testing.F) {
	for _, text := range []string{
		`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge","capabilities":{"portMappings":true}}]}`,
		`{"cniVersion":"1.0.0","name":"n","type":"bridge"}`,
		`{"cniVersion":"1.1.0","name":"n","plugins":[{}],"disableCheck":"x"}`,
		`{"cniVersion":"1.0.0","cniVersions":["0.4.0",7],"name":"../x","plugins":[{"type":"../../bin/sh"}]}`,
		`{"name":"n","plugins":null}`, `[]`, `null`, ``,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, read := range []func() ([]byte, error){
			func() ([]byte, error) { return text, nil },
			func() ([]byte, error) { return chain(text) },
		} {
			data, err := read()
			if err != nil {
				continue
			}
			list, err := parse(data)
			if err != nil {
				continue
			}
			if list.Name == "" {
				t.Errorf("a network without a name from %q", text)
			}
			if _, err := inline(list, list.Plugins); err != nil && len(list.Plugins) > 0 {
				t.Logf("inline: %v", err)
			}
		}
	})
}
