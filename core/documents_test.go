package core

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// documents returns the text of every document of the module but the changelog, by path.
func documents(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".md") || d.Name() == "CHANGELOG.md" {
			return err
		}
		text, err := os.ReadFile(path)
		texts[path] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return texts
}

// messageTables are the tables that explain messages of berthd, by document.
var messageTables = map[string]string{
	filepath.Join("..", "contrib", "docs", "operating.md"): "| what you see |",
	filepath.Join("..", "README.md"):                       "| What you see |",
}

// TestDocumentedMessagesExist: a message that a document explains is in the code. Operators search for it.
func TestDocumentedMessagesExist(t *testing.T) {
	source := &strings.Builder{}
	for path := range parseModule(t) {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		source.Write(text)
	}
	code := source.String()
	for path, heading := range messageTables {
		_, table, ok := strings.Cut(documents(t)[path], heading)
		if !ok {
			t.Errorf("%s has no table %q", path, heading)
		}
		table, _, _ = strings.Cut(table, "\n\n")
		checkMessages(t, path, table, code)
	}
}

func checkMessages(t *testing.T, path, section, code string) {
	t.Helper()
	for row := range strings.SplitSeq(section, "\n") {
		cells := strings.Split(row, "|")
		if len(cells) < 3 || strings.HasPrefix(strings.TrimSpace(cells[1]), "kube") || strings.HasPrefix(strings.TrimSpace(cells[1]), "pods in") {
			continue // a message of another program
		}
		for _, message := range quoted(cells[1]) {
			if strings.Contains(message, "unauthorized") || strings.Contains(message, "pull access denied") || message == "CreateContainerError" {
				continue
			}
			for part := range strings.SplitSeq(message, "...") {
				if part = strings.TrimSpace(part); !strings.Contains(code, part) && !inFormat(code, part) {
					t.Errorf("%s explains the message %q, which berthd does not have", path, message)
				}
			}
		}
	}
}

// inFormat reports whether a message with numbers is in code with verbs of fmt in their places.
func inFormat(code, message string) bool {
	words := strings.Fields(message)
	for i, word := range words {
		if strings.Trim(word, "0123456789") == "" {
			words[i] = "%d"
		}
	}
	return strings.Contains(code, strings.Join(words, " "))
}

// TestArchitectureNamesPlacesThatExist: what the table of contrib/docs/architecture.md sends a newcomer to is there, and so is the word to search it for.
func TestArchitectureNamesPlacesThatExist(t *testing.T) {
	path := filepath.Join("..", "contrib", "docs", "architecture.md")
	text := documents(t)[path]
	_, table, _ := strings.Cut(text, "| question | place | word |")
	table, _, _ = strings.Cut(table, "\n\n")
	rows := 0
	for row := range strings.Lines(table) {
		cells := strings.Split(row, "|")
		if len(cells) < 4 || !strings.Contains(cells[2], "`") {
			continue
		}
		rows++
		word := ""
		if words := quoted(cells[3]); len(words) == 1 {
			word = words[0]
		}
		for _, place := range quoted(cells[2]) {
			if !strings.Contains(sourceOf(t, filepath.Join("..", place)), word) {
				t.Errorf("%s: %s does not contain %q", path, place, word)
			}
		}
	}
	if rows < 10 {
		t.Errorf("%s has %d rows with a place, want its table", path, rows)
	}
	for _, name := range quoted(text) { // files that the text names
		if strings.HasSuffix(name, ".go") {
			sourceOf(t, filepath.Join("..", name))
		}
	}
}

// quoted returns what stands between backquotes.
func quoted(text string) (parts []string) {
	for i, part := range strings.Split(text, "`") {
		if i%2 == 1 {
			parts = append(parts, part)
		}
	}
	return parts
}

// sourceOf returns the text of a file, or of the product's Go files of a directory.
func sourceOf(t *testing.T, path string) string {
	t.Helper()
	files := []string{path}
	if filepath.Ext(path) == "" {
		var err error
		if files, err = filepath.Glob(filepath.Join(path, "*.go")); err != nil || len(files) == 0 {
			t.Errorf("%s: no Go files, %v", path, err)
		}
		files = slices.DeleteFunc(files, func(file string) bool { return strings.HasSuffix(file, "_test.go") })
	}
	var all strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
		}
		all.Write(text)
	}
	return all.String()
}
