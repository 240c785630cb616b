package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Marks of the place of a report in a page, with its mode.
const (
	beginMark = "<!-- results of %s, written by contrib/bench --page -->"
	endMark   = "<!-- end of the results of %s -->"
)

// writePage puts the report into its place in a Markdown page, and its chart beside the page.
func (r *Report) writePage(page string) error {
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	mode := r.mode()
	begin, end := fmt.Sprintf(beginMark, mode), fmt.Sprintf(endMark, mode)
	before, rest, found := strings.Cut(string(text), begin)
	_, after, ends := strings.Cut(rest, end)
	if !found || !ends {
		return fmt.Errorf("--page %s: has no place for the results of %s: add the lines %q and %q", page, mode, begin, end)
	}
	chart := strings.TrimSuffix(filepath.Base(page), ".md") + "-" + mode + ".svg"
	f, err := os.Create(filepath.Join(filepath.Dir(page), chart))
	if err != nil {
		return err
	}
	if err := errors.Join(r.draw(f), f.Close()); err != nil {
		return err
	}
	return os.WriteFile(page, []byte(before+begin+"\n\n"+r.markdown()+"\n!["+mode+"]("+chart+")\n\n"+end+after), 0o644)
}

// mode returns what kind of run the report is of.
func (r *Report) mode() string {
	if r.Mode == "" {
		return "bench" // a file of an earlier version
	}
	return r.Mode
}

// markdown returns the table with what it was measured on.
func (r *Report) markdown() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s; %s; %s.\n", r.Date, r.Machine, r.Engine)
	for _, side := range r.columns() {
		fmt.Fprintf(&text, "%s is %s. ", side, r.Sides[side])
	}
	fmt.Fprintf(&text, "\nSettings: %s.\n\n| | unit |", r.Settings)
	for _, side := range r.columns() {
		fmt.Fprintf(&text, " %s |", side)
	}
	for _, side := range r.others() {
		fmt.Fprintf(&text, " berth/%s |", side)
	}
	text.WriteString("\n" + strings.Repeat("|---", 2+len(r.columns())+len(r.others())) + "|\n")
	for _, row := range r.Rows {
		if len(row.Samples) > 0 {
			fmt.Fprintf(&text, "| %s | %s | %s |\n", r.title(row), row.Unit, strings.Join(r.cells(row), " | "))
		}
	}
	return text.String()
}
