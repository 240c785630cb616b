package network

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/core/testmain"
	"berth/network/netns"
	"berth/network/networktest"
)

// TestMain makes the test binary a CNI plugin when libcni runs it as one.
func TestMain(m *testing.M) {
	if command := os.Getenv("CNI_COMMAND"); command != "" {
		if err := fakePlugin(command); err != nil {
			fmt.Printf(`{"code": %d, "msg": %q}`, err.code, err.msg)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// With the race detector every program sleeps a second before it ends.
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	os.Exit(testmain.M{M: m}.Run()) // most tests wait for plugins, or for timeouts
}

// pluginConf is the configuration of a fake plugin: what it is to do.
type pluginConf struct {
	CNIVersion string          `json:"cniVersion"`
	Name       string          `json:"name"`
	Type       string          `json:"type"`
	CallLog    string          `json:"callLog"`   // file to append calls to
	Result     json.RawMessage `json:"result"`    // of ADD
	Fail       []string        `json:"fail"`      // commands that fail
	Unknown    []string        `json:"unknown"`   // commands that it does not know
	Hang       []string        `json:"hang"`      // commands that never return
	HangUntil  string          `json:"hangUntil"` // ADD waits until this file exists
	Prev       json.RawMessage `json:"prevResult"`
}

// A call is one line of a call log.
type call struct {
	Command, ID, NetNS, Args, IfName string
	Type                             string
	Config                           map[string]any
}

type fakeError struct {
	code int
	msg  string
}

func fakePlugin(command string) *fakeError {
	stdin, err := io.ReadAll(os.Stdin)
	if err != nil {
		return &fakeError{5, err.Error()}
	}
	var conf pluginConf
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return &fakeError{6, err.Error()}
	}
	c := call{
		Command: command, ID: os.Getenv("CNI_CONTAINERID"), NetNS: os.Getenv("CNI_NETNS"),
		Args: os.Getenv("CNI_ARGS"), IfName: os.Getenv("CNI_IFNAME"), Type: conf.Type,
	}
	_ = json.Unmarshal(stdin, &c.Config)
	line, _ := json.Marshal(c)
	f, err := os.OpenFile(conf.CallLog, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return &fakeError{5, err.Error()}
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		return &fakeError{5, err.Error()}
	}
	switch {
	case slices.Contains(conf.Unknown, command):
		return &fakeError{4, "unknown CNI_COMMAND: " + command}
	case slices.Contains(conf.Fail, command):
		return &fakeError{999, command + " failed as configured"}
	case slices.Contains(conf.Hang, command):
		// The child inherits the output of the plugin.
		child := exec.Command("sleep", "3600")
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		_ = child.Run()
	}
	if command != "ADD" {
		return nil
	}
	for conf.HangUntil != "" {
		if _, err := os.Stat(conf.HangUntil); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	out := conf.Result
	if len(out) == 0 {
		out = conf.Prev
	}
	if len(out) == 0 {
		out = json.RawMessage(`{}`)
	}
	fmt.Print(string(out))
	return nil
}

// A node has the directories of a Config, with fake plugins, and a log.
type node struct {
	t   *testing.T
	dir string // has all others
	cfg Config
	log networktest.Log
}

// newNode returns a node on which fake plugins of the given names are installed.
func newNode(t *testing.T, plugins ...string) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t, dir: dir, cfg: Config{
		ConfDir: filepath.Join(dir, "net.d"), BinDirs: []string{filepath.Join(dir, "bin"), filepath.Join(dir, "more")},
		CacheDir: filepath.Join(dir, "cache"), RunDir: filepath.Join(dir, "run"),
	}}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "run", "netns"), unix.MNT_DETACH) }) // if Bind made it a mount point
	for _, sub := range []string{"net.d", "bin", "run/netns"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range plugins {
		n.install(name)
	}
	return n
}

// install installs a fake plugin.
func (n *node) install(name string) {
	n.t.Helper()
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(n.dir, "bin", name)); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) new() *CNI { return New(n.cfg, n.log.Logger()) }

// conf writes a file into the configuration directory, with CALLS replaced by the call log.
func (n *node) conf(name, text string) string {
	n.t.Helper()
	path := filepath.Join(n.cfg.ConfDir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "CALLS", n.callLog())), 0o600); err != nil {
		n.t.Fatal(err)
	}
	return path
}

func (n *node) callLog() string { return filepath.Join(n.dir, "calls") }

// calls returns the calls of plugins since the previous one.
func (n *node) calls() []call {
	n.t.Helper()
	data, err := os.ReadFile(n.callLog())
	if err != nil && !os.IsNotExist(err) {
		n.t.Fatal(err)
	}
	_ = os.Remove(n.callLog())
	var all []call
	for line := range strings.Lines(string(data)) {
		var c call
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			n.t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

// callSummary is calls, each as "COMMAND type network id netns".
func (n *node) callSummary() []string {
	n.t.Helper()
	var all []string
	for _, c := range n.calls() {
		netnsFile := "-"
		if c.NetNS != "" {
			netnsFile = filepath.Base(c.NetNS)
		}
		all = append(all, fmt.Sprint(c.Command, " ", c.Type, " ", c.Config["name"], " ", c.ID, " ", netnsFile))
	}
	return all
}

// bindNetNS makes the network namespace of the pod id appear bound, without a mount.
func (n *node) bindNetNS(id string) string {
	n.t.Helper()
	path := filepath.Join(n.cfg.RunDir, "netns", netns.FileName(id))
	if err := os.Symlink("/proc/self/ns/net", path); err != nil {
		n.t.Fatal(err)
	}
	return path
}

// boundFiles returns the files in the directory of network namespaces.
func (n *node) boundFiles() []string {
	n.t.Helper()
	entries, err := os.ReadDir(filepath.Join(n.cfg.RunDir, "netns"))
	if err != nil {
		n.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// cache writes a file into libcni's cache.
func (n *node) cache(name, text string) {
	n.t.Helper()
	dir := filepath.Join(n.cfg.CacheDir, "results")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// cached returns the files in libcni's cache.
func (n *node) cached() []string {
	n.t.Helper()
	entries, err := os.ReadDir(filepath.Join(n.cfg.CacheDir, "results"))
	if err != nil && !os.IsNotExist(err) {
		n.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
