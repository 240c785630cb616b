// Package shorten bounds the texts of errors for logs and callers.
package shorten

import (
	"fmt"
	"strings"
)

const (
	// maxText is the longest text of an error for logs and callers, in bytes. Registries,
	// images and containers contribute to some texts, up to megabytes.
	maxText = 4 << 10
	// textEnd is how many of these bytes are taken from the end of a longer text: runc names
	// the cause last.
	textEnd = 1 << 10
)

// Text returns text with its middle cut out if it is longer than 4 KiB.
func Text(text string) string {
	if len(text) <= maxText {
		return text
	}
	const gap = len(" ... [9223372036854775807 bytes left out] ... ")
	begin, end := text[:maxText-textEnd-gap], text[len(text)-textEnd:]
	left := len(text) - len(begin) - len(end)
	// A cut inside a character leaves invalid UTF-8, which gRPC does not send.
	return strings.ToValidUTF8(begin, "") + fmt.Sprintf(" ... [%d bytes left out] ... ", left) + strings.ToValidUTF8(end, "")
}

// Error returns err with its text shortened. It is of the same kind.
func Error(err error) error {
	if err == nil || len(err.Error()) <= maxText {
		return err
	}
	return &shortened{err, Text(err.Error())}
}

type shortened struct {
	error
	text string
}

func (e *shortened) Error() string { return e.text }
func (e *shortened) Unwrap() error { return e.error }
