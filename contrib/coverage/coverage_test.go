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

// TestEveryFieldHasARow compares the rows with the CRI.
func TestEveryFieldHasARow(t *testing.T) {
	described := map[string][]string{}
	for _, m := range messages {
		if _, twice := described[m.name]; twice {
			t.Errorf("%s has two entries", m.name)
		}
		described[m.name] = []string{}
		for _, r := range m.rows {
			if slices.Contains(described[m.name], r.field) {
				t.Errorf("%s.%s has two rows", m.name, r.field)
			}
			if r.by == "" || r.description == "" {
				t.Errorf("%s.%s has no mechanism or no description", m.name, r.field)
			}
			described[m.name] = append(described[m.name], r.field)
		}
	}
	for _, d := range reachable() {
		name := string(d.Name())
		rows := described[name]
		delete(described, name)
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
	for name := range described {
		t.Errorf("no CRI call uses the message %s", name)
	}
}

// TestEveryRowNamesItsTests requires that the named tests exist, and at least
// one test for each row except those without an effect.
func TestEveryRowNamesItsTests(t *testing.T) {
	existing := tests(t)
	for _, m := range messages {
		for _, r := range m.rows {
			if r.tests == "" && r.by != nothing {
				t.Errorf("%s.%s names no test", m.name, r.field)
			}
			for name := range strings.FieldsSeq(r.tests) {
				if !existing[name] {
					t.Errorf("%s.%s: test %s does not exist", m.name, r.field, name)
				}
			}
		}
	}
}

// tests returns all tests of the repository as PACKAGE.TestX.
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

// A feature that berth has is shown by a test.
func TestEveryFeatureOfBerthNamesItsTests(t *testing.T) {
	existing := tests(t)
	for _, area := range featureAreas {
		for _, f := range area.features {
			if f.berth == yes && f.tests == "" {
				t.Errorf("%s: %s names no test", area.title, f.name)
			}
			if f.criDockerd == "" || f.containerd == "" || f.crio == "" {
				t.Errorf("%s: %s has an empty column", area.title, f.name)
			}
			for name := range strings.FieldsSeq(f.tests) {
				if !existing[name] {
					t.Errorf("%s: %s: test %s does not exist", area.title, f.name, name)
				}
			}
		}
	}
}

func TestPagesAreCurrent(t *testing.T) {
	for name, text := range map[string]string{"coverage.md": page(), "features.md": featuresPage()} {
		got, err := os.ReadFile(filepath.Join("..", "docs", name))
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != text {
			t.Errorf("contrib/docs/%s differs from the rows: go generate ./contrib/coverage", name)
		}
	}
}
