package network

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/core/testmain"
)

// TestMain makes the test binary a CNI plugin when it is run as one.
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
	os.Exit(testmain.M{M: m}.Run()) // most tests wait for plugins, or for time to pass
}

// script is what a fake plugin reads in its configuration.
type script struct {
	CNIVersion string          `json:"cniVersion"`
	Name       string          `json:"name"`
	Type       string          `json:"type"`
	Notes      string          `json:"notes"`     // file to note calls in
	Result     json.RawMessage `json:"result"`    // of ADD
	Fail       []string        `json:"fail"`      // commands that fail
	Unknown    []string        `json:"unknown"`   // commands it does not know
	Hang       []string        `json:"hang"`      // commands that never finish
	HangUntil  string          `json:"hangUntil"` // a file; ADD waits for it
	Prev       json.RawMessage `json:"prevResult"`
}

// call is one note of a fake plugin.
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
	var s script
	if err := json.Unmarshal(stdin, &s); err != nil {
		return &fakeError{6, err.Error()}
	}
	c := call{
		Command: command, ID: os.Getenv("CNI_CONTAINERID"), NetNS: os.Getenv("CNI_NETNS"),
		Args: os.Getenv("CNI_ARGS"), IfName: os.Getenv("CNI_IFNAME"), Type: s.Type,
	}
	_ = json.Unmarshal(stdin, &c.Config)
	line, _ := json.Marshal(c)
	f, err := os.OpenFile(s.Notes, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return &fakeError{5, err.Error()}
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		return &fakeError{5, err.Error()}
	}
	switch {
	case slices.Contains(s.Unknown, command):
		return &fakeError{4, "unknown CNI_COMMAND: " + command}
	case slices.Contains(s.Fail, command):
		return &fakeError{999, command + " is not my day"}
	case slices.Contains(s.Hang, command):
		// What a plugin starts has its output too.
		child := exec.Command("sleep", "3600")
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		_ = child.Run()
	}
	if command != "ADD" {
		return nil
	}
	for s.HangUntil != "" {
		if _, err := os.Stat(s.HangUntil); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	out := s.Result
	if len(out) == 0 {
		out = s.Prev
	}
	if len(out) == 0 {
		out = json.RawMessage(`{}`)
	}
	fmt.Print(string(out))
	return nil
}

// A node is what a CNI is configured with, in a directory of its own.
type node struct {
	t   *testing.T
	dir string
	cfg Config
	log *logs
}

// newNode returns a node with plugins of the given names, each a fake.
func newNode(t *testing.T, plugins ...string) *node {
	t.Helper()
	dir := t.TempDir()
	d := &node{t: t, dir: dir, log: &logs{}, cfg: Config{
		ConfDir: filepath.Join(dir, "net.d"), BinDirs: []string{filepath.Join(dir, "bin"), filepath.Join(dir, "more")},
		CacheDir: filepath.Join(dir, "cache"), RunDir: filepath.Join(dir, "run"),
	}}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "run", "netns"), unix.MNT_DETACH) }) // where Bind made it one
	for _, sub := range []string{"net.d", "bin", "run/netns"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range plugins {
		d.install(name)
	}
	return d
}

// install installs a fake plugin.
func (d *node) install(name string) {
	d.t.Helper()
	self, err := os.Executable()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(d.dir, "bin", name)); err != nil {
		d.t.Fatal(err)
	}
}

func (d *node) new() *CNI { return New(d.cfg, d.log.logger()) }

// conf writes a file into the configuration directory, replacing NOTES.
func (d *node) conf(name, text string) string {
	d.t.Helper()
	path := filepath.Join(d.cfg.ConfDir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "NOTES", d.notes())), 0o600); err != nil {
		d.t.Fatal(err)
	}
	return path
}

// place writes a configuration file that is whole as soon as it is there: one that
// is read half written is broken, and told of as such.
func (d *node) place(name, text string) string {
	d.t.Helper()
	path := filepath.Join(d.cfg.ConfDir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Rename(d.conf("../half-written", text), path); err != nil {
		d.t.Fatal(err)
	}
	return path
}

func (d *node) notes() string { return filepath.Join(d.dir, "notes") }

// calls returns what the plugins were called for since the last time.
func (d *node) calls() []call {
	d.t.Helper()
	data, err := os.ReadFile(d.notes())
	if err != nil && !os.IsNotExist(err) {
		d.t.Fatal(err)
	}
	_ = os.Remove(d.notes())
	var all []call
	for line := range strings.Lines(string(data)) {
		var c call
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			d.t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

// summary is calls, each as "COMMAND type network id netns".
func (d *node) summary() []string {
	d.t.Helper()
	var all []string
	for _, c := range d.calls() {
		netns := "-"
		if c.NetNS != "" {
			netns = filepath.Base(c.NetNS)
		}
		all = append(all, fmt.Sprint(c.Command, " ", c.Type, " ", c.Config["name"], " ", c.ID, " ", netns))
	}
	return all
}

// netns makes the network namespace of the pod id appear bound.
func (d *node) netns(id string) string {
	d.t.Helper()
	path := filepath.Join(d.cfg.RunDir, "netns", prefix+id)
	if err := os.Symlink("/proc/self/ns/net", path); err != nil {
		d.t.Fatal(err)
	}
	return path
}

// handles returns the files in the directory of network namespaces.
func (d *node) handles() []string {
	d.t.Helper()
	entries, err := os.ReadDir(filepath.Join(d.cfg.RunDir, "netns"))
	if err != nil {
		d.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// cache writes a file into libcni's cache.
func (d *node) cache(name, text string) {
	d.t.Helper()
	dir := filepath.Join(d.cfg.CacheDir, "results")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// cached returns the files in libcni's cache.
func (d *node) cached() []string {
	d.t.Helper()
	entries, err := os.ReadDir(filepath.Join(d.cfg.CacheDir, "results"))
	if err != nil && !os.IsNotExist(err) {
		d.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// eventually waits until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("it never happened that %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// logs collects what is logged.
type logs struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// count returns how many lines contain text.
func (l *logs) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for line := range strings.Lines(l.buf.String()) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}
