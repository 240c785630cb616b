package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/docker/client"
	"github.com/spf13/pflag"

	"berth/core/engine"
)

// noCNI is the network plugin for pods on Docker's own bridge.
const noCNI = "no-op"

// A value is where an option goes.
type value interface {
	pflag.Value
	// plain returns the value as one would write it in YAML.
	plain() any
	// choices returns all there is to choose from, where that is a few words.
	choices() []string
}

// set returns a value that goes to *to as read makes it of the operator's
// words. What read says of others completes "VALUE: ...".
func set[T any](to *T, read func(string) (T, error)) value { return &setting[T]{to: to, read: read} }

// choice returns a value that goes to *to and is one of those words.
func choice(to *string, words ...string) value {
	return &setting[string]{to: to, read: oneOf(words...), words: words}
}

type setting[T any] struct {
	to    *T
	read  func(string) (T, error)
	words []string
}

// Set takes over what the operator has written.
func (s *setting[T]) Set(words string) error {
	v, err := s.read(words)
	if err != nil {
		return err
	}
	*s.to = v
	return nil
}

// String returns the value as Set takes it.
func (s *setting[T]) String() string {
	if s.to == nil { // pflag asks a zero setting
		return ""
	}
	if list, ok := any(*s.to).([]string); ok {
		return strings.Join(list, ",")
	}
	return fmt.Sprint(*s.to)
}

// Type returns what the help calls such values.
func (s *setting[T]) Type() string {
	switch any(s.to).(type) {
	case *bool:
		return "bool"
	case *int:
		return "int"
	case *time.Duration:
		return "duration"
	default: // lists, too, are one word
		return "string"
	}
}

func (s *setting[T]) choices() []string { return s.words }

func (s *setting[T]) plain() any {
	switch v := any(*s.to).(type) {
	case []string, bool:
		return v
	default:
		return s.String()
	}
}

func anything(s string) (string, error) { return s, nil }

func yesOrNo(s string) (bool, error) {
	v, err := strconv.ParseBool(s)
	if err != nil {
		return false, errors.New("must be true or false")
	}
	return v, nil
}

func aNumber(s string) (int, error) {
	v, err := strconv.Atoi(s)
	if err != nil {
		return 0, errors.New("must be a whole number")
	}
	return v, nil
}

func aFile(s string) (string, error) {
	if s == "" {
		return "", errors.New("must name a file")
	}
	return s, nil
}

// aPath is a file that need not be given.
func aPath(s string) (string, error) {
	if s != "" && !filepath.IsAbs(s) {
		return "", errors.New("must be a file's absolute path")
	}
	return s, nil
}

func oneOf(words ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		if !slices.Contains(words, s) {
			return "", fmt.Errorf("must be %s or %s", strings.Join(words[:len(words)-1], ", "), words[len(words)-1])
		}
		return s, nil
	}
}

// longestSocket is how many bytes the kernel takes for the path of a socket.
const longestSocket = 107

func anEndpoint(s string) (string, error) {
	path, isUnix := strings.CutPrefix(s, "unix://")
	switch {
	case strings.HasPrefix(s, "fd://"):
		return s, nil
	case strings.HasPrefix(s, "tcp://"):
		return "", errors.New("the CRI has no authentication and is served on Unix sockets only: use unix:///PATH")
	case !isUnix && strings.Contains(s, "://"), !filepath.IsAbs(path):
		return "", errors.New("must be unix:///PATH, fd:// or fd://NAME")
	case len(path) > longestSocket:
		return "", fmt.Errorf("the path of a socket has at most %d bytes", longestSocket)
	}
	return "unix://" + path, nil
}

func aDockerHost(s string) (string, error) {
	if s == "" {
		return s, nil // the environment's
	}
	proto, rest, _ := strings.Cut(s, "://")
	if _, err := client.ParseHostURL(s); err != nil || rest == "" || proto == "unix" && !filepath.IsAbs(rest) {
		return "", errors.New("must be like unix:///var/run/docker.sock or tcp://HOST:PORT, or empty for the environment's DOCKER_HOST")
	}
	if !slices.Contains([]string{"unix", "tcp", "http", "https"}, proto) {
		return "", fmt.Errorf("%s is no way to Docker here: use unix:///PATH or tcp://HOST:PORT", proto)
	}
	return s, nil
}

func anImage(s string) (string, error) {
	if s == "" {
		return "", errors.New("must name an image; leave it out for the default")
	}
	if _, err := reference.ParseAnyReference(s); err != nil {
		return "", errors.New("must name an image, like registry.k8s.io/pause:3.10")
	}
	return s, nil
}

func aPlugin(s string) (string, error) {
	switch s {
	case "cni":
		return s, nil
	case "", noCNI:
		return noCNI, nil
	case "kubenet":
		return "", errors.New("kubenet is gone, here as in Kubernetes: use cni with the plugins bridge and host-local")
	default:
		return "", errors.New(`must be cni, or "" or no-op for Docker's own bridge`)
	}
}

func aDir(s string) (string, error) {
	if !filepath.IsAbs(s) {
		return "", errors.New("must be a directory's absolute path")
	}
	return filepath.Clean(s), nil
}

func someDirs(s string) (found []string, err error) {
	for one := range strings.SplitSeq(s, ",") {
		d, err := aDir(strings.TrimSpace(one))
		if err != nil {
			return nil, errors.New("must be absolute paths of directories, separated by commas")
		}
		found = append(found, d)
	}
	return found, nil
}

func someCIDRs(s string) (string, error) {
	if s == "" {
		return s, nil
	}
	var found []string
	for one := range strings.SplitSeq(s, ",") {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(one))
		if err != nil {
			return "", errors.New("must be address ranges like 10.244.0.0/24, separated by commas")
		}
		found = append(found, prefix.String())
	}
	return strings.Join(found, ","), nil
}

// anAddress completes what may be an IP address only, or nothing at all, to one
// that can be listened on.
func anAddress(s string) (string, error) {
	if s == "" {
		return "127.0.0.1:0", nil
	}
	if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return net.JoinHostPort(ip.String(), "0"), nil
	}
	host, port, err := net.SplitHostPort(s)
	if err == nil && host != "localhost" {
		_, err = netip.ParseAddr(host)
	}
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return "", errors.New("must be an IP address, or one and a port like 127.0.0.1:10010")
	}
	return s, nil
}

// aMetricsAddress completes a port to an address on the loopback.
func aMetricsAddress(s string) (string, error) {
	if s == "" {
		return s, nil // none
	}
	if _, err := strconv.ParseUint(s, 10, 16); err == nil {
		s = "127.0.0.1:" + s
	}
	if _, _, err := net.SplitHostPort(s); err == nil {
		if s, err := anAddress(s); err == nil {
			return s, nil
		}
	}
	return "", errors.New("must be an IP address and a port like 127.0.0.1:9633, or only a port")
}

// onLoopback reports whether a host is this machine for itself only.
func onLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func duration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, errors.New("must be a time like 90s or 1m30s")
	}
	return d, nil
}

func aWait(s string) (time.Duration, error) {
	d, err := duration(s)
	if err == nil && d <= 0 {
		err = errors.New("must be more than 0, like 1m")
	}
	return d, err
}

func aTimeout(s string) (time.Duration, error) {
	d, err := duration(s)
	switch {
	case err != nil:
		return 0, err
	case d < 0:
		return 0, errors.New("must not be less than 0")
	case d == 0:
		return engine.ShortTimeout, nil
	default:
		return d, nil
	}
}
