package cniconf

import "testing"

// FuzzConfig parses what may be in a file of the configuration directory.
func FuzzConfig(f *testing.F) {
	for _, text := range []string{
		`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge","capabilities":{"portMappings":true}}]}`,
		`{"cniVersion":"1.0.0","name":"n","type":"bridge"}`,
		`{"cniVersion":"1.1.0","name":"n","plugins":[{}],"disableCheck":"x"}`,
		`{"cniVersion":"1.0.0","cniVersions":["0.4.0",7],"name":"../x","plugins":[{"type":"../../bin/sh"}]}`,
		`{"name":"n","plugins":null}`, `[]`, `null`, ``,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, read := range []func() ([]byte, error){
			func() ([]byte, error) { return text, nil },
			func() ([]byte, error) { return listOfOne(text) },
		} {
			data, err := read()
			if err != nil {
				continue
			}
			list, err := Parse(data)
			if err != nil {
				continue
			}
			if list.Name == "" {
				t.Errorf("a network without a name from %q", text)
			}
			if _, err := inline(list, list.Plugins); err != nil && len(list.Plugins) > 0 {
				t.Logf("inline: %v", err)
			}
		}
	})
}
