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

// dockerEngine is docker-engine SOCKET API INFO serves as much of a Docker Engine without
// containers as the doctor and an idle daemon ask for: it speaks that version of the
// API and says the JSON of that file of itself.
func dockerEngine(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: docker-engine SOCKET API INFO")
	}
	api, info := args[1], ts.ReadFile(args[2])
	l, err := net.Listen("unix", ts.MkAbs(args[0]))
	ts.Check(err)
	answer := func(w http.ResponseWriter, r *http.Request) {
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
			http.Error(w, `{"message": "no such thing here"}`, http.StatusNotFound)
		}
	}
	server := &http.Server{Handler: http.HandlerFunc(answer)}
	go server.Serve(l)
	ts.Defer(func() { server.Close() })
}

// awaitHealthy is await-healthy PROGRAM [ARG...] waits until the doctor finds nothing wrong: a
// daemon needs a moment to know its Docker.
func awaitHealthy(ts *testscript.TestScript, neg bool, args []string) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		err := ts.Exec(args[0], args[1:]...)
		if err == nil {
			return
		}
		var ended *exec.ExitError
		if !errors.As(err, &ended) {
			ts.Fatalf("%v", err)
		}
	}
	ts.Fatalf("still not well after %v:\n%s", patience, ts.ReadFile("stdout"))
}
