package network

import (
	"testing"

	"github.com/containernetworking/cni/pkg/types/create"
)

// FuzzResult parses what a plugin may print as its result.
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
		got, err := podAddresses(result)
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
