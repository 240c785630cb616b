package systemd

import (
	"strings"
	"unicode"
)

// SplitCommand splits the value of an ExecStart= as systemd does, without its C-style escapes.
func SplitCommand(value string) (words []string) {
	var word []rune
	var quote rune
	inWord := false
	for _, r := range strings.ReplaceAll(value, "\\\n", " ") + " " {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '"' || r == '\''):
			quote, inWord = r, true
		case quote == 0 && unicode.IsSpace(r):
			if inWord {
				words = append(words, string(word))
			}
			word, inWord = nil, false
		default:
			word, inWord = append(word, r), true
		}
	}
	return words
}
