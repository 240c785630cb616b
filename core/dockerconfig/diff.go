package dockerconfig

import (
	"fmt"
	"strings"
)

// diffContext is how many lines around a change a diff shows.
const diffContext = 3

// Diff returns what is changed from one text of the file name to another, as diff -u prints it with all changes in one hunk;
// "" if nothing is.
func Diff(name string, from, to []byte) string {
	before, after := lines(from), lines(to)
	head := 0
	for head < len(before) && head < len(after) && before[head] == after[head] {
		head++
	}
	if head == len(before) && head == len(after) {
		return ""
	}
	tail := 0
	for tail < len(before)-head && tail < len(after)-head && before[len(before)-1-tail] == after[len(after)-1-tail] {
		tail++
	}
	first, last := max(head-diffContext, 0), max(tail-diffContext, 0)
	var out strings.Builder
	write := func(mark string, list []string) {
		for _, line := range list {
			text, terminated := strings.CutSuffix(line, "\n")
			out.WriteString(mark + text + "\n")
			if !terminated {
				out.WriteString("\\ No newline at end of file\n")
			}
		}
	}
	fmt.Fprintf(&out, "--- %s\n+++ %s\n@@ -%s +%s @@\n", name, name, hunk(first, len(before)-last-first), hunk(first, len(after)-last-first))
	write(" ", before[first:head])
	write("-", before[head:len(before)-tail])
	write("+", after[head:len(after)-tail])
	write(" ", before[len(before)-tail:len(before)-last])
	return out.String()
}

// hunk returns a range of lines as diff -u prints it.
func hunk(first, count int) string {
	if count == 0 {
		return fmt.Sprintf("%d,0", first)
	}
	return fmt.Sprintf("%d,%d", first+1, count)
}

// lines splits text behind each line break.
func lines(text []byte) (list []string) {
	for line := range strings.Lines(string(text)) {
		list = append(list, line)
	}
	return list
}
