package engine

import (
	"fmt"
	"strings"
)

const (
	// maxText is the longest text of an error for logs and callers. Registries, images and
	// containers have a say in some, and their words may be megabytes.
	maxText = 4 << 10
	// textEnd is how much of it is the end of a text that is too long: runc names the
	// cause last.
	textEnd = 1 << 10
)

// Shorten returns text without its middle if it is longer than 4 KiB.
func Shorten(text string) string {
	if len(text) <= maxText {
		return text
	}
	const gap = len(" ... [9223372036854775807 bytes left out] ... ")
	begin, end := text[:maxText-textEnd-gap], text[len(text)-textEnd:]
	left := len(text) - len(begin) - len(end)
	// Not valid where a character is cut, and gRPC sends none but UTF-8.
	return strings.ToValidUTF8(begin, "") + fmt.Sprintf(" ... [%d bytes left out] ... ", left) + strings.ToValidUTF8(end, "")
}

// ShortenError returns err with its text shortened. It is of the same kind.
func ShortenError(err error) error {
	if err == nil || len(err.Error()) <= maxText {
		return err
	}
	return &shortened{err, Shorten(err.Error())}
}

type shortened struct {
	error
	text string
}

func (e *shortened) Error() string { return e.text }
func (e *shortened) Unwrap() error { return e.error }
