package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestEveryFieldHasARow compares the rows with the CRI itself.
func TestEveryFieldHasARow(t *testing.T) {
	said := map[string][]string{}
	for _, m := range messages {
		if _, twice := said[m.name]; twice {
			t.Errorf("%s is there twice", m.name)
		}
		said[m.name] = []string{}
		for _, r := range m.rows {
			if slices.Contains(said[m.name], r.field) {
				t.Errorf("%s.%s is there twice", m.name, r.field)
			}
			if r.way == "" || r.words == "" {
				t.Errorf("%s.%s: nothing is said", m.name, r.field)
			}
			said[m.name] = append(said[m.name], r.field)
		}
	}
	for _, d := range reachable() {
		name := string(d.Name())
		rows := said[name]
		delete(said, name)
		all := slices.Equal(rows, []string{"*"})
		for i := range d.Fields().Len() {
			field := string(d.Fields().Get(i).Name())
			if n := slices.Index(rows, field); n >= 0 {
				rows = slices.Delete(rows, n, n+1)
			} else if !all {
				t.Errorf("%s.%s has no row", name, field)
			}
		}
		for _, field := range rows {
			if field != "*" || !all {
				t.Errorf("%s has no field %s", name, field)
			}
		}
	}
	for name := range said {
		t.Errorf("no call has a message %s", name)
	}
}

// TestEveryRowNamesItsTests looks for the tests: what has an effect, is
// refused or is answered must be shown by at least one.
func TestEveryRowNamesItsTests(t *testing.T) {
	there := tests(t)
	for _, m := range messages {
		for _, r := range m.rows {
			if r.tests == "" && r.way != nothing {
				t.Errorf("%s.%s: no test shows it", m.name, r.field)
			}
			for name := range strings.FieldsSeq(r.tests) {
				if !there[name] {
					t.Errorf("%s.%s: there is no test %s", m.name, r.field, name)
				}
			}
		}
	}
}

// tests lists all tests of the tree as PACKAGE.TestX.
func tests(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	err := filepath.WalkDir(filepath.Join("..", ".."), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range f.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && (strings.HasPrefix(f.Name.Name, "Test") || strings.HasPrefix(f.Name.Name, "Fuzz")) {
				found[filepath.Base(filepath.Dir(path))+"."+f.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestPageIsCurrent(t *testing.T) {
	got, err := os.ReadFile(filepath.Join("..", "docs", "coverage.md"))
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != page() {
		t.Error("contrib/docs/coverage.md differs from the rows: go generate ./contrib/coverage")
	}
}
