package todocker

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ResolvConf returns the resolv.conf of a pod: exactly what its DNS config
// lists, or the node's own if it has none.
func ResolvConf(dns *runtimeapi.DNSConfig, node []byte) ([]byte, error) {
	if dns == nil {
		return node, nil
	}
	var b strings.Builder
	for _, server := range dns.GetServers() {
		if err := oneLine("DNS server", server); err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	for _, list := range []struct {
		key   string
		words []string
	}{{"search", dns.GetSearches()}, {"options", dns.GetOptions()}} {
		if len(list.words) == 0 {
			continue
		}
		line := strings.Join(list.words, " ")
		if err := oneLine("DNS "+list.key, line); err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%s %s\n", list.key, line)
	}
	return []byte(b.String()), nil
}

// shortID is how many digits of an ID are enough, as users know them.
const shortID = 12

// Hostname returns what the host is called in the sandbox id of a pod with a network of
// its own: what the Engine calls it.
func Hostname(pod *runtimeapi.PodSandboxConfig, id string) string {
	return cmp.Or(hostname(pod.GetHostname()), id[:shortID])
}

// Hosts returns the hosts file of a pod with a network of its own, where it is
// called name. The kubelet brings a better one for its containers; this serves those
// that get none.
func Hosts(name string, addrs []netip.Addr) []byte {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, addr := range addrs {
		fmt.Fprintf(&b, "%s\t%s\n", addr, name)
	}
	return []byte(b.String())
}
