package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// dockerdMain is dockerd SOCKET CONFIG [FLAG...]: as much of a Docker Engine as berthd runtime calls, in a process of its own. It
// reads the runtimes in CONFIG again on SIGHUP, and lists a container for each line NAME RUNTIME in the file CONFIG.containers.
// The flags are only for its command line.
func dockerdMain() {
	d := &fakeDockerd{config: os.Args[2]}
	d.read()
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP)
	go func() {
		for range hangups {
			d.read()
		}
	}()
	l, err := net.Listen("unix", os.Args[1])
	if err == nil {
		err = http.Serve(l, d)
	}
	fmt.Fprintln(os.Stderr, "dockerd:", err)
	os.Exit(1)
}

type fakeDockerd struct {
	config string

	mu       sync.Mutex // guards runtimes
	runtimes map[string]any
}

// read reads the runtimes as dockerd does: without the key it keeps those that it has.
func (d *fakeDockerd) read() {
	var file struct{ Runtimes map[string]any }
	text, err := os.ReadFile(d.config)
	if err == nil {
		err = json.Unmarshal(text, &file)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.runtimes == nil || err == nil && file.Runtimes != nil {
		d.runtimes = map[string]any{"runc": map[string]string{"path": "runc"}}
		maps.Copy(d.runtimes, file.Runtimes)
	}
}

func (d *fakeDockerd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", "1.45")
	w.Header().Set("Content-Type", "application/json")
	containers := map[string]string{} // runtimes by name
	text, _ := os.ReadFile(d.config + ".containers")
	for line := range strings.Lines(string(text)) {
		name, runtime, _ := strings.Cut(strings.TrimSpace(line), " ")
		containers[name] = runtime
	}
	_, call, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/") // without the version
	switch {
	case call == "":
		// _ping
	case call == "info":
		d.mu.Lock()
		defer d.mu.Unlock()
		json.NewEncoder(w).Encode(map[string]any{"ServerVersion": "26.1.5", "DockerRootDir": "/var/lib/docker", "Runtimes": d.runtimes, "DefaultRuntime": "runc"})
	case call == "containers/json":
		list := []any{}
		for name := range containers {
			list = append(list, map[string]any{"Id": name, "State": "running"})
		}
		json.NewEncoder(w).Encode(list)
	case path.Base(call) == "json":
		name := path.Base(path.Dir(call))
		json.NewEncoder(w).Encode(map[string]any{"Id": name, "Name": "/" + name, "HostConfig": map[string]any{"Runtime": containers[name]}})
	default:
		http.NotFound(w, r)
	}
}
