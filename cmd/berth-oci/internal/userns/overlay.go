package userns

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// overlay has the options of an overlay mount.
type overlay struct {
	lowers      []string // the topmost first
	upper, work string
	others      []string // index=off and so on
}

// displayed are options that the kernel shows but does not accept, or that are flags of the mount.
var displayed = []string{"rw", "ro", "seclabel", "nouserxattr"}

// parseOverlay reads the options of an overlay in mountinfo. Relative paths, which Docker uses when all options together
// exceed a page, are below base.
func parseOverlay(options, base string) (*overlay, error) {
	o := &overlay{}
	add := func(path string) {
		if !filepath.IsAbs(path) {
			path = filepath.Join(base, path)
		}
		o.lowers = append(o.lowers, path)
	}
	for _, option := range split(unescapeOctal(options), ',') {
		name, value, _ := strings.Cut(option, "=")
		switch name {
		case "lowerdir":
			for _, path := range split(value, ':') {
				if path == "" {
					return nil, errors.New("overlay with data-only layers cannot have a user namespace")
				}
				add(unescape(path))
			}
		case "lowerdir+": // Linux >= 6.5, one option for each layer
			add(value)
		case "datadir+":
			return nil, errors.New("overlay with data-only layers cannot have a user namespace")
		case "upperdir":
			o.upper = value
		case "workdir":
			o.work = value
		default:
			if !slices.Contains(displayed, option) {
				o.others = append(o.others, option)
			}
		}
	}
	if len(o.lowers) == 0 || o.upper == "" || o.work == "" {
		return nil, errors.New("overlay without upper directory, work directory or layers cannot have a user namespace")
	}
	for _, path := range []*string{&o.upper, &o.work} {
		if !filepath.IsAbs(*path) {
			*path = filepath.Join(base, *path)
		}
		if strings.ContainsAny(*path, `,\"`) {
			return nil, fmt.Errorf("overlay with %q: a comma, a quote or a backslash in the path is not supported", *path)
		}
	}
	return o, nil
}

// data returns the options of mount(2), with lower directories 0, 1 and so on.
func (o *overlay) data() string {
	names := make([]string, len(o.lowers))
	for n := range names {
		names[n] = strconv.Itoa(n)
	}
	return strings.Join(append([]string{"lowerdir=" + strings.Join(names, ":"), "upperdir=" + o.upper, "workdir=" + o.work}, o.others...), ",")
}

// split splits s at a separator that is neither behind a backslash nor in quotes, as SELinux contexts are.
func split(s string, separator byte) (parts []string) {
	quoted, start := false, 0
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == separator && !quoted:
			parts = append(parts, s[start:i])
			start = i + 1
		}
	}
	return append(parts, s[start:])
}

// unescape removes the backslashes of a path in lowerdir.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// unescapeOctal replaces \040 and the like, which the kernel writes for spaces and backslashes in mountinfo.
func unescapeOctal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
