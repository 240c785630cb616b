package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"berthd": main, "cri-dockerd": main})
}

// TestScripts runs berthd as an operator does; see testdata/script.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			// Socket paths must be short.
			dir, err := os.MkdirTemp("", "b")
			e.Setenv("S", dir)
			e.Defer(func() { os.RemoveAll(dir) })
			return err
		},
	})
}
