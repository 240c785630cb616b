package cnitemplate

import (
	"bytes"
	"strings"
	"testing"
	"text/template"
)

var supported = []string{
	bridgeText, containerdTemplate, "text", "{{/* comment */}}x", "{{.PodCIDR}} {{$.PodCIDR}}", "{{range .Routes}}<{{.}}>{{end}}", "{{- 1 -}} x",
	"{{range $i, $r := .PodCIDRRanges}}{{if $i}}, {{end}}{{$i}}={{$r}}{{end}}", "{{range $r := .Routes}}{{$r}}{{$.PodCIDR}}{{else}}no{{end}}",
	"{{range .Routes}}a{{break}}b{{end}}", "{{range .PodCIDRRanges}}{{range $.Routes}}x{{else}}{{break}}{{end}}y{{end}}", "{{range .PodCIDRRanges}}{{range $.Routes}}x{{else}}{{continue}}{{end}}y{{end}}", `{{range .Routes}}{{if eq . "::/0"}}{{continue}}{{end}}{{.}}{{end}}`, "{{range .Routes}}{{range $.Routes}}{{break}}{{end}}x{{end}}",
	"{{$x := 1}}{{range .PodCIDRRanges}}{{$x = .}}{{end}}{{$x}}", "{{$x := 1}}{{if true}}{{$x := 2}}{{$x}}{{end}}{{$x}}",
	"{{with .PodCIDR}}{{.}}{{end}}", `{{with ""}}a{{else with .Routes}}{{len .}}{{else}}c{{end}}`, "{{with $x := 5}}{{$x}}{{.}}{{end}}",
	"{{if .Routes}}a{{else if true}}b{{end}}", "{{if false}}a{{else if 0}}b{{else}}c{{end}}", "{{if .}}a{{end}}", "{{.}}{{true}}",
	"{{len .Routes}}{{len .PodCIDR}}", "{{.Routes | len}}", `{{.PodCIDR | printf "%q-%s" "x"}}`, "{{index .Routes 0}}{{(index .Routes 1)}}",
	"{{and 1 0}}{{or 0 .PodCIDR}}{{0 | or 0}}{{not .Routes}}", `{{eq 1 1}}{{ne 1 2}}{{eq "a" .PodCIDR}}{{eq true false}}`, "{{$x := .}}{{$x.PodCIDR}}",
}

var notSupported = []string{
	"", "{{", "{{end}}", "{{break}}", "{{.Nothing}}", "{{.PodCIDR.X}}", "{{.PodCIDR 1}}", "{{1 2}}", "{{nil}}", "{{1.5}}", "{{0x10}}", "{{'a'}}", "{{range 3}}{{end}}", "{{range .PodCIDR}}{{end}}",
	"{{$x := 1}}{{range $x = .Routes}}{{end}}", "{{$x = 1}}", `{{define "t"}}{{end}}x`, `{{template "none"}}`, `{{block "b" .}}{{end}}x`, "{{html .PodCIDR}}", "{{call 1}}", "{{(.).PodCIDR}}",
	"{{index .Routes 9}}", "{{index .Routes -1}}", "{{index .PodCIDR 0}}", "{{index .Routes}}", "{{len 1}}", "{{len}}", "{{and}}", "{{not 1 2}}", `{{eq 1 "a"}}`, "{{eq .Routes .Routes}}", "{{eq 1}}",
	"{{printf 3}}", "{{printf}}", "{{not len}}", "{{print 1}}", "{{1 | .PodCIDR}}",
}

// inputs are values with and without elements in their lists.
var inputs = []values{
	{PodCIDR: "10.1.0.0/24", PodCIDRRanges: []string{"10.1.0.0/24", "fd00::/64"}, Routes: []string{"0.0.0.0/0", "::/0"}},
	{PodCIDR: "10.1.0.0/24", PodCIDRRanges: []string{"10.1.0.0/24"}},
}

// outputs returns what a template makes of v, and what text/template makes of it.
func outputs(text string, v values) (got []byte, err error, want []byte, wantErr error) {
	p, err := parseProgram("name", text)
	if err == nil {
		got, err = p.execute(v)
	}
	var out bytes.Buffer
	parsed, wantErr := template.New("name").Parse(text)
	if wantErr == nil {
		wantErr = parsed.Execute(&out, v)
	}
	return got, err, out.Bytes(), wantErr
}

func TestTemplatesMakeWhatTextTemplateMakes(t *testing.T) {
	for i, v := range inputs {
		for _, text := range supported {
			got, err, want, wantErr := outputs(text, v)
			if (err == nil) != (wantErr == nil) || i == 0 && err != nil || !bytes.Equal(got, want) && err == nil {
				t.Errorf("%s:\n%s, %v; text/template:\n%s, %v", text, got, err, want, wantErr)
			}
		}
	}
	for _, text := range notSupported {
		if got, err, _, _ := outputs(text, inputs[0]); err == nil {
			t.Errorf("%s: is not supported, and makes %s", text, got)
		}
	}
}

// FuzzTemplates: what is accepted makes what text/template makes.
func FuzzTemplates(f *testing.F) {
	for _, text := range append(supported, notSupported...) {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Count(text, "range") > 8 {
			t.Skip("ranges in ranges take too long")
		}
		for _, v := range inputs {
			if got, err, want, wantErr := outputs(text, v); err == nil && (wantErr != nil || !bytes.Equal(got, want)) {
				t.Errorf("%s:\n%s; text/template:\n%s, %v", text, got, want, wantErr)
			}
		}
	})
}
