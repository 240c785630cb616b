package core

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode"
)

// forbiddenWords are words that this project once used for things that have a name in the field:
// cache, keyed mutex, bucket, orphan, generation, timeout, emit, inspect, and so on.
var forbiddenWords = []string{
	"house", "houses", "room", "rooms", "desk", "cellar", "landing", "doorplate", "furnish", "furnished",
	"door", "guest", "guests", "greet", "greeted", "shelf", "shelves", "knob", "knobs", "ghost", "ghosts", "ticket", "tickets", "twin", "twins",
	"patience", "patient", "turn", "turns", "tell", "tells", "told", "untold", "ask", "asks", "asked", "asking", "said", "deaf", "slain", "owed",
	"look", "looks", "looked", "hear", "hears", "heard", "settle", "settled", "unsettle", "tidy", "journal", "whoever", "nobody", "somebody", "anybody",
}

// words splits an identifier or a sentence into lower-case words.
func words(text string) (list []string) {
	start, previous := -1, ' '
	flush := func(end int) {
		if start >= 0 {
			list = append(list, strings.ToLower(text[start:end]))
		}
		start = -1
	}
	for i, r := range text {
		switch {
		case !unicode.IsLetter(r):
			flush(i)
		case start < 0:
			start = i
		case unicode.IsUpper(r) && unicode.IsLower(previous):
			flush(i)
			start = i
		}
		previous = r
	}
	flush(len(text))
	return list
}

func TestWordsSplitsIdentifiers(t *testing.T) {
	if got, want := words("lookSoon(TheTell, untold_2room) HTTPDoor"), []string{"look", "soon", "the", "tell", "untold", "room", "httpdoor"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestVocabulary keeps the forbidden words out of every identifier that the module declares, tests
// too, and out of package comments.
func TestVocabulary(t *testing.T) {
	check := func(position token.Position, text string) {
		for _, word := range words(text) {
			if slices.Contains(forbiddenWords, word) {
				t.Errorf("%s: %q has the word %q: use the term of the field", position, text, word)
				return
			}
		}
	}
	for path, f := range parseModule(t) {
		if path == filepath.Join("..", "core", "vocabulary_test.go") {
			continue
		}
		if f.ast.Doc != nil {
			check(f.fset.Position(f.ast.Doc.Pos()), f.ast.Doc.Text())
		}
		for id := range declared(f.ast) {
			check(f.fset.Position(id.Pos()), id.Name)
		}
	}
}

type parsed struct {
	fset *token.FileSet
	ast  *ast.File
}

// parseModule returns every Go file of the module, tests too, by path.
func parseModule(t *testing.T) map[string]parsed {
	t.Helper()
	files, err := sources()
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// sources parses the module once for all tests, which only read it.
var sources = sync.OnceValues(func() (map[string]parsed, error) {
	files := map[string]parsed{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		files[path] = parsed{fset, f}
		return err
	})
	return files, err
})

// declared yields the identifiers that f declares.
func declared(f *ast.File) func(yield func(*ast.Ident) bool) {
	return func(yield func(*ast.Ident) bool) {
		more := true
		emit := func(exprs ...ast.Expr) {
			for _, e := range exprs {
				if id, ok := e.(*ast.Ident); ok && id != nil && more {
					more = yield(id)
				}
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				emit(n.Name)
			case *ast.TypeSpec:
				emit(n.Name)
			case *ast.Field:
				for _, id := range n.Names {
					emit(id)
				}
			case *ast.ValueSpec:
				for _, id := range n.Names {
					emit(id)
				}
			case *ast.AssignStmt:
				if n.Tok == token.DEFINE {
					emit(n.Lhs...)
				}
			case *ast.RangeStmt:
				if n.Tok == token.DEFINE {
					emit(n.Key, n.Value)
				}
			}
			return more
		})
	}
}

// Limits of size, in lines. What exceeds them has more than one subject.
const (
	maxFunctionLines = 80
	maxPackageLines  = 1500
)

func TestFunctionsAndPackagesAreSmall(t *testing.T) {
	lines := map[string]int{}
	for path, f := range parseModule(t) {
		if strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, filepath.Join("..", "contrib")) || strings.HasPrefix(path, filepath.Join("..", "packaging")) {
			continue
		}
		pkg := filepath.ToSlash(strings.TrimPrefix(filepath.Dir(path), ".."+string(filepath.Separator)))
		if slices.Contains(testSupport, pkg) {
			continue
		}
		lines[pkg] += f.fset.Position(f.ast.FileEnd).Line
		for _, d := range f.ast.Decls {
			begin, end := f.fset.Position(d.Pos()), f.fset.Position(d.End())
			if fn, ok := d.(*ast.FuncDecl); ok && end.Line-begin.Line >= maxFunctionLines {
				t.Errorf("%s: %s has %d lines, at most %d are allowed", begin, fn.Name.Name, end.Line-begin.Line+1, maxFunctionLines)
			}
		}
	}
	for pkg, n := range lines {
		if n > maxPackageLines {
			t.Errorf("package %s has %d lines, at most %d are allowed", pkg, n, maxPackageLines)
		}
	}
}

// testName matches the name of a test with its package, as documents mention it.
var testName = regexp.MustCompile(`^([a-z0-9]+)\.((?:Test|Fuzz)[A-Za-z0-9]+)(\*?)$`)

// TestDocumentedTestsExist: a document that names a test names one that exists.
func TestDocumentedTestsExist(t *testing.T) {
	tests := map[string]bool{}
	for path, f := range parseModule(t) {
		if !strings.HasSuffix(path, "_test.go") {
			continue
		}
		pkg := strings.TrimSuffix(f.ast.Name.Name, "_test")
		if pkg == "main" {
			pkg = filepath.Base(filepath.Dir(path))
		}
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				tests[pkg+"."+fn.Name.Name] = true
			}
		}
	}
	for path, text := range documents(t) {
		for quoted := range strings.SplitSeq(text, "`") {
			m := testName.FindStringSubmatch(quoted)
			if m == nil || tests[quoted] {
				continue
			}
			prefix := strings.TrimSuffix(quoted, "*")
			found := false
			for name := range tests {
				found = found || m[3] == "*" && strings.HasPrefix(name, prefix)
			}
			if !found {
				t.Errorf("%s: there is no test %s", path, quoted)
			}
		}
	}
}
