// Package dockerconfig reads and edits daemon.json, the configuration file of dockerd, and reads the flags that
// dockerd was started with.
//
// Parse returns a Document, whose runtimes can be changed: everything else in the text stays byte for byte where it
// is. Read and File.Replace do the same for the file on the disk, which is replaced as a whole. A file that dockerd
// would not read, or that others than root can change, is refused and not touched.
package dockerconfig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	// maxSize is the largest file that is read, in bytes. Files of operators have a few kilobytes.
	maxSize = 1 << 20
	// maxDepth is how deep objects and arrays may be nested; daemon.json of Docker 29 needs four.
	maxDepth = 32

	runtimesKey       = "runtimes"
	defaultRuntimeKey = "default-runtime"
)

// A Runtime is one of the runtimes in daemon.json.
type Runtime struct {
	Name string
	Path string   // of a program that is called as runc is; empty if Type is set
	Args []string // before the arguments of the call
	Type string   // of a containerd shim
}

// Equal reports whether r and other are the same.
func (r Runtime) Equal(other Runtime) bool {
	return r.Name == other.Name && r.Path == other.Path && r.Type == other.Type && slices.Equal(r.Args, other.Args)
}

// A runtimeEntry is a Runtime as daemon.json has it, below its name.
type runtimeEntry struct {
	Path string   `json:"path,omitempty"`
	Args []string `json:"runtimeArgs,omitempty"`
	Type string   `json:"runtimeType,omitempty"`
}

// A Document is a daemon.json that dockerd can read.
type Document struct {
	text     []byte
	runtimes []Runtime
	standard string // default-runtime
}

// Parse parses the text of a daemon.json, which is empty for a file without text. The error is one line that says
// where the text is not what dockerd reads, or has more than one meaning.
func Parse(text []byte) (*Document, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		text = []byte("{}\n")
	}
	if err := check(text); err != nil {
		return nil, err
	}
	d := &Document{text: text}
	top := scan(text, 0)
	for _, m := range top.members {
		raw := text[m.valueStart:m.valueEnd]
		switch {
		case m.key == runtimesKey:
			if err := d.parseRuntimes(raw); err != nil {
				return nil, err
			}
		case m.key == defaultRuntimeKey:
			if raw[0] != '"' {
				return nil, fmt.Errorf("%q must be a string", defaultRuntimeKey)
			}
			if err := json.Unmarshal(raw, &d.standard); err != nil {
				return nil, err
			}
		case strings.EqualFold(m.key, runtimesKey), strings.EqualFold(m.key, defaultRuntimeKey):
			return nil, fmt.Errorf("unknown key %q: dockerd knows %q", m.key, strings.ToLower(m.key))
		}
	}
	return d, nil
}

// parseRuntimes parses the value of runtimesKey.
func (d *Document) parseRuntimes(raw []byte) error {
	if raw[0] != '{' {
		return fmt.Errorf("%q must be an object", runtimesKey)
	}
	for _, m := range scan(raw, 0).members {
		value := raw[m.valueStart:m.valueEnd]
		var entry runtimeEntry
		err := json.Unmarshal(value, &entry)
		var typeErr *json.UnmarshalTypeError
		switch {
		case value[0] != '{':
			return fmt.Errorf("%q: the runtime %q must be an object", runtimesKey, m.key)
		case errors.As(err, &typeErr):
			return fmt.Errorf("%q: %s of the runtime %q must not be of the type %s", runtimesKey, typeErr.Field, m.key, typeErr.Value)
		case err != nil:
			return fmt.Errorf("%q: the runtime %q: %w", runtimesKey, m.key, err)
		}
		d.runtimes = append(d.runtimes, Runtime{Name: m.key, Path: entry.Path, Args: entry.Args, Type: entry.Type})
	}
	return nil
}

// Text returns the text of the file.
func (d *Document) Text() []byte { return d.text }

// Runtimes returns the runtimes in the order of the file.
func (d *Document) Runtimes() []Runtime { return slices.Clone(d.runtimes) }

// Runtime returns the runtime of that name.
func (d *Document) Runtime(name string) (Runtime, bool) {
	i := slices.IndexFunc(d.runtimes, func(r Runtime) bool { return r.Name == name })
	if i < 0 {
		return Runtime{}, false
	}
	return d.runtimes[i], true
}

// DefaultRuntime returns the default-runtime, "" if the file does not set it.
func (d *Document) DefaultRuntime() string { return d.standard }

// With returns d without the runtimes in remove, and then with those in set: in the place of one of the same name, or
// behind all others.
func (d *Document) With(set []Runtime, remove []string) (*Document, error) {
	text := d.text
	for _, name := range remove {
		text = edit(text, name, nil)
	}
	for _, r := range set {
		text = edit(text, r.Name, &runtimeEntry{Path: r.Path, Args: r.Args, Type: r.Type})
	}
	return Parse(text)
}

// WithRuntimesKey returns d with the key of the runtimes, also if there are none. To dockerd this is not the same: at a
// reload it keeps the runtimes that it has if the key is missing (daemon/reload_unix.go of moby, 20.10 to 29).
func (d *Document) WithRuntimesKey() (*Document, error) {
	top := scan(d.text, 0)
	if top.find(runtimesKey) >= 0 {
		return d, nil
	}
	return Parse(addMember(d.text, top, styleOf(d.text, top), runtimesKey, []byte("{}")))
}

// WithoutEmptyRuntimes returns d without the key of the runtimes if there are none.
func (d *Document) WithoutEmptyRuntimes() (*Document, error) {
	top := scan(d.text, 0)
	i := top.find(runtimesKey)
	if i < 0 || len(d.runtimes) > 0 {
		return d, nil
	}
	return Parse(removeMember(d.text, top, i))
}

// check returns an error unless text is one JSON object in which no key occurs twice, at any depth.
func check(text []byte) error {
	switch {
	case len(text) > maxSize:
		return fmt.Errorf("it has %d bytes, at most %d are supported", len(text), maxSize)
	case bytes.HasPrefix(text, []byte("\xef\xbb\xbf")), bytes.HasPrefix(text, []byte("\xff\xfe")), bytes.HasPrefix(text, []byte("\xfe\xff")):
		return errors.New("it begins with a byte order mark: store it as UTF-8 without one")
	case !utf8.Valid(text):
		return errors.New("it is not UTF-8")
	}
	var value any
	err := json.Unmarshal(text, &value)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		at := max(int(syntax.Offset)-1, 0)
		if at < len(text) && (text[at] == '/' || text[at] == '#') {
			return fmt.Errorf("%s: comments are not allowed in JSON", position(text, at))
		}
		return fmt.Errorf("%s: %w", position(text, at), err)
	}
	if err != nil {
		return err
	}
	if _, ok := value.(map[string]any); !ok {
		return errors.New("it must be a JSON object")
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	return checkKeys(decoder, text, 0)
}

// checkKeys reads the next value and returns an error if an object in it has a key twice.
func checkKeys(decoder *json.Decoder, text []byte, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("it is nested deeper than %d", maxDepth)
	}
	token, err := decoder.Token()
	if err != nil {
		return err
	}
	delim, nested := token.(json.Delim)
	if !nested {
		return nil
	}
	seen := map[string]bool{}
	for decoder.More() {
		if delim == '{' {
			token, err := decoder.Token()
			if err != nil {
				return err
			}
			key, _ := token.(string)
			if seen[key] {
				return fmt.Errorf("%s: the key %q is there twice", position(text, int(decoder.InputOffset())-1), key)
			}
			seen[key] = true
		}
		if err := checkKeys(decoder, text, depth+1); err != nil {
			return err
		}
	}
	_, err = decoder.Token() // the end
	return err
}

// position returns where the byte at is, for an operator.
func position(text []byte, at int) string {
	before := text[:min(at, len(text))]
	return fmt.Sprintf("line %d, column %d", bytes.Count(before, []byte("\n"))+1, len(before)-bytes.LastIndexByte(before, '\n'))
}
