package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"berth/core/podpolicy"
)

// newOptions returns Options whose configuration file is missing.
func newOptions(t *testing.T) *Options {
	t.Helper()
	o, err := New(filepath.Join(t.TempDir(), "none.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// The flags of cri-dockerd 0.4 and their defaults.
func TestFlagsAndDefaultsAreThoseOfCriDockerd(t *testing.T) {
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
	for _, opt := range newOptions(t).options {
		if _, theirs := want[opt.name]; theirs {
			got[opt.name] = opt.initial
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("flags and defaults (-want +got):\n%s", diff)
	}
}

func TestLoadWithoutFilesGivesDefaults(t *testing.T) {
	o := newOptions(t)
	if err := o.Load(); err != nil {
		t.Fatal(err)
	}
	want := Config{
		Endpoint:        "unix:///var/run/cri-dockerd.sock",
		DockerEndpoint:  "unix:///var/run/docker.sock",
		PauseImage:      "registry.k8s.io/pause:3.10",
		NetworkPlugin:   "cni",
		CNIConfDir:      "/etc/cni/net.d",
		CNIBinDirs:      []string{"/opt/cni/bin"},
		CNICacheDir:     "/var/lib/cni/cache",
		OCIAnnotations:  podpolicy.DefaultOCIAnnotations,
		ShimPerPod:      true,
		SpecDir:         "/etc/berth/spec.d",
		ContainerLogs:   "cri",
		LogBuffer:       "local",
		RootDir:         "/var/lib/cri-dockerd",
		RunDir:          "/run/berth",
		DebugSocket:     "debug.sock",
		PullProgress:    time.Minute,
		VerifierTimeout: 10 * time.Second, VerifierMax: 10,
		CDIAnnotations: true, CDISpecDirs: []string{"/etc/cdi", "/var/run/cdi"},
		RequestTimeout: time.Minute + 59*time.Second,
		StreamingAddr:  "127.0.0.1:0",
		LogLevel:       "info",
		LogFormat:      "text",

		KeepLocalImages: true,
		PinnedImages:    []string{},
		RestoreImages:   []string{},
		PinLabels:       "built",

		NRI: NRI{
			Enable: true, SocketPath: "/var/run/nri/nri.sock", PluginPath: "/opt/nri/plugins", PluginConfigPath: "/etc/nri/conf.d",
			RegistrationTimeout: 5 * time.Second, RequestTimeout: 2 * time.Second,
		},
	}
	if diff := cmp.Diff(want, o.Config); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	if warnings := o.Warnings(); len(warnings) > 0 {
		t.Errorf("warnings: %v", warnings)
	}
}

// Reload must see the files as they are now, and the flags of the first time.
func TestReloadReadsFilesAndKeepsFlags(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("log-level: info\nrun-dir: /run/file\n")
	first, err := New(file)
	if err != nil {
		t.Fatal(err)
	}
	flags := pflag.NewFlagSet("berthd", pflag.ContinueOnError)
	for _, g := range first.Groups() {
		flags.AddFlagSet(g.Flags)
	}
	if err := flags.Parse([]string{"--run-dir=/run/flag", "--profiling", "--metrics-bind-addr=9633", "--cni-bin-dir=/a,/b"}); err != nil {
		t.Fatal(err)
	}
	if err := first.Load(); err != nil {
		t.Fatal(err)
	}
	want := first.Config
	write("log-level: debug\nhairpin-mode: none\n")
	next, err := first.Reload()
	if err != nil {
		t.Fatal(err)
	}
	want.LogLevel = "debug"
	if diff := cmp.Diff(want, next.Config); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	if got := first.LogLevel; got != "info" {
		t.Errorf("Reload changed the log level of the first options to %s", got)
	}
	if got := next.Warnings(); len(got) != 1 || got[0].Option != "hairpin-mode" {
		t.Errorf("warnings: %v, want one about hairpin-mode", got)
	}
	write("log-level: loud\n")
	var usage *UsageError
	if _, err := next.Reload(); !errors.As(err, &usage) {
		t.Errorf("error of a wrong file: %v, want a UsageError", err)
	}
}

func TestCheckArgs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "none.yaml")
	for _, c := range []struct{ args, want string }{
		{"", ""},
		{"--container-runtime-endpoint fd:// --hairpin-mode=none", ""},
		{"--log-level loud", "--log-level"},
		{"--no-such", "unknown flag: --no-such"},
		{"--profiling", "metrics-bind-addr"},
		{"serve", `"serve"`},
	} {
		err := CheckArgs(strings.Fields(c.args), file)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: %v, want %q", c.args, err, c.want)
		}
	}
}

func TestEveryOptionIsUsedInAScript(t *testing.T) {
	scripts, err := filepath.Glob("../../testdata/script/*.txtar")
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
	used := map[string]bool{}
	for _, word := range strings.FieldsFunc(text.String(), func(r rune) bool { return strings.ContainsRune(" \n=", r) }) {
		used[word] = true
	}
	for _, opt := range newOptions(t).options {
		if !used["--"+opt.name] {
			t.Errorf("no script uses --%s", opt.name)
		}
	}
}

func TestValuesAreParsedOrRejected(t *testing.T) {
	byName := map[string]*option{}
	for _, opt := range newOptions(t).options {
		byName[opt.name] = opt
	}
	const invalid = "invalid"
	for _, c := range []struct{ option, text, want string }{
		{"container-runtime-endpoint", "unix:///run/x.sock", "unix:///run/x.sock"},
		{"container-runtime-endpoint", "/run/x.sock", "unix:///run/x.sock"},
		{"container-runtime-endpoint", "fd://", "fd://"},
		{"container-runtime-endpoint", "fd://cri", "fd://cri"},
		{"container-runtime-endpoint", "", invalid},
		{"container-runtime-endpoint", "unix://run/x.sock", invalid},
		{"container-runtime-endpoint", "npipe:////./pipe/cri-dockerd", invalid},
		{"container-runtime-endpoint", "tcp://127.0.0.1:1", invalid},
		{"container-runtime-endpoint", "/" + strings.Repeat("x", 106), "unix:///" + strings.Repeat("x", 106)},
		{"container-runtime-endpoint", "/" + strings.Repeat("x", 107), invalid},
		{"docker-endpoint", "", ""},
		{"docker-endpoint", "tcp://10.0.0.1:2376", "tcp://10.0.0.1:2376"},
		{"docker-endpoint", "/run/docker.sock", invalid},
		{"docker-endpoint", "unix://", invalid},
		{"docker-endpoint", "ssh://host", invalid},
		{"runtime-request-timeout", "0", "1m59s"},
		{"runtime-request-timeout", "15m", "15m0s"},
		{"runtime-request-timeout", "15", invalid},
		{"runtime-request-timeout", "-1s", invalid},
		{"image-pull-progress-deadline", "90s", "1m30s"},
		{"image-pull-progress-deadline", "0", invalid},
		{"registry-mirrors", "", ""},
		{"registry-mirrors", "quay.io=https://m.test/quay, docker.io=hub.test", "quay.io=https://m.test/quay,docker.io=hub.test"},
		{"registry-mirrors", "quay.io=https://m.test/quay,", invalid},
		{"registry-mirrors", "quay.io=m.test/v2/quay", invalid},
		{"image-verifier-dir", "", ""},
		{"image-verifier-dir", "/opt/bin/", "/opt/bin"},
		{"image-verifier-dir", "bin", invalid},
		{"image-verifier-timeout", "-1s", invalid},
		{"image-verifier-max", "-1", "-1"},
		{"image-verifier-max", "-2", invalid},
		{"image-verifier-max", "0", invalid},
		{"image-verifier-max", "1", "1"},
		{"image-verifier-max", "many", invalid},
		{"streaming-bind-addr", "", "127.0.0.1:0"},
		{"streaming-bind-addr", "10.0.0.1", "10.0.0.1:0"},
		{"streaming-bind-addr", "10.0.0.1:10010", "10.0.0.1:10010"},
		{"streaming-bind-addr", "::1", "[::1]:0"},
		{"streaming-bind-addr", "[::1]", "[::1]:0"},
		{"streaming-bind-addr", "[::1]:10010", "[::1]:10010"},
		{"streaming-bind-addr", "localhost:10010", "localhost:10010"},
		{"streaming-bind-addr", "10.0.0.1:http", invalid},
		{"streaming-bind-addr", "10.0.0.1:65536", invalid},
		{"streaming-bind-addr", "example.org:1", invalid},
		{"streaming-bind-addr", ":10010", invalid},
		{"pod-infra-container-image", "pause", "pause"},
		{"pod-infra-container-image", "10.0.0.1:5000/a/pause@sha256:" + strings.Repeat("0", 64), "10.0.0.1:5000/a/pause@sha256:" + strings.Repeat("0", 64)},
		{"pod-infra-container-image", "Pause", invalid},
		{"pod-infra-container-image", "", invalid},
		{"network-plugin", "", "no-op"},
		{"network-plugin", "no-op", "no-op"},
		{"network-plugin", "kubenet", invalid},
		{"network-plugin", "flannel", invalid},
		{"cni-conf-dir", "/a/", "/a"},
		{"cni-conf-dir", "a", invalid},
		{"cni-bin-dir", "/a, /b", "/a,/b"},
		{"cni-bin-dir", "/a,", invalid},
		{"pod-cidr", "10.244.0.0/24, fd00::/64", "10.244.0.0/24,fd00::/64"},
		{"pod-cidr", "10.244.0.0", invalid},
		{"metrics-bind-addr", "", ""},
		{"metrics-bind-addr", "9633", "127.0.0.1:9633"},
		{"metrics-bind-addr", "10.0.0.1:9633", "10.0.0.1:9633"},
		{"metrics-bind-addr", "[::]:9633", "[::]:9633"},
		{"metrics-bind-addr", "localhost:9633", "localhost:9633"},
		{"metrics-bind-addr", "10.0.0.1", invalid},
		{"metrics-bind-addr", "70000", invalid},
		{"metrics-bind-addr", "example.org:9633", invalid},
		{"tracing-endpoint", "", ""},
		{"tracing-endpoint", "127.0.0.1:4317", "127.0.0.1:4317"},
		{"tracing-endpoint", "[::1]:4317", "[::1]:4317"},
		{"tracing-endpoint", "collector.observability.svc:4317", "collector.observability.svc:4317"},
		{"tracing-endpoint", "unix:///run/otel.sock", "unix:///run/otel.sock"},
		{"tracing-endpoint", "unix://run/otel.sock", invalid},
		{"tracing-endpoint", "http://127.0.0.1:4317", invalid},
		{"tracing-endpoint", "127.0.0.1", invalid},
		{"tracing-endpoint", "127.0.0.1:0", invalid},
		{"tracing-endpoint", ":4317", invalid},
		{"tracing-endpoint", "a b:4317", invalid},
		{"tracing-endpoint", "%zz:4317", invalid},
		{"tracing-sampling-rate-per-million", "1000000", "1000000"},
		{"tracing-sampling-rate-per-million", "1000001", invalid},
		{"tracing-sampling-rate-per-million", "-1", invalid},
		{"tracing-sampling-rate-per-million", "0.5", invalid},
		{"node-credentials", "true", "true"},
		{"node-credentials", "maybe", invalid},
		{"oci-annotations", "", ""},
		{"oci-annotations", "kata=io.katacontainers.*, dev.gvisor.*", "kata=io.katacontainers.*,dev.gvisor.*"},
		{"oci-annotations", "*", invalid},
		{"oci-annotations", "io.kubernetes.cri.*", invalid},
		{"allow-annotations", "berth.ulimits=*,berth.shm-size=ml", "berth.ulimits=*,berth.shm-size=ml"},
		{"allow-annotations", "berth.ulimits", invalid},
		{"allow-annotations", "ulimits=*", invalid},
		{"shim-runtimes", "gvisor=io.containerd.runsc.v1", "gvisor=io.containerd.runsc.v1"},
		{"shim-runtimes", "gvisor=/usr/bin/runsc", invalid},
		{"shim-runtimes", "gvisor=io.containerd.runsc.v1,", invalid},
		{"shim-per-pod", "false", "false"},
		{"shim-per-pod", "2", invalid},
		{"device-ownership-from-security-context", "true", "true"},
		{"device-ownership-from-security-context", "2", invalid},
		{"pod-uts-namespace", "true", "true"},
		{"privileged-without-host-devices", "", ""},
		{"privileged-without-host-devices", "kata, default", "kata,default"},
		{"privileged-without-host-devices", "a/b", invalid},
		{"privileged-without-host-devices", "kata,", invalid},
		{"spec-dir", "", ""},
		{"spec-dir", "/etc/spec.d/", "/etc/spec.d"},
		{"spec-dir", "spec.d", invalid},
		{"hooks-dirs", "", ""},
		{"hooks-dirs", "/a, /b/", "/a,/b"},
		{"hooks-dirs", "/a,", invalid},
		{"restore-archive-dir", "", ""},
		{"restore-archive-dir", "/a/", "/a"},
		{"restore-archive-dir", "a", invalid},
		{"restore-images", "", ""},
		{"restore-images", "a, r.test/b/*", "a,r.test/b/*"},
		{"restore-images", "true,", invalid},
		{"keep-local-images", "false", "false"},
		{"keep-local-images", "some", invalid},
		{"pinned-images", "", ""},
		{"pinned-images", "busybox, registry.test:5000/tools/*", "busybox,registry.test:5000/tools/*"},
		{"pinned-images", "busybox,", invalid},
		{"pinned-images", "a b", invalid},
		{"pinned-images", "[ab]", invalid},
		{"pin-labels", "all", "all"},
		{"pin-labels", "true", invalid},
		{"cdi-annotations", "false", "false"},
		{"cdi-annotations", "maybe", invalid},
		{"cdi-spec-dirs", "/a, /b", "/a,/b"},
		{"cdi-spec-dirs", "", invalid},
		{"profiling", "true", "true"},
		{"profiling", "on", invalid},
		{"log-level", "WARNING", "warning"},
		{"log-level", "", "info"},
		{"log-level", "loud", invalid},
		{"log-format", "xml", invalid},
		{"ipv6-dual-stack", "True", "true"},
		{"ipv6-dual-stack", "maybe", invalid},
		{"network-plugin-mtu", "big", invalid},
		{"hairpin-mode", "promiscuous-bridge", "promiscuous-bridge"},
		{"hairpin-mode", "yes", invalid},
	} {
		t.Run(c.option+" "+c.text, func(t *testing.T) {
			v := byName[c.option].value
			err := v.Set(c.text)
			switch {
			case c.want == invalid && err == nil:
				t.Errorf("accepted as %q, want an error", v)
			case c.want == invalid && strings.Contains(err.Error(), "\n"):
				t.Errorf("error of several lines: %v", err)
			case c.want == invalid:
			case err != nil:
				t.Error(err)
			case v.String() != c.want:
				t.Errorf("got %q, want %q", v, c.want)
			default:
				// Reload and config print depend on it: what String returns sets the same value.
				if err := v.Set(v.String()); err != nil || v.String() != c.want {
					t.Errorf("set to its own String: %q (%v), want %q", v, err, c.want)
				}
			}
		})
	}
}

// A second berthd of a node leaves the default socket of NRI to the first one, unless the option names it.
func TestNRISocketIsBelowAnotherRunDir(t *testing.T) {
	const socket = "/var/run/nri/nri.sock"
	for args, want := range map[string]string{
		"":                                socket,
		"--run-dir=/run/other":            "/run/other/nri/nri.sock",
		"--nri-socket-path=/run/own.sock": "/run/own.sock",
		"--run-dir=/run/berth":            socket,
		"--run-dir=/run/other --nri-socket-path=/run/own.sock": "/run/own.sock",
		"--run-dir=/run/other --nri-socket-path=" + socket:     socket,
	} {
		o := newOptions(t)
		for arg := range strings.FieldsSeq(args) {
			name, value, _ := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
			for _, g := range o.Groups() {
				if g.Flags.Lookup(name) == nil {
					continue
				}
				if err := g.Flags.Set(name, value); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := o.Load(); err != nil {
			t.Fatal(err)
		}
		next, err := o.Reload()
		if err != nil {
			t.Fatal(err)
		}
		for _, got := range []*Options{o, next} {
			if nri := got.NRIOptions(); nri.SocketPath != want || nri.Validator.Enable || got.Values()["nri-socket-path"] != want {
				t.Errorf("%s: %s, validator %v, want %s", args, nri.SocketPath, nri.Validator.Enable, want)
			}
		}
	}
	o := Config{NRI: NRI{Reject: []string{"oci-hooks"}, RequiredPlugins: []string{"a"}}}.NRIOptions()
	if v := o.Validator; !v.Enable || !v.RejectOCIHookAdjustment || v.RejectSysctlAdjustment || len(v.RequiredPlugins) != 1 {
		t.Errorf("validator %+v", v)
	}
}

// What Print writes is a configuration that sets the same, whichever of its choices an option has.
func TestPrintedChoicesCanBeLoaded(t *testing.T) {
	for _, opt := range newOptions(t).options {
		choices, ok := opt.value.(interface{ Choices() []string })
		if !ok || opt.ignored != "" {
			continue
		}
		for _, choice := range choices.Choices() {
			o := newOptions(t)
			if err := o.option(opt.name).flag.Value.Set(choice); err != nil {
				t.Fatal(err)
			}
			if err := o.Load(); err != nil {
				t.Fatal(err)
			}
			var text bytes.Buffer
			if err := o.Print(&text); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(file, text.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			again, err := New(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := again.Load(); err != nil {
				t.Errorf("--%s=%s: %v", opt.name, choice, err)
			}
			if diff := cmp.Diff(o.Values(), again.Values()); diff != "" {
				t.Errorf("--%s=%s (-first +again):\n%s", opt.name, choice, diff)
			}
		}
	}
}
