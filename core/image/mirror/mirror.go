// Package mirror says from which other registries an image may be pulled, and remembers under which
// name an image was requested that came from one of them.
package mirror

import (
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/reference"
)

// A Table has the mirrors of each registry, by its host name, in the order in which they are
// tried. A mirror is a prefix of repository names: HOST[:PORT][/PATH].
type Table map[string][]string

// Parse returns the Table that items describe, each of which is HOST=MIRROR.
func Parse(items []string) (Table, error) {
	t := Table{}
	for _, item := range items {
		host, address, ok := strings.Cut(item, "=")
		if !ok {
			return nil, errors.New("must be HOST=MIRROR, like quay.io=https://mirror.example:5000/quay")
		}
		registry, err := parseHost(host)
		if err != nil {
			return nil, err
		}
		prefix, err := parseAddress(address)
		if err != nil {
			return nil, err
		}
		t[registry] = append(t[registry], prefix)
	}
	return t, nil
}

// parseHost returns the host of a registry as it is in normalized references.
func parseHost(host string) (string, error) {
	named, err := reference.ParseNormalizedNamed(host + "/x")
	if err != nil || strings.Contains(host, "/") || reference.Domain(named) != host && host != "index.docker.io" {
		return "", fmt.Errorf("%q must be the host of a registry, like quay.io, with a port if image names have one", host)
	}
	return reference.Domain(named), nil
}

// parseAddress returns the prefix of repository names that an address stands for.
func parseAddress(address string) (string, error) {
	if strings.HasPrefix(address, "http://") {
		return "", errors.New("leave http:// out: Docker uses HTTP for registries in insecure-registries of daemon.json, and HTTPS for all others")
	}
	rest := strings.TrimSuffix(strings.TrimPrefix(address, "https://"), "/")
	host, path, _ := strings.Cut(rest, "/")
	if path == "v2" || strings.HasPrefix(path, "v2/") {
		return "", fmt.Errorf("%q: write the path as in a docker pull, without /v2", address)
	}
	if !strings.ContainsAny(host, ".:") && host != "localhost" {
		host += ":443" // without a dot or a port Docker takes it for a part of a name on Docker Hub
	}
	prefix := host
	if path != "" {
		prefix += "/" + path
	}
	named, err := reference.ParseNormalizedNamed(prefix + "/x")
	if err != nil || named.Name() != prefix+"/x" {
		return "", fmt.Errorf("%q must be HOST, HOST:PORT or either with a path, like https://mirror.example:5000/quay", address)
	}
	return prefix, nil
}

// Sources returns the references at mirrors that stand for an image, in the order in which they are
// tried. requested has a tag or a digest.
func (t Table) Sources(requested reference.Named) (sources []reference.Named) {
	for _, prefix := range t[reference.Domain(requested)] {
		// A name can be too long with the prefix.
		named, err := reference.ParseNormalizedNamed(prefix + strings.TrimPrefix(requested.String(), reference.Domain(requested)))
		if err == nil {
			sources = append(sources, named)
		}
	}
	return sources
}
