package testmain_test

import (
	"flag"
	"os"
	"os/exec"
	"strings"
	"testing"

	"berth/core/testmain"
)

func TestMain(m *testing.M) {
	testmain.M{M: m}.Run()
}

// TestPrintParallel is run by TestParallelIsRaisedUnlessGiven, in a process of its own.
func TestPrintParallel(t *testing.T) {
	t.Logf("parallel=%s.", flag.Lookup("test.parallel").Value)
}

func TestParallelIsRaisedUnlessGiven(t *testing.T) {
	for want, args := range map[string][]string{"16": nil, "3": {"-test.parallel=3"}, "2": {"-test.cpu=2", "-test.parallel=2"}} {
		out, err := exec.Command(os.Args[0], append(args, "-test.v", "-test.run=^TestPrintParallel$")...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "parallel="+want+".") {
			t.Errorf("%v: %v, want %s parallel tests:\n%s", args, err, want, out)
		}
	}
}
