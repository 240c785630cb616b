package doctor

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/cmd/berthd/internal/config"
	"berth/core/testdir"
)

func TestNRISocketOfAnotherProcessIsReported(t *testing.T) {
	dir := testdir.New(t)
	path := filepath.Join(dir, "nri.sock")
	check := func(want string) {
		t.Helper()
		c := &checker{Config: Config{Root: "/"}, daemon: config.Config{RunDir: config.DefaultRunDir, NRI: config.NRI{Enable: true, SocketPath: path, PluginPath: filepath.Join(dir, "plugins")}}}
		c.checkNRI()
		if len(c.report) != 1 || !strings.Contains(string(c.report[0].State)+" "+c.report[0].Message, want) {
			t.Errorf("%v, want %q", c.report, want)
		}
	}
	check("ok nothing listens on")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	check("plugins that connect there are not sent the pods of berthd")
	if err := os.Mkdir(filepath.Join(dir, "plugins"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "plugins"), 0o777); err != nil {
		t.Fatal(err)
	}
	check("warn no plugins are served: nri-plugin-path")
}
