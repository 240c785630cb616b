package core

import (
	"go/ast"
	"slices"
	"strings"
	"testing"
)

// plainGoroutines are the goroutines that need no recovery, each with the reason. The key is the file.
var plainGoroutines = map[string]string{
	"core/daemon/daemon.go":         "the background loops of the daemon",
	"core/engine/kill.go":           "waits for two channels",
	"core/engine/engine.go":         "a background loop of the daemon",
	"core/httpserver/httpserver.go": "ends the listener",
	"core/server/streams.go":        "waits for two channels",
	"core/logs/logs.go":             "each of them is recovered, and its container goes on",
}

// TestGoroutinesRecoverPanics: a panic in a goroutine that serves a call ends that call and not the daemon, so
// packages of core start goroutines with core/panics.
func TestGoroutinesRecoverPanics(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range parseAll(t) {
		testOnly := slices.ContainsFunc(testSupport, func(pkg string) bool { return within(f.pkg, pkg) })
		if !strings.HasPrefix(f.pkg, "core/") || testOnly || f.pkg == "core/panics" {
			continue
		}
		path := strings.TrimPrefix(f.path, "../")
		found := func(what string) {
			seen[path] = true
			if plainGoroutines[path] == "" {
				t.Errorf("%s has %s: use core/panics", path, what)
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				found("a go statement")
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && (x.Name == "errgroup" || x.Name == "sync" && n.Sel.Name == "WaitGroup") {
					found(x.Name + "." + n.Sel.Name)
				}
			}
			return true
		})
	}
	for path := range plainGoroutines {
		if !seen[path] {
			t.Errorf("%s starts no goroutine of its own any more", path)
		}
	}
}
