package core

import (
	"io/fs"
	"os"
	"path/filepath"
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
		for i, quoted := range strings.Split(cells[1], "`") {
			if i%2 == 0 || strings.Contains(quoted, "unauthorized") || strings.Contains(quoted, "pull access denied") || quoted == "CreateContainerError" {
				continue
			}
			for part := range strings.SplitSeq(quoted, "...") {
				if part = strings.TrimSpace(part); !strings.Contains(code, part) && !inFormat(code, part) {
					t.Errorf("%s explains the message %q, which berthd does not have", path, quoted)
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
