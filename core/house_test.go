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

// floors lists every package of the house from the cellar up. A package
// imports only from the floors below its own.
//
// Do not move a package to make a build pass: a wall in the way is a question
// about the plan in doc.go.
var floors = [][]string{
	{"core/names", "core/undo", "core/turns", "core/journal", "core/checkpoint", "core/pause", "core/cgroup", "core/systemd", "core/scramble", "core/metrics", "core/testmain", "core/panics"},
	{"core/labels", "core/mounts"},
	{"core/engine", "network", "streaming", "core/oom"},
	{"core/engine/enginetest", "core/tocri", "core/todocker"},
	{"core/view", "core/profiles"},
	{"core/sandbox", "core/container", "core/image", "core/exec", "core/logs", "core/stats"},
	{"core/server"},
	{"cmd/berthd"},
}

// barred lists what may not be imported directly, by whom, and why.
var barred = []struct{ who, what, why string }{
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
	{"core/server", "github.com/docker/docker", "the front desk asks rooms, not Docker"},
	{"", module + "core/engine/enginetest", "only tests import it"},
	{"", module + "core/scramble", "only tests import it"},
	{"", module + "core/testmain", "only tests import it"},
}

type file struct {
	pkg, path string
	ast       *ast.File
}

// read parses every Go file of the house but the tests.
func read(t *testing.T) (files []file) {
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
	floor := map[string]int{"core": 0}
	for i, rooms := range floors {
		for _, room := range rooms {
			floor[room] = i + 1
		}
	}
	for _, f := range read(t) {
		here, ok := floor[f.pkg]
		if !ok {
			t.Errorf("%s: package %s is on no floor", f.path, f.pkg)
		}
		for _, spec := range f.ast.Imports {
			path, _ := strconv.Unquote(spec.Path.Value)
			if room, ours := strings.CutPrefix(path, module); ours && floor[room] >= here {
				t.Errorf("%s imports %s, which is not below it", f.path, room)
			}
			for _, b := range barred {
				if within(f.pkg, b.who) && within(path, b.what) {
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

func TestEveryRoomHasADoorplate(t *testing.T) {
	plates := map[string]int{}
	for _, f := range read(t) {
		if f.ast.Doc != nil {
			plates[f.pkg]++
		} else {
			plates[f.pkg] += 0
		}
	}
	for _, pkg := range slices.Sorted(maps.Keys(plates)) {
		if plates[pkg] != 1 {
			t.Errorf("package %s has %d package comments, want 1", pkg, plates[pkg])
		}
	}
}

// Only cmd ends the process or begins a context; nobody hides work in init.
func TestOnlyTheDoorEndsAndBegins(t *testing.T) {
	door := []string{"os.Exit", "log.Fatal", "log.Fatalf", "context.Background", "context.TODO"}
	for _, f := range read(t) {
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Name.Name == "init" && n.Recv == nil {
					t.Errorf("%s: func init", f.path)
				}
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && !within(f.pkg, "cmd") && slices.Contains(door, x.Name+"."+n.Sel.Name) {
					t.Errorf("%s: %s.%s outside cmd", f.path, x.Name, n.Sel.Name)
				}
			}
			return true
		})
	}
}
