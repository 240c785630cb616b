package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// The flags of cri-dockerd 0.4 and what they are if not given.
func TestFlagsOfCriDockerd(t *testing.T) {
	want := map[string]string{
		"container-runtime-endpoint":   "unix:///var/run/cri-dockerd.sock",
		"docker-endpoint":              "unix:///var/run/docker.sock",
		"pod-infra-container-image":    "registry.k8s.io/pause:3.10",
		"network-plugin":               "cni",
		"cni-conf-dir":                 "/etc/cni/net.d",
		"cni-bin-dir":                  "/opt/cni/bin",
		"cni-cache-dir":                "/var/lib/cni/cache",
		"pod-cidr":                     "",
		"ipv6-dual-stack":              "false",
		"network-plugin-mtu":           "0",
		"hairpin-mode":                 "none",
		"cri-dockerd-root-directory":   "/var/lib/cri-dockerd",
		"runtime-cgroups":              "",
		"image-pull-progress-deadline": "1m0s",
		"runtime-request-timeout":      "0s",
		"streaming-bind-addr":          "",
		"log-level":                    "info",
	}
	got := map[string]string{}
	for _, o := range all(options(new(Config))) {
		if _, theirs := want[o.name]; theirs {
			got[o.name] = o.initial
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("flags and defaults (-want +got):\n%s", diff)
	}
}

func TestDefaults(t *testing.T) {
	var out strings.Builder
	got, done, err := parse(call{name: "berthd", file: filepath.Join(t.TempDir(), "none.yaml"), out: &out})
	if err != nil || done || out.Len() > 0 {
		t.Fatalf("done = %v, err = %v, printed %q", done, err, out.String())
	}
	want := Config{
		Endpoint:       "unix:///var/run/cri-dockerd.sock",
		DockerEndpoint: "unix:///var/run/docker.sock",
		PauseImage:     "registry.k8s.io/pause:3.10",
		NetworkPlugin:  "cni",
		CNIConfDir:     "/etc/cni/net.d",
		CNIBinDirs:     []string{"/opt/cni/bin"},
		CNICacheDir:    "/var/lib/cni/cache",
		ContainerLogs:  "cri",
		RootDir:        "/var/lib/cri-dockerd",
		RunDir:         "/run/berth",
		PullProgress:   time.Minute,
		RequestTimeout: time.Minute + 59*time.Second,
		StreamingAddr:  "127.0.0.1:0",
		LogLevel:       "info",
		LogFormat:      "text",
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Config{})); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

// Anyone who adds an option shows in a script what it does.
func TestEveryOptionHasItsScript(t *testing.T) {
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, path := range scripts {
		script, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(script)
	}
	words := strings.FieldsFunc(text.String(), func(r rune) bool { return strings.ContainsRune(" \n=", r) })
	used := map[string]bool{}
	for _, w := range words {
		used[w] = true
	}
	for _, o := range all(options(new(Config))) {
		if !used["--"+o.name] {
			t.Errorf("no script uses --%s", o.name)
		}
	}
}

func TestValues(t *testing.T) {
	var cfg Config
	byName := map[string]*option{}
	for _, o := range all(options(&cfg)) {
		byName[o.name] = o
	}
	const wrong = "wrong" // and is refused
	for _, c := range []struct{ option, words, want string }{
		{"container-runtime-endpoint", "unix:///run/x.sock", "unix:///run/x.sock"},
		{"container-runtime-endpoint", "/run/x.sock", "unix:///run/x.sock"},
		{"container-runtime-endpoint", "fd://", "fd://"},
		{"container-runtime-endpoint", "fd://cri", "fd://cri"},
		{"container-runtime-endpoint", "", wrong},
		{"container-runtime-endpoint", "unix://run/x.sock", wrong},
		{"container-runtime-endpoint", "npipe:////./pipe/cri-dockerd", wrong},
		{"container-runtime-endpoint", "tcp://127.0.0.1:1", wrong},
		{"container-runtime-endpoint", "/" + strings.Repeat("x", 106), "unix:///" + strings.Repeat("x", 106)},
		{"container-runtime-endpoint", "/" + strings.Repeat("x", 107), wrong},
		{"docker-endpoint", "", ""},
		{"docker-endpoint", "tcp://10.0.0.1:2376", "tcp://10.0.0.1:2376"},
		{"docker-endpoint", "/run/docker.sock", wrong},
		{"docker-endpoint", "unix://", wrong},
		{"docker-endpoint", "ssh://host", wrong},
		{"runtime-request-timeout", "0", "1m59s"},
		{"runtime-request-timeout", "15m", "15m0s"},
		{"runtime-request-timeout", "15", wrong},
		{"runtime-request-timeout", "-1s", wrong},
		{"image-pull-progress-deadline", "90s", "1m30s"},
		{"image-pull-progress-deadline", "0", wrong},
		{"streaming-bind-addr", "", "127.0.0.1:0"},
		{"streaming-bind-addr", "10.0.0.1", "10.0.0.1:0"},
		{"streaming-bind-addr", "10.0.0.1:10010", "10.0.0.1:10010"},
		{"streaming-bind-addr", "::1", "[::1]:0"},
		{"streaming-bind-addr", "[::1]", "[::1]:0"},
		{"streaming-bind-addr", "[::1]:10010", "[::1]:10010"},
		{"streaming-bind-addr", "localhost:10010", "localhost:10010"},
		{"streaming-bind-addr", "10.0.0.1:http", wrong},
		{"streaming-bind-addr", "10.0.0.1:65536", wrong},
		{"streaming-bind-addr", "example.org:1", wrong},
		{"streaming-bind-addr", ":10010", wrong},
		{"pod-infra-container-image", "pause", "pause"},
		{"pod-infra-container-image", "10.0.0.1:5000/a/pause@sha256:" + strings.Repeat("0", 64), "10.0.0.1:5000/a/pause@sha256:" + strings.Repeat("0", 64)},
		{"pod-infra-container-image", "Pause", wrong},
		{"pod-infra-container-image", "", wrong},
		{"network-plugin", "", "no-op"},
		{"network-plugin", "no-op", "no-op"},
		{"network-plugin", "kubenet", wrong},
		{"network-plugin", "flannel", wrong},
		{"cni-conf-dir", "/a/", "/a"},
		{"cni-conf-dir", "a", wrong},
		{"cni-bin-dir", "/a, /b", "/a,/b"},
		{"cni-bin-dir", "/a,", wrong},
		{"pod-cidr", "10.244.0.0/24, fd00::/64", "10.244.0.0/24,fd00::/64"},
		{"pod-cidr", "10.244.0.0", wrong},
		{"metrics-bind-addr", "", ""},
		{"metrics-bind-addr", "9633", "127.0.0.1:9633"},
		{"metrics-bind-addr", "10.0.0.1:9633", "10.0.0.1:9633"},
		{"metrics-bind-addr", "[::]:9633", "[::]:9633"},
		{"metrics-bind-addr", "localhost:9633", "localhost:9633"},
		{"metrics-bind-addr", "10.0.0.1", wrong},
		{"metrics-bind-addr", "70000", wrong},
		{"metrics-bind-addr", "example.org:9633", wrong},
		{"node-credentials", "true", "true"},
		{"node-credentials", "maybe", wrong},
		{"profiling", "true", "true"},
		{"profiling", "on", wrong},
		{"log-level", "WARNING", "warning"},
		{"log-level", "", "info"},
		{"log-level", "loud", wrong},
		{"log-format", "xml", wrong},
		{"ipv6-dual-stack", "True", "true"},
		{"ipv6-dual-stack", "maybe", wrong},
		{"network-plugin-mtu", "big", wrong},
		{"hairpin-mode", "promiscuous-bridge", "promiscuous-bridge"},
		{"hairpin-mode", "yes", wrong},
	} {
		t.Run(c.option+" "+c.words, func(t *testing.T) {
			v := byName[c.option].value
			err := v.Set(c.words)
			switch {
			case c.want == wrong && err == nil:
				t.Errorf("taken as %q, want an error", v)
			case c.want == wrong && strings.Contains(err.Error(), "\n"):
				t.Errorf("error of several lines: %v", err)
			case c.want == wrong:
			case err != nil:
				t.Error(err)
			case v.String() != c.want:
				t.Errorf("got %q, want %q", v, c.want)
			default:
				// What is in force can be said again, and means the same.
				if err := v.Set(v.String()); err != nil || v.String() != c.want {
					t.Errorf("said again: %q (%v), want %q", v, err, c.want)
				}
			}
		})
	}
}
