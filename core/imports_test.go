package core

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "berth/"

// layers lists every package from the lowest layer up. A package imports only from
// the layers below its own. core/doc.go describes them; move a package here only
// together with that plan.
var layers = [][]string{
	{"core/atomicfile"},
	{"core/names", "core/broadcast", "core/hostprobe", "core/rollback", "core/kmutex", "core/state", "core/checkpoint", "core/pause", "core/cgroup", "core/systemd", "core/protofuzz", "core/metrics", "core/testmain", "core/panics"},
	{"core/names", "core/rollback", "core/kmutex", "core/state", "core/checkpoint", "core/pause", "core/cgroup", "core/systemd", "core/pending", "core/protofuzz", "core/metrics", "core/testmain", "core/panics"},
	{"core/labels", "core/premount"},
	{"core/names", "core/rollback", "core/kmutex", "core/state", "core/checkpoint", "core/pause", "core/cgroup", "core/systemd", "core/protofuzz", "core/metrics", "core/testmain", "core/panics", "core/logs/dockerlog"},
	{"core/labels", "core/premount", "core/logs/jsonfile", "core/logs/logstream", "core/logs/crifile"},
	{"core/names", "core/rollback", "core/kmutex", "core/state", "core/checkpoint", "core/pause", "core/cgroup", "core/systemd", "core/protofuzz", "core/metrics", "core/testmain", "core/panics"},
	{"core/labels", "core/premount", "core/stats/cgroupstats"},
	{"core/engine", "network", "streaming", "core/oom"},
	{"core/names", "core/rollback", "core/kmutex", "core/sleep", "core/state", "core/checkpoint", "core/pause", "core/cgroup", "core/systemd", "core/protofuzz", "core/metrics", "core/testmain", "core/panics"},
	{"core/labels", "core/premount", "network/netns", "network/cniconf"},
	{"core/engine", "network", "streaming", "core/oom", "network/networktest"},
	{"core/engine/enginetest", "core/tocri", "core/todocker"},
	{"core/cache", "core/securityprofile", "core/engine/enginelaws"},
	{"core/names", "core/rollback", "core/kmutex", "core/state", "core/checkpoint", "core/pause", "core/cgroup", "core/systemd", "core/protofuzz", "core/metrics", "core/testmain", "core/panics", "core/identity"},
	{"core/names", "core/rollback", "core/kmutex", "core/state", "core/checkpoint", "core/pause", "core/cgroup", "core/systemd", "core/protofuzz", "core/metrics", "core/testmain", "core/panics", "core/identity", "core/bandwidth"},
	{"core/labels", "core/premount", "core/singleflight"},
	{"core/engine", "network", "streaming", "core/oom"},
	{"core/engine/enginetest", "core/tocri", "core/limits"},
	{"core/todocker"},
	{"core/cache", "core/securityprofile"},
	{"core/resources"},
	{"core/stats/diskusage"},
	{"core/sandbox", "core/container", "core/image", "core/exec", "core/logs", "core/stats"},
	{"core/server"},
	{"core/daemon"},
	{"cmd/berthd/internal/config"},
	{"cmd/berthd/internal/doctor"},
	{"cmd/berthd"},
}

// forbiddenImports lists what may not be imported directly, by whom, and why.
var forbiddenImports = []struct{ who, what, why string }{
	{"", "k8s.io/kubernetes", "it is a program, not a library"},
	{"", "k8s.io/client-go", "we never talk to the API server"},
	{"", "github.com/sirupsen/logrus", "we log with log/slog"},
	{"core", "k8s.io/klog", "we log with log/slog"},
	{"", "github.com/moby/moby", "Docker is spoken to through docker/docker/client"},
	{"", "github.com/stretchr/testify", "we test with testing and go-cmp"},
	{"network", module + "core", "network knows nothing of Docker or the CRI"},
	{"streaming", module + "core", "streaming knows nothing of Docker or the CRI"},
	{"core/tocri", "os", "translation is pure"},
	{"core/tocri", "context", "translation is pure"},
	{"core/tocri", "net/http", "translation is pure"},
	{"core/todocker", "os", "translation is pure"},
	{"core/todocker", "context", "translation is pure"},
	{"core/todocker", "net/http", "translation is pure"},
	{"core/limits", "os", "translation is pure"},
	{"core/limits", "context", "translation is pure"},
	{"core/limits", "net/http", "translation is pure"},
	{"core/bandwidth", "os", "translation is pure"},
	{"core/bandwidth", "context", "translation is pure"},
	{"core/bandwidth", "net/http", "translation is pure"},
	{"core/identity", "os", "translation is pure"},
	{"core/identity", "context", "translation is pure"},
	{"core/identity", "net/http", "translation is pure"},
	{"core/server", "github.com/docker/docker", "the server calls services, not Docker"},
	{"", module + "core/engine/enginelaws", "only tests import it"},
	{"", module + "core/engine/enginetest", "only tests import it"},
	{"", module + "core/protofuzz", "only tests import it"},
	{"", module + "core/testmain", "only tests import it"},
	{"", module + "network/networktest", "only tests import it"},
}

// leafUtilities know nothing of Docker or the CRI, so that network and streaming may
// import them.
var leafUtilities = []string{module + "core/kmutex", module + "core/sleep"}

type file struct {
	pkg, path string
	ast       *ast.File
}

// parseAll parses every Go file of the module but tests and contrib.
func parseAll(t *testing.T) (files []file) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && (path == filepath.Join("..", "contrib") || path == filepath.Join("..", "packaging")) {
			return fs.SkipDir // modules of their own
		}
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel("..", path)
		files = append(files, file{filepath.ToSlash(filepath.Dir(rel)), rel, f})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestImportsPointDown(t *testing.T) {
	layer := map[string]int{"core": 0}
	for i, packages := range layers {
		for _, pkg := range packages {
			layer[pkg] = i + 1
		}
	}
	for _, f := range parseAll(t) {
		importer, ok := layer[f.pkg]
		if !ok {
			t.Errorf("%s: package %s is in no layer", f.path, f.pkg)
		}
		for _, spec := range f.ast.Imports {
			path, _ := strconv.Unquote(spec.Path.Value)
			if pkg, ours := strings.CutPrefix(path, module); ours && layer[pkg] >= importer {
				t.Errorf("%s imports %s, which is not in a layer below", f.path, pkg)
			}
			for _, b := range forbiddenImports {
				if within(f.pkg, b.who) && within(path, b.what) && (b.what != module+"core" || !slices.Contains(leafUtilities, path)) {
					t.Errorf("%s imports %s: %s", f.path, path, b.why)
				}
			}
		}
	}
}

// within reports whether path is tree or lies in it; everything is within "".
func within(path, tree string) bool {
	return tree == "" || path == tree || strings.HasPrefix(path, strings.TrimSuffix(tree, "/")+"/")
}

func TestEveryPackageHasOnePackageComment(t *testing.T) {
	comments := map[string]int{}
	for _, f := range parseAll(t) {
		if f.ast.Doc != nil {
			comments[f.pkg]++
		} else {
			comments[f.pkg] += 0
		}
	}
	for _, pkg := range slices.Sorted(maps.Keys(comments)) {
		if comments[pkg] != 1 {
			t.Errorf("package %s has %d package comments, want 1", pkg, comments[pkg])
		}
	}
}

// Only cmd ends the process or creates a root context, and no package works in init.
func TestOnlyCmdExitsOrCreatesContexts(t *testing.T) {
	cmdOnly := []string{"os.Exit", "log.Fatal", "log.Fatalf", "context.Background", "context.TODO"}
	for _, f := range parseAll(t) {
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Name.Name == "init" && n.Recv == nil {
					t.Errorf("%s: func init", f.path)
				}
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && !within(f.pkg, "cmd") && slices.Contains(cmdOnly, x.Name+"."+n.Sel.Name) {
					t.Errorf("%s: %s.%s outside cmd", f.path, x.Name, n.Sel.Name)
				}
			}
			return true
		})
	}
}

// dockerClientUsers lists the packages that may import the client of the Engine API, with what
// they may use of it; empty is everything. All calls of the daemon go through core/engine,
// which gives each of them a deadline.
var dockerClientUsers = map[string][]string{
	"core/engine":            nil,
	"core/engine/enginetest": nil, // test support
	"core/engine/enginelaws": nil, // test support
	"cmd/berthd":             {"ParseHostURL"},
}

func TestOnlyEngineCreatesDockerClients(t *testing.T) {
	const clientPackage = "github.com/docker/docker/client"
	for _, f := range parseAll(t) {
		imported := slices.ContainsFunc(f.ast.Imports, func(spec *ast.ImportSpec) bool { return spec.Path.Value == strconv.Quote(clientPackage) })
		allowed, isUser := dockerClientUsers[f.pkg]
		if imported && !isUser {
			t.Errorf("%s imports %s: use core/engine", f.path, clientPackage)
		}
		if f.pkg == "core/engine" {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			// These methods of the client reach the Engine without the transport of core/engine.
			if name := sel.Sel.Name; name == "HTTPClient" || name == "DialHijack" {
				t.Errorf("%s uses %s: call the Engine through the methods of engine.Conn", f.path, name)
			}
			if x, ok := sel.X.(*ast.Ident); ok && imported && x.Name == "client" && len(allowed) > 0 && !slices.Contains(allowed, sel.Sel.Name) {
				t.Errorf("%s uses client.%s: use core/engine", f.path, sel.Sel.Name)
			}
			return true
		})
	}
}
