package core

import (
	"go/ast"
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
	{"core/kernelfile", "core/sleep", "core/tracing", "core/httpserver"},
	{"core/atomicfile", "core/broadcast", "core/cgroup", "core/eventlag", "core/hostprobe", "core/kmutex", "core/metrics", "core/names", "core/panics", "core/pause", "core/pending", "core/rollback", "core/shorten", "core/systemd", "core/logs/dockerlog", "core/ociedit", "core/ocifeatures", "core/containerd", "core/quantity", "core/tracing/otlp", "core/trust", "core/rootdiff"},
	{"core/blockio", "core/cdi", "core/checkpoint", "core/image/registryauth", "core/image/pullerror", "core/image/verify", "core/labels", "core/logs/crifile", "core/logs/jsonfile", "core/logs/localfile", "core/logs/logfile", "core/logs/logstream", "core/premount", "core/criu/archive", "core/singleflight", "core/state", "core/stats/cgroupstats", "core/bundle", "core/changes", "core/image/pullprogress", "core/image/pinning", "core/dockerconfig"},
	{"core/image/mirror", "network/netns", "core/criu"},
	{"network/cniconf", "core/restore"},
	{"network/cnitemplate"},
	{"core/oom", "network", "streaming"},
	{"core/engine"},
	{"core/bandwidth", "core/identity", "core/image/eventstream", "core/limits", "core/ociinstall", "core/podpolicy", "core/relabel", "core/tocri"},
	{"core/specedit"},
	{"core/specfiles", "core/userns"},
	{"core/todocker", "core/ociruntime"},
	{"core/cache", "core/securityprofile"},
	{"core/image/foreign", "core/image/imagecache", "core/image/origin", "core/image/passwd", "core/resources", "core/stats/diskusage", "core/exitlog", "core/verbose", "core/premounts", "core/nri/adjust"},
	{"core/nri"},
	{"core/container", "core/exec", "core/image", "core/logs", "core/sandbox", "core/stats", "core/imagecopy"},
	{"core/podcheckpoint"},
	{"core/server"},
	{"core/daemon"},
	{"cmd/berthd/internal/config"},
	{"cmd/berthd/internal/doctor", "cmd/berthd/internal/pods", "cmd/berthd/internal/pulls"},
	{"cmd/berthd"},
	{"cmd/berth-oci/internal/argv", "cmd/berth-oci/internal/spec"},
	{"cmd/berth-oci/internal/userns", "cmd/berth-oci/internal/restore"},
	{"cmd/berth-oci"},
}

// testSupport lists the packages that only tests import.
var testSupport = []string{"core/containerd/containerdtest", "core/engine/enginelaws", "core/engine/enginetest", "core/nri/nritest", "core/protofuzz", "core/tartest", "core/testdir", "core/testmain", "network/networktest", "core/tracing/tracingtest"}

// forbiddenImports lists what may not be imported directly, by whom, and why.
var forbiddenImports = []struct{ who, what, why string }{
	{"", "k8s.io/kubernetes", "it is a program, not a library"},
	{"", "k8s.io/client-go", "berth does not talk to the API server"},
	{"", "github.com/sirupsen/logrus", "berth logs with log/slog"},
	{"core", "k8s.io/klog", "berth logs with log/slog"},
	{"", "github.com/moby/moby", "Docker is called through docker/docker/client"},
	{"cmd/berth-oci", "github.com/docker/docker", "it starts with every container and must be small"},
	{"", "github.com/stretchr/testify", "tests use testing and go-cmp"},
	{"network", module + "core", "network knows nothing of Docker or the CRI"},
	{"streaming", module + "core", "streaming knows nothing of Docker or the CRI"},
	{"core/server", "github.com/docker/docker", "the server calls services, not Docker"},
	{"network", module + "core/tracing/otlp", "only core/daemon exports traces"},
	{"", "text/template", "it finds methods by name, so that the linker keeps all of them (network/cnitemplate)"},
	{"", "html/template", "it finds methods by name, so that the linker keeps all of them"},
}

// purePackages translate and do no I/O, so they may not import these.
var (
	purePackages = []string{"core/tocri", "core/todocker", "core/limits", "core/identity", "core/bandwidth", "core/image/pinning", "core/nri/adjust", "core/podpolicy", "core/quantity", "core/specedit", "core/userns"}
	impure       = []string{"os", "context", "net/http"}
)

// leafUtilities know nothing of Docker or the CRI, so that network and streaming may
// import them.
var leafUtilities = []string{module + "core/atomicfile", module + "core/kernelfile", module + "core/kmutex", module + "core/sleep", module + "core/tracing"}

type file struct {
	pkg, path string
	ast       *ast.File
}

// parseAll returns every Go file of the module but tests and contrib.
func parseAll(t *testing.T) (files []file) {
	t.Helper()
	sources := parseModule(t)
	for _, path := range slices.Sorted(maps.Keys(sources)) {
		rel, err := filepath.Rel("..", path)
		if err != nil {
			t.Fatal(err)
		}
		rel = filepath.ToSlash(rel)
		if strings.HasSuffix(rel, "_test.go") || within(rel, "contrib") || within(rel, "packaging") {
			continue // contrib and packaging are modules of their own
		}
		files = append(files, file{filepath.ToSlash(filepath.Dir(rel)), rel, sources[path].ast})
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
		if !ok && !slices.Contains(testSupport, f.pkg) {
			t.Errorf("%s: package %s is in no layer", f.path, f.pkg)
		}
		for _, spec := range f.ast.Imports {
			path, _ := strconv.Unquote(spec.Path.Value)
			pkg, ours := strings.CutPrefix(path, module)
			switch {
			case slices.Contains(testSupport, f.pkg): // imports what it needs
			case path == "text/template/parse":
				continue // without what forbids text/template
			case ours && slices.Contains(testSupport, pkg):
				t.Errorf("%s imports %s, which is for tests", f.path, pkg)
			case ours && layer[pkg] >= importer:
				t.Errorf("%s imports %s, which is not in a layer below", f.path, pkg)
			case slices.Contains(purePackages, f.pkg) && slices.Contains(impure, path):
				t.Errorf("%s imports %s: translation does no I/O", f.path, path)
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
	"core/engine":                nil,
	"core/engine/enginetest":     nil, // test support
	"core/engine/enginelaws":     nil, // test support
	"cmd/berthd/internal/config": {"ParseHostURL"},
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
