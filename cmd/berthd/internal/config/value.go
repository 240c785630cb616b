package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/utils"
	"github.com/distribution/reference"
	"github.com/docker/docker/client"
	"github.com/spf13/pflag"

	"berth/core/image/mirror"
	"berth/core/image/pinning"
	"berth/network/cnitemplate"
)

// A value parses and holds the value of an option.
type value interface {
	pflag.Value
	// yaml returns the value for a configuration file.
	yaml() any
	// Choices returns all allowed values, if they are a few words.
	Choices() []string
}

// Choices returns all allowed values of a flag of Options, nil if they are not a few words.
func Choices(f *pflag.Flag) []string {
	if v, ok := f.Value.(value); ok {
		return v.Choices()
	}
	return nil
}

// parsedValue stores in target what parse returns. The errors of parse say what is allowed:
// they are printed behind the name of the option and the text.
type parsedValue[T any] struct {
	target  *T
	parse   func(string) (T, error)
	choices []string
}

func newValue[T any](target *T, parse func(string) (T, error)) value {
	return &parsedValue[T]{target: target, parse: parse}
}

// newEnum returns a value that is one of the choices.
func newEnum(target *string, choices ...string) value {
	return &parsedValue[string]{target: target, choices: choices, parse: func(s string) (string, error) {
		if !slices.Contains(choices, s) {
			last := len(choices) - 1
			return "", fmt.Errorf("must be %s or %s", strings.Join(choices[:last], ", "), choices[last])
		}
		return s, nil
	}}
}

// Set parses text and stores the result.
func (v *parsedValue[T]) Set(text string) error {
	parsed, err := v.parse(text)
	if err != nil {
		return err
	}
	*v.target = parsed
	return nil
}

// String returns the value as Set parses it.
func (v *parsedValue[T]) String() string {
	if v.target == nil { // pflag calls String of a zero value
		return ""
	}
	if list, ok := any(*v.target).([]string); ok {
		return strings.Join(list, ",")
	}
	return fmt.Sprint(*v.target)
}

// Type returns the name of the type for the help.
func (v *parsedValue[T]) Type() string {
	switch any(v.target).(type) {
	case *bool:
		return "bool"
	case *int:
		return "int"
	case *time.Duration:
		return "duration"
	default: // a list too is one word
		return "string"
	}
}

// Choices returns all allowed values, if they are a few words.
func (v *parsedValue[T]) Choices() []string { return v.choices }

func (v *parsedValue[T]) yaml() any {
	switch parsed := any(*v.target).(type) {
	case []string, bool, int:
		return parsed
	default:
		return v.String()
	}
}

// newRuntime returns a value that names another container runtime, or none.
func newRuntime(target *string) value {
	return &parsedValue[string]{target: target, choices: []string{"containerd"}, parse: func(s string) (string, error) {
		if s != "" && s != "containerd" {
			return "", errors.New("must be containerd")
		}
		return s, nil
	}}
}

func parseString(s string) (string, error) { return s, nil }

func parseBool(s string) (bool, error) {
	b, err := strconv.ParseBool(s)
	if err != nil {
		return false, errors.New("must be true or false")
	}
	return b, nil
}

func parseInt(s string) (int, error) {
	i, err := strconv.Atoi(s)
	if err != nil {
		return 0, errors.New("must be a whole number")
	}
	return i, nil
}

func parseFile(s string) (string, error) {
	if s == "" {
		return "", errors.New("must name a file")
	}
	return s, nil
}

func parseOptionalPath(s string) (string, error) {
	if s != "" && !filepath.IsAbs(s) {
		return "", errors.New("must be the absolute path of a file")
	}
	return s, nil
}

func parsePath(s string) (string, error) {
	if !filepath.IsAbs(s) {
		return "", errors.New("must be the absolute path of a file")
	}
	return filepath.Clean(s), nil
}

func parseDir(s string) (string, error) {
	if !filepath.IsAbs(s) {
		return "", errors.New("must be the absolute path of a directory")
	}
	return filepath.Clean(s), nil
}

func parseOptionalDir(s string) (string, error) {
	if s == "" {
		return s, nil
	}
	return parseDir(s)
}

// splitList returns the parts of a list with commas, without the space around them.
func splitList(s string) (parts []string) {
	for part := range strings.SplitSeq(s, ",") {
		parts = append(parts, strings.TrimSpace(part))
	}
	return parts
}

func parseDirs(s string) (dirs []string, err error) {
	for _, part := range splitList(s) {
		dir, err := parseDir(part)
		if err != nil {
			return nil, errors.New("must be absolute paths of directories, separated by commas")
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

// parseOptionalDirs is parseDirs for a list that may be empty.
func parseOptionalDirs(s string) ([]string, error) {
	if s == "" {
		return nil, nil
	}
	return parseDirs(s)
}

// maxSocketPath is the longest path of a Unix socket in bytes: sun_path of unix(7) less the final NUL.
const maxSocketPath = 107

// parseDebugSocket takes an absolute path, or one relative to a directory that is not known yet.
func parseDebugSocket(s string) (string, error) {
	switch {
	case s == "":
		return s, nil
	case !filepath.IsAbs(s) && !filepath.IsLocal(s), strings.HasSuffix(s, "/"), filepath.Clean(s) == ".":
		return "", errors.New("must be an absolute path, a path below run-dir like debug.sock, or empty for none")
	case len(s) > maxSocketPath:
		return "", fmt.Errorf("the path of a socket has at most %d bytes", maxSocketPath)
	}
	return filepath.Clean(s), nil
}

func parseEndpoint(s string) (string, error) {
	path, isUnix := strings.CutPrefix(s, "unix://")
	switch {
	case strings.HasPrefix(s, "fd://"):
		return s, nil
	case strings.HasPrefix(s, "tcp://"):
		return "", errors.New("the CRI has no authentication and is served on Unix sockets only: use unix:///PATH")
	case !isUnix && strings.Contains(s, "://"), !filepath.IsAbs(path):
		return "", errors.New("must be unix:///PATH, fd:// or fd://NAME")
	case len(path) > maxSocketPath:
		return "", fmt.Errorf("the path of a socket has at most %d bytes", maxSocketPath)
	}
	return "unix://" + path, nil
}

func parseSocket(s string) (string, error) {
	path := strings.TrimPrefix(s, "unix://")
	if !filepath.IsAbs(path) || len(path) > maxSocketPath {
		return "", fmt.Errorf("must be the absolute path of a socket, with at most %d bytes", maxSocketPath)
	}
	return path, nil
}

// namespacePattern is that of identifiers in containerd 1.6 to 2.3 (pkg/identifiers).
var namespacePattern = regexp.MustCompile(`^[A-Za-z0-9]+(?:[-_.][A-Za-z0-9]+)*$`)

func parseNamespace(s string) (string, error) {
	if len(s) > 76 || !namespacePattern.MatchString(s) {
		return "", errors.New("must be a namespace like k8s.io, with at most 76 characters")
	}
	return s, nil
}

func parseDockerHost(s string) (string, error) {
	if s == "" {
		return s, nil // DOCKER_HOST of the environment
	}
	proto, rest, _ := strings.Cut(s, "://")
	if _, err := client.ParseHostURL(s); err != nil || rest == "" || proto == "unix" && !filepath.IsAbs(rest) {
		return "", errors.New("must be like unix:///var/run/docker.sock or tcp://HOST:PORT, or empty for DOCKER_HOST of the environment")
	}
	if !slices.Contains([]string{"unix", "tcp", "http", "https"}, proto) {
		return "", fmt.Errorf("the scheme %s is not supported: use unix:///PATH or tcp://HOST:PORT", proto)
	}
	return s, nil
}

func parseImage(s string) (string, error) {
	if s == "" {
		return "", errors.New("must name an image; leave it out for the default")
	}
	if _, err := reference.ParseAnyReference(s); err != nil {
		return "", errors.New("must name an image, like registry.k8s.io/pause:3.10")
	}
	return s, nil
}

// parseMirrors takes mirrors of registries, separated by commas.
func parseMirrors(s string) (items []string, err error) {
	if s == "" {
		return nil, nil
	}
	items = splitList(s)
	_, err = mirror.Parse(items)
	return items, err
}

// parseVerifierMax refuses 0, with which containerd allows all images without calling a verifier.
func parseVerifierMax(s string) (int, error) {
	n, err := parseInt(s)
	if err == nil && n < 1 && n != -1 {
		err = errors.New("must be more than 0, or -1 for all")
	}
	return n, err
}

// parsePinnedImages takes globs of image names, or nothing for none.
func parsePinnedImages(s string) ([]string, error) {
	if s == "" {
		return []string{}, nil
	}
	globs := splitList(s)
	if _, err := pinning.ParsePatterns(globs); err != nil {
		return nil, errors.New("must be names of images like registry.example.com/app:1, separated by commas; * stands for any characters, ? for one")
	}
	return globs, nil
}

func parseNetworkPlugin(s string) (string, error) {
	switch s {
	case "cni":
		return s, nil
	case "", NoCNI:
		return NoCNI, nil
	case "kubenet":
		return "", errors.New("kubenet is gone, here as in Kubernetes: use cni with the plugins bridge and host-local")
	default:
		return "", errors.New(`must be cni, or "" or no-op for Docker's own bridge`)
	}
}

func parseNetworkName(s string) (string, error) {
	if s != "" && utils.ValidateNetworkName(s) != nil {
		return "", errors.New("must be the name of a CNI network: letters, digits, dots, dashes and underscores, and first a letter or digit")
	}
	return s, nil
}

func parseConfTemplate(s string) (string, error) {
	if s != "" && s != cnitemplate.Bridge && !filepath.IsAbs(s) {
		return "", fmt.Errorf("must be %s, or the absolute path of a template", cnitemplate.Bridge)
	}
	return s, nil
}

func parseCIDRs(s string) (string, error) {
	if s == "" {
		return s, nil
	}
	var cidrs []string
	for _, part := range splitList(s) {
		prefix, err := netip.ParsePrefix(part)
		if err != nil {
			return "", errors.New("must be address ranges like 10.244.0.0/24, separated by commas")
		}
		cidrs = append(cidrs, prefix.String())
	}
	return strings.Join(cidrs, ","), nil
}

// parseStreamingAddr takes an IP address, one with a port, or nothing for the loopback; the result has a port.
func parseStreamingAddr(s string) (string, error) {
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

// parseMetricsAddr takes an address with a port, a port of the loopback, or nothing for no metrics.
func parseMetricsAddr(s string) (string, error) {
	if s == "" {
		return s, nil
	}
	if _, err := strconv.ParseUint(s, 10, 16); err == nil {
		s = "127.0.0.1:" + s
	}
	if _, _, err := net.SplitHostPort(s); err == nil {
		if addr, err := parseStreamingAddr(s); err == nil {
			return addr, nil
		}
	}
	return "", errors.New("must be an IP address and a port like 127.0.0.1:9633, or only a port")
}

// hostName matches the name of a host.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?$`)

// parseCollector takes a host and port, unix:///PATH, or nothing for no traces.
func parseCollector(s string) (string, error) {
	if path, isUnix := strings.CutPrefix(s, "unix://"); isUnix {
		if filepath.IsAbs(path) && len(path) <= maxSocketPath {
			return "unix://" + path, nil
		}
	} else if strings.Contains(s, "://") {
		return "", errors.New("is a URL: the collector is reached over gRPC without TLS, at HOST:PORT like 127.0.0.1:4317")
	} else if host, port, err := net.SplitHostPort(s); err == nil {
		_, ipErr := netip.ParseAddr(host)
		number, portErr := strconv.ParseUint(port, 10, 16)
		if (ipErr == nil || hostName.MatchString(host)) && portErr == nil && number != 0 {
			return s, nil
		}
	}
	if s == "" {
		return s, nil
	}
	return "", errors.New("must be HOST:PORT like 127.0.0.1:4317, or unix:///PATH")
}

func parsePerMillion(s string) (int, error) {
	i, err := strconv.Atoi(s)
	if err != nil || i < 0 || i > 1_000_000 {
		return 0, errors.New("must be a whole number from 0 to 1000000")
	}
	return i, nil
}

// IsLoopback reports whether only this machine can reach the host.
func IsLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, errors.New("must be a time like 90s or 1m30s")
	}
	return d, nil
}

func parsePositiveDuration(s string) (time.Duration, error) {
	d, err := parseDuration(s)
	if err == nil && d <= 0 {
		err = errors.New("must be more than 0, like 1m")
	}
	return d, err
}

// parseRequestTimeout makes the default of 0, as cri-dockerd does.
func parseRequestTimeout(s string) (time.Duration, error) {
	d, err := parseDuration(s)
	switch {
	case err != nil:
		return 0, err
	case d < 0:
		return 0, errors.New("must not be less than 0")
	case d == 0:
		return defaultRequestTimeout, nil
	default:
		return d, nil
	}
}
