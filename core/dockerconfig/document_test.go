package dockerconfig

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var berth = Runtime{Name: "berth", Path: "/opt/berth-oci", Args: []string{"--a=1", "--b"}}

func mustParse(t *testing.T, text string) *Document {
	t.Helper()
	d, err := Parse([]byte(text))
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return d
}

func TestWithKeepsEverythingElse(t *testing.T) {
	for name, c := range map[string]struct{ before, after string }{
		"no file": {"", `{
  "runtimes": {
    "berth": {
      "path": "/opt/berth-oci",
      "runtimeArgs": [
        "--a=1",
        "--b"
      ]
    }
  }
}
`},
		"one line": {`{"z": 1.50, "a": [true]}`, `{"z": 1.50, "a": [true], "runtimes": {"berth": {"path":"/opt/berth-oci","runtimeArgs":["--a=1","--b"]}}}`},
		"tabs": {"{\n\t\"log-driver\": \"local\"\n}", "{\n\t\"log-driver\": \"local\",\n\t\"runtimes\": {\n\t\t\"berth\": {\n\t\t\t\"path\": \"/opt/berth-oci\",\n" +
			"\t\t\t\"runtimeArgs\": [\n\t\t\t\t\"--a=1\",\n\t\t\t\t\"--b\"\n\t\t\t]\n\t\t}\n\t}\n}"},
		"line breaks of Windows": {"{\r\n \"debug\": true\r\n}\r\n", "{\r\n \"debug\": true,\r\n \"runtimes\": {\r\n  \"berth\": {\r\n   \"path\": \"/opt/berth-oci\",\r\n" +
			"   \"runtimeArgs\": [\r\n    \"--a=1\",\r\n    \"--b\"\r\n   ]\r\n  }\r\n }\r\n}\r\n"},
		"other runtimes": {"{\n    \"runtimes\": {\n        \"crun\": {\"path\": \"crun\"}\n    },\n    \"debug\" : true\n}\n",
			"{\n    \"runtimes\": {\n        \"crun\": {\"path\": \"crun\"},\n        \"berth\": {\n            \"path\": \"/opt/berth-oci\",\n            \"runtimeArgs\": [\n" +
				"                \"--a=1\",\n                \"--b\"\n            ]\n        }\n    },\n    \"debug\" : true\n}\n"},
		"replaced": {`{"runtimes": {"berth": {"path": "/old", "runtimeArgs": []}, "x": {"path": "y"}}}`,
			`{"runtimes": {"berth": {"path":"/opt/berth-oci","runtimeArgs":["--a=1","--b"]}, "x": {"path": "y"}}}`},
		"escaped keys": {`{"runt\u0069mes": {"bert\u0068": {"path": "/old"}}}`, `{"runt\u0069mes": {"bert\u0068": {"path":"/opt/berth-oci","runtimeArgs":["--a=1","--b"]}}}`},
	} {
		d, err := mustParse(t, c.before).With([]Runtime{berth}, nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.after, string(d.Text())); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", name, diff)
		}
		if again, err := d.With([]Runtime{berth}, nil); err != nil || string(again.Text()) != string(d.Text()) {
			t.Errorf("%s: a second time it is %q, %v", name, again.Text(), err)
		}
		if got, ok := d.Runtime("berth"); !ok || !got.Equal(berth) {
			t.Errorf("%s: it has %+v", name, got)
		}
	}
}

func TestRemovedRuntimesLeaveTheFileAsBefore(t *testing.T) {
	for _, before := range []string{
		"{\n  \"debug\": true\n}\n", `{"a": 1}`, "{\n\t\"runtimes\": {\n\t\t\"x\": {\"path\": \"x\"}\n\t}\n}", "{\n  \"a\": {},\n\n  \"b\": []  }",
	} {
		d := mustParse(t, before)
		added, err := d.With([]Runtime{berth, {Name: "berth-x", Path: "/opt/berth-oci"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		removed, err := added.With(nil, []string{"berth-x", "berth", "none"})
		if err != nil {
			t.Fatal(err)
		}
		if removed, err = removed.WithoutEmptyRuntimes(); err != nil || string(removed.Text()) != before {
			t.Errorf("got %q, %v, want %q", removed.Text(), err, before)
		}
	}
	first, err := mustParse(t, `{"runtimes": {"berth": {"path": "x"}, "y": {"path": "y"}}}`).With(nil, []string{"berth"})
	if err != nil || string(first.Text()) != `{"runtimes": {"y": {"path": "y"}}}` {
		t.Errorf("without the first: %s, %v", first.Text(), err)
	}
	// Docker forgets runtimes only if it reads a file that has the key.
	empty, err := mustParse(t, "{\n  \"debug\": true\n}\n").WithRuntimesKey()
	if err != nil || string(empty.Text()) != "{\n  \"debug\": true,\n  \"runtimes\": {}\n}\n" {
		t.Errorf("with the key: %s, %v", empty.Text(), err)
	}
}

func TestParseRefusesWhatDockerdDoesNotRead(t *testing.T) {
	for text, want := range map[string]string{
		"{\n  // mine\n}":                  "line 2, column 3: comments are not allowed in JSON",
		"{} # mine":                        "line 1, column 4: comments are not allowed in JSON",
		`{"a": 1} {}`:                      "line 1, column 10: invalid character '{' after top-level value",
		`{"a": 1,}`:                        "invalid character '}'",
		`{"a": 1`:                          "unexpected end of JSON input",
		`[]`:                               "it must be a JSON object",
		`null`:                             "it must be a JSON object",
		"{\"a\": 1,\n \"a\": 2}":           `line 2, column 4: the key "a" is there twice`,
		`{"runtimes": {"x": {}, "x": {}}}`: `the key "x" is there twice`,
		`{"x": [{"y": {"z": 1, "z": 1}}]}`: `the key "z" is there twice`,
		`{"runtimes": []}`:                 `"runtimes" must be an object`,
		`{"runtimes": null}`:               `"runtimes" must be an object`,
		`{"runtimes": {"x": "y"}}`:         `the runtime "x" must be an object`,
		`{"runtimes": {"x": null}}`:        `the runtime "x" must be an object`,
		`{"runtimes": {"x": {"path": 1}}}`: `path of the runtime "x" must not be of the type number`,
		`{"runtimes": {"x": {"runtimeArgs": "y"}}}`: `runtimeArgs of the runtime "x" must not be of the type string`,
		`{"default-runtime": {}}`:                   `"default-runtime" must be a string`,
		`{"Runtimes": {}}`:                          `unknown key "Runtimes": dockerd knows "runtimes"`,
		"\xef\xbb\xbf{}":                            "byte order mark",
		"{\"a\": \"\xff\"}":                         "it is not UTF-8",
		strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40): "nested deeper",
		`{"a": "` + strings.Repeat("x", maxSize) + `"}`:             "at most 1048576 are supported",
	} {
		d, err := Parse([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.40q: got %v, %v, want one line with %q", text, d, err, want)
		}
	}
}

func TestDiffIsThatOfDiffU(t *testing.T) {
	got := Diff("f", []byte("1\n2\n3\n4\n5\n6\n7"), []byte("1\n2\n3\n4\nfive\n5.5\n6\n7"))
	if want := "--- f\n+++ f\n@@ -2,6 +2,7 @@\n 2\n 3\n 4\n-5\n+five\n+5.5\n 6\n 7\n\\ No newline at end of file\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := Diff("f", nil, []byte("{}\n")); got != "--- f\n+++ f\n@@ -0,0 +1,1 @@\n+{}\n" {
		t.Errorf("of a new file: %s", got)
	}
	if got := Diff("f", []byte("a\n"), []byte("a\n")); got != "" {
		t.Errorf("of the same: %s", got)
	}
}

// FuzzEdit: an edit changes nothing but the runtimes that it names, and can be undone.
func FuzzEdit(f *testing.F) {
	for _, seed := range []string{"", "{}", `{"a":1}`, "{\n \"runtimes\": {\"x\": {\"path\": \"x\"}, \"berth\": {}}, \"b\": [1, {\"c\": null}]\n}", "{\"a\": \"\\ud800\",\r\n\t\"runtimes\" : { } }"} {
		f.Add(seed, "berth")
	}
	f.Fuzz(func(t *testing.T, text, name string) {
		d, err := Parse([]byte(text))
		encoded, _ := json.Marshal(name)
		var same string
		if err != nil || json.Unmarshal(encoded, &same) != nil || same != name {
			t.Skip()
		}
		set := Runtime{Name: name, Path: "/p <&>", Args: []string{"a\"b"}}
		after, err := d.With([]Runtime{set}, nil)
		if err != nil {
			t.Fatalf("%q is %q after the edit: %v", text, after, err)
		}
		if got, _ := after.Runtime(name); !got.Equal(set) {
			t.Fatalf("%q is %q after the edit", text, after.Text())
		}
		if want, got := others(d.Text(), name), others(after.Text(), name); !slices.Equal(want, got) {
			t.Fatalf("%q: after the edit other values are %q, want %q", text, got, want)
		}
		removed, err := after.With(nil, []string{name})
		if err != nil {
			t.Fatal(err)
		}
		if want, got := others(d.Text(), name), others(removed.Text(), name); !slices.Equal(want, got) {
			t.Fatalf("%q: after the removal other values are %q, want %q", text, got, want)
		}
		if len(scan(d.Text(), 0).members) == 0 || scan(d.Text(), 0).find(runtimesKey) >= 0 {
			return
		}
		if undone, err := removed.WithoutEmptyRuntimes(); err != nil || string(undone.Text()) != string(d.Text()) {
			t.Fatalf("%q is %q after the removal, %v", d.Text(), undone.Text(), err)
		}
	})
}

// others returns the bytes of all members but the runtime of that name.
func others(text []byte, name string) (list []string) {
	for _, m := range scan(text, 0).members {
		if m.key != runtimesKey {
			list = append(list, string(text[m.keyStart:m.valueEnd]))
			continue
		}
		for _, r := range scan(text, m.valueStart).members {
			if r.key != name {
				list = append(list, string(text[r.keyStart:r.valueEnd]))
			}
		}
	}
	return list
}
