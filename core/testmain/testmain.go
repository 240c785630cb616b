// Package testmain runs the tests of packages that mostly wait: for timeouts, for
// the fake Engine, for programs. By default go test runs as many parallel tests of a
// package at a time as there are CPUs, which are then idle.
package testmain

import (
	"flag"
	"strconv"
	"testing"
)

// parallel is how many parallel tests of a package run at a time. Each has an Engine and
// clients of its own; with many more of them, those that measure time would fail.
const parallel = 16

// M is a *testing.M whose Run runs more tests in parallel, unless the flag -parallel
// is given.
type M struct{ *testing.M }

// Run runs the tests, as (*testing.M).Run does.
func (m M) Run() int {
	if !flag.Parsed() {
		flag.Parse()
	}
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", strconv.Itoa(parallel)); err != nil {
			panic(err)
		}
	}
	return m.M.Run()
}
