package ociinstall

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"
)

// WriteJSON writes the report as a JSON object.
func (r *Report) WriteJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(r)
}

// WriteTable writes the report for a terminal: the program, a line for each runtime, and one for each problem.
func (r *Report) WriteTable(w io.Writer) error {
	var text strings.Builder
	switch {
	case !r.Installed():
		text.WriteString("not installed; to install it: " + installFix + "\n")
	case r.Program != nil:
		fmt.Fprintf(&text, "%s, version %s\n", r.Program.Path, r.Program.Version)
	}
	if len(r.Runtimes) > 0 {
		table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
		fmt.Fprintf(table, "RUNTIME\tCALLS\t%s\tDOCKER\tCONTAINERS\tPODS\n", strings.ToUpper(filepath.Base(r.ConfigFile)))
		for _, known := range r.Runtimes {
			registered := yesNo(known.Registered)
			if r.info == nil {
				registered = "unknown"
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%s\n", known.Name, cmp.Or(known.Below, "-"), yesNo(known.Configured), registered, len(known.Users), cmp.Or(describe(known.Users), "-"))
		}
		_ = table.Flush() // a Builder returns no errors
	}
	for _, p := range r.Problems {
		state := "warn"
		if p.Severe {
			state = "fail"
		}
		fmt.Fprintf(&text, "%s  %s -> %s\n", state, strings.ReplaceAll(p.Message, "\n", " "), p.Fix)
	}
	_, err := io.WriteString(w, text.String())
	return err
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
