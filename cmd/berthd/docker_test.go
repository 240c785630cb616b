package main

import (
	"errors"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// docker-engine SOCKET API INFO serves as much of a Docker Engine without containers as the doctor
// and an idle daemon call: that version of the API, with the JSON of the file INFO for /info.
func serveDocker(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: docker-engine SOCKET API INFO")
	}
	api, info := args[1], ts.ReadFile(args[2])
	l, err := net.Listen("unix", ts.MkAbs(args[0]))
	ts.Check(err)
	respond := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", api)
		w.Header().Set("Content-Type", "application/json")
		switch path := r.URL.Path; {
		case path == "/_ping":
		case strings.HasSuffix(path, "/info"):
			w.Write([]byte(info))
		case strings.HasSuffix(path, "/containers/json"), strings.HasSuffix(path, "/images/json"):
			w.Write([]byte("[]"))
		case strings.HasSuffix(path, "/events"):
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		default:
			http.Error(w, `{"message": "page not found"}`, http.StatusNotFound)
		}
	}
	server := &http.Server{Handler: http.HandlerFunc(respond)}
	go server.Serve(l)
	ts.Defer(func() { server.Close() })
}

// await-healthy PROGRAM [ARG...] runs the doctor until no check fails: a daemon needs a moment after its start
// to sync with Docker.
func awaitHealthy(ts *testscript.TestScript, neg bool, args []string) {
	for deadline := time.Now().Add(waitTimeout); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		err := ts.Exec(args[0], args[1:]...)
		if err == nil {
			return
		}
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
	}
	ts.Fatalf("still unhealthy after %v:\n%s", waitTimeout, ts.ReadFile("stdout"))
}

// await-docker SOCKET waits until a process listens there.
func awaitDocker(ts *testscript.TestScript, neg bool, args []string) {
	for deadline := time.Now().Add(waitTimeout); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("unix", ts.MkAbs(args[0])); err == nil {
			conn.Close()
			return
		}
	}
	ts.Fatalf("no server at %s after %v", args[0], waitTimeout)
}
