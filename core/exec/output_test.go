package exec

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/docker/docker/pkg/stdcopy"
)

// stdcopy.StdCopy takes a connection that breaks inside a frame for the end of the output.
func TestOutputThatEndsInsideAFrameIsAnError(t *testing.T) {
	var stream bytes.Buffer
	whole := map[int]bool{0: true}
	for _, text := range []string{"out", "", "a longer line\n"} {
		_, _ = stdcopy.NewStdWriter(&stream, stdcopy.Stdout).Write([]byte(text))
		whole[stream.Len()] = true
		_, _ = stdcopy.NewStdWriter(&stream, stdcopy.Stderr).Write([]byte(text))
		whole[stream.Len()] = true
	}
	for n := range stream.Len() + 1 {
		for name, reader := range map[string]io.Reader{
			"at once":      bytes.NewReader(stream.Bytes()[:n]),
			"byte by byte": iotest.OneByteReader(bytes.NewReader(stream.Bytes()[:n])),
			"with its end": iotest.DataErrReader(bytes.NewReader(stream.Bytes()[:n])),
		} {
			var out bytes.Buffer
			err := copyOutput(reader, &out, nil, false)
			if whole[n] && err != nil || !whole[n] && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%d of %d bytes, %s: %v", n, stream.Len(), name, err)
			}
			if n == stream.Len() && out.String() != "outa longer line\n" {
				t.Errorf("%s: %q", name, out.String())
			}
		}
	}
	for _, tty := range []bool{false, true} {
		if err := copyOutput(io.MultiReader(bytes.NewReader(stream.Bytes()[:4]), iotest.ErrReader(errDrained)), nil, nil, tty); err != nil {
			t.Errorf("output of a command that has ended, terminal %v: %v", tty, err)
		}
	}
}
