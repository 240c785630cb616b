package todocker

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ResolvConf returns the resolv.conf of a pod: exactly what its DNS config lists, or the
// node's own if the pod has none.
func ResolvConf(dns *runtimeapi.DNSConfig, node []byte) ([]byte, error) {
	if dns == nil {
		return node, nil
	}
	var b strings.Builder
	for _, server := range dns.GetServers() {
		if err := checkOneLine("DNS server", server); err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	for _, option := range []struct {
		keyword string
		values  []string
	}{{"search", dns.GetSearches()}, {"options", dns.GetOptions()}} {
		if len(option.values) == 0 {
			continue
		}
		line := strings.Join(option.values, " ")
		if err := checkOneLine("DNS "+option.keyword, line); err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%s %s\n", option.keyword, line)
	}
	return []byte(b.String()), nil
}

// shortID is the number of digits of an ID that docker prints, and the shortest
// abbreviation that is used.
const shortID = 12

// Hostname returns the hostname in a sandbox with a network of its own. Without one in the
// request it is the one that Docker chooses, the short ID.
func Hostname(pod *runtimeapi.PodSandboxConfig, id string) string {
	return cmp.Or(truncateHostname(pod.GetHostname()), id[:shortID])
}

// truncateHostname shortens a name to what sethostname(2) accepts (HOST_NAME_MAX).
func truncateHostname(name string) string {
	const hostNameMax = 64
	if len(name) > hostNameMax {
		return strings.TrimRight(name[:hostNameMax], "-.")
	}
	return name
}

// Hosts returns the /etc/hosts of a pod with a network of its own. Containers for which the
// kubelet mounts its own /etc/hosts do not get it.
func Hosts(hostname string, addrs []netip.Addr) []byte {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, addr := range addrs {
		fmt.Fprintf(&b, "%s\t%s\n", addr, hostname)
	}
	return []byte(b.String())
}
