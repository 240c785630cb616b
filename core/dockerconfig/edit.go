package dockerconfig

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
)

// An object is where the parts of a JSON object are in a text.
type object struct {
	open, end int // of the braces: the first, and behind the last
	members   []member
}

// A member is where a key and its value are in a text.
type member struct {
	key                            string
	keyStart, valueStart, valueEnd int
}

// scan returns the object that begins at the first brace from at on, in a text that check accepts.
func scan(text []byte, at int) object {
	decoder := json.NewDecoder(bytes.NewReader(text[at:]))
	offset := func() int { return at + int(decoder.InputOffset()) }
	_, _ = decoder.Token()
	o := object{open: offset() - 1}
	last := offset()
	for decoder.More() {
		token, _ := decoder.Token()
		var m member
		m.key, _ = token.(string)
		m.keyStart = last + bytes.IndexByte(text[last:], '"') // before it are a comma and space
		var value json.RawMessage
		if decoder.Decode(&value) != nil {
			break // text is valid
		}
		last = offset()
		m.valueStart, m.valueEnd = last-len(value), last
		o.members = append(o.members, m)
	}
	_, _ = decoder.Token()
	o.end = offset()
	return o
}

// find returns the index of the member with that key, -1 if there is none.
func (o object) find(key string) int {
	return slices.IndexFunc(o.members, func(m member) bool { return m.key == key })
}

// edit returns text with that entry for a runtime, or without the runtime if entry is nil.
func edit(text []byte, name string, entry *runtimeEntry) []byte {
	top := scan(text, 0)
	style := styleOf(text, top)
	at := top.find(runtimesKey)
	if at < 0 {
		if entry == nil {
			return text
		}
		text = addMember(text, top, style, runtimesKey, []byte("{}"))
		top = scan(text, 0)
		at = top.find(runtimesKey)
	}
	runtimes := scan(text, top.members[at].valueStart)
	inner := style.nested()
	if len(runtimes.members) > 0 {
		inner = styleOf(text, runtimes)
		inner.unit = style.unit
	}
	i := runtimes.find(name)
	switch {
	case entry == nil && i >= 0:
		return removeMember(text, runtimes, i)
	case entry == nil:
		return text
	case i >= 0:
		m := runtimes.members[i]
		return splice(text, m.valueStart, m.valueEnd, inner.format(entry))
	default:
		return addMember(text, runtimes, inner, name, inner.format(entry))
	}
}

// A style is how the members of an object are written.
type style struct {
	newline string // before each member, "" if all are on one line
	indent  string // of each member, if it is on its own line
	closing string // indent of the brace
	unit    string // by which each level is indented more
}

// styleOf returns the style of o.
func styleOf(text []byte, o object) style {
	s := style{newline: "\n", indent: "  ", unit: "  "}
	if len(o.members) == 0 {
		return s
	}
	space := string(text[o.open+1 : o.members[0].keyStart])
	at := strings.LastIndexByte(space, '\n')
	if at < 0 {
		return style{}
	}
	if strings.Contains(space, "\r\n") {
		s.newline = "\r\n"
	}
	s.indent = space[at+1:]
	if s.indent != "" {
		s.unit = s.indent
	}
	closing := string(text[o.members[len(o.members)-1].valueEnd : o.end-1])
	s.closing = closing[strings.LastIndexByte(closing, '\n')+1:]
	return s
}

// nested returns the style of an object that is a value of a member in style s.
func (s style) nested() style {
	return style{newline: s.newline, indent: s.indent + s.unit, closing: s.indent, unit: s.unit}
}

// format returns a value of a member in style s.
func (s style) format(value any) []byte {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if s.newline != "" {
		encoder.SetIndent(s.indent, s.unit)
	}
	_ = encoder.Encode(value) // strings can always be encoded
	return bytes.ReplaceAll(bytes.TrimSpace(out.Bytes()), []byte("\n"), []byte(s.newline))
}

// addMember returns text with a member behind all others of o.
func addMember(text []byte, o object, s style, key string, value []byte) []byte {
	name := bytes.TrimSpace(s.format(key))
	added := slices.Concat([]byte(s.newline+s.indent), name, []byte(": "), value)
	if len(o.members) == 0 {
		return splice(text, o.open+1, o.end-1, slices.Concat(added, []byte(s.newline+s.closing)))
	}
	last := o.members[len(o.members)-1].valueEnd
	separator := ","
	if s.newline == "" {
		separator = ", "
	}
	return splice(text, last, last, slices.Concat([]byte(separator), added))
}

// removeMember returns text without the member of o with that index, and without the space that belonged to it.
func removeMember(text []byte, o object, i int) []byte {
	switch m := o.members[i]; {
	case len(o.members) == 1:
		return splice(text, o.open, o.end, []byte("{}"))
	case i == 0:
		return splice(text, m.keyStart, o.members[1].keyStart, nil)
	default:
		return splice(text, o.members[i-1].valueEnd, m.valueEnd, nil)
	}
}

// splice returns text with the bytes from begin to end replaced.
func splice(text []byte, begin, end int, by []byte) []byte {
	return slices.Concat(text[:begin], by, text[end:])
}
