package pinning

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

const (
	// maxPattern is the length of the longest glob in bytes: a name has at most 255, a tag
	// 128 and a digest 135.
	maxPattern = 512
	// maxPatterns bounds how many globs there are: each is compared with each name.
	maxPatterns = 256
)

// Patterns are globs for names of images. In a glob, * stands for any characters, also
// slashes, and ? for one.
type Patterns struct{ globs []*regexp.Regexp }

// validPattern has the characters of names, tags and digests and those of globs.
var validPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9._/:@*?-]+$`) })

// ParsePatterns checks and compiles globs.
func ParsePatterns(globs []string) (*Patterns, error) {
	if len(globs) > maxPatterns {
		return nil, fmt.Errorf("%d patterns: at most %d are supported: %w", len(globs), maxPatterns, errdefs.ErrInvalidArgument)
	}
	p := &Patterns{}
	for _, glob := range globs {
		switch {
		case len(glob) > maxPattern:
			return nil, fmt.Errorf("a pattern of %d bytes: at most %d are supported: %w", len(glob), maxPattern, errdefs.ErrInvalidArgument)
		case !validPattern().MatchString(glob):
			return nil, fmt.Errorf("pattern %q: must be the name of an image, like registry.example.com/app:1, in which * stands for any characters and ? for one: %w", glob, errdefs.ErrInvalidArgument)
		}
		text := regexp.QuoteMeta(glob)
		text = strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(text)
		// RE2 takes linear time, whatever the operator has written.
		compiled, err := regexp.Compile("^(?:" + text + ")$")
		if err != nil {
			return nil, fmt.Errorf("pattern %q: %w: %w", glob, err, errdefs.ErrInvalidArgument)
		}
		p.globs = append(p.globs, compiled)
	}
	return p, nil
}

// Match reports whether a glob matches ref in one of its forms: in full and as docker
// abbreviates it (without docker.io and library), each with and without its tag or digest.
func (p *Patterns) Match(ref string) bool {
	if p == nil || len(p.globs) == 0 || !isName(ref) {
		return false
	}
	forms := []string{ref}
	if named, err := reference.ParseNormalizedNamed(ref); err == nil {
		forms = []string{named.String(), named.Name(), reference.FamiliarString(named), reference.FamiliarName(named)}
	}
	return slices.ContainsFunc(p.globs, func(glob *regexp.Regexp) bool { return slices.ContainsFunc(forms, glob.MatchString) })
}

func (p *Patterns) matchAny(refs []string) bool { return slices.ContainsFunc(refs, p.Match) }
