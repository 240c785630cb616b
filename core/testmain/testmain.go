// Package testmain raises the number of parallel tests for packages whose tests mostly wait:
// for timeouts, the fake Engine or child processes. By default go test runs as many at a time
// as there are CPUs, which then are idle.
package testmain

import (
	"flag"
	"strconv"
	"testing"
)

// parallel is the number of parallel tests of a package. Each has an Engine and clients of
// its own; with many more, tests that measure time would fail.
const parallel = 16

// M is a *testing.M that runs more tests in parallel, unless the flag -parallel is set.
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

// Times returns n, or with the race detector a fifth of it, at least 1: how often a test repeats something.
func Times(n int) int {
	if race {
		return max(1, n/5)
	}
	return n
}
