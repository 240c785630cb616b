package doctor

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"

	"github.com/coreos/go-systemd/v22/unit"

	"berth/cmd/berthd/internal/config"
	"berth/core/systemd"
)

const (
	unitDir      = "/etc/systemd/system/"     // of the operator
	packagedDir  = "/usr/lib/systemd/system/" // of packages
	restartBerth = "systemctl daemon-reload && systemctl restart berth.service"
)

// checkUnits checks the units and drop-ins of the operator, which override those of the packages. The
// packages have units and aliases named berth, cri-docker and cri-dockerd.
func (c *checker) checkUnits() {
	for _, kind := range []string{".service", ".socket"} {
		own, packaged := unitDir+"berth"+kind, packagedDir+"berth"+kind
		if !c.isFile(own) {
			continue
		}
		if c.isFile(packaged) {
			c.warn("units", own+" comes before that of the package, whose upgrades it hides", "remove it and: "+restartBerth)
		}
		c.checkExecStart(own)
	}
	for _, name := range []string{"cri-docker", "cri-dockerd"} {
		for _, kind := range []string{".service", ".socket"} {
			if own := unitDir + name + kind; c.isFile(own) {
				c.fail("units", own+" comes before the unit of berth of that name",
					"remove it and: systemctl daemon-reload && systemctl enable --now berth.socket berth.service")
			}
		}
	}
	for _, name := range []string{"berth", "cri-docker", "cri-dockerd"} {
		dir := unitDir + name + ".service.d"
		entries, _ := os.ReadDir(c.path(dir)) // it may be missing
		for _, e := range entries {
			if filepath.Ext(e.Name()) == ".conf" {
				c.checkExecStart(filepath.Join(dir, e.Name()))
			}
		}
	}
	if !c.has("units") {
		c.ok("units", "no unit conflicts, and berthd accepts the flags in drop-ins")
	}
}

// isFile reports whether name is a regular file of the node, not a link such as an alias of a unit.
func (c *checker) isFile(name string) bool {
	info, err := os.Lstat(c.path(name))
	return err == nil && info.Mode().IsRegular()
}

// checkExecStart checks the program and the flags of each ExecStart= in a unit or drop-in.
func (c *checker) checkExecStart(file string) {
	text, err := os.ReadFile(c.path(file))
	if err != nil {
		c.warn("units", err.Error(), "")
		return
	}
	options, err := unit.DeserializeOptions(bytes.NewReader(text))
	if err != nil {
		c.fail("units", file+": "+err.Error(), "correct it and: "+restartBerth)
		return
	}
	for _, o := range options {
		args := systemd.SplitCommand(o.Value)
		if o.Section != "Service" || o.Name != "ExecStart" || len(args) == 0 {
			continue
		}
		program := strings.TrimLeft(args[0], "-@:+!") // prefixes of systemd.service(5)
		executable, err := filepath.EvalSymlinks(c.path(program))
		switch {
		case err != nil:
			c.fail("units", file+" starts "+program+", which is not there", "name /usr/bin/berthd there and: "+restartBerth)
			continue
		case filepath.Base(executable) != "berthd":
			c.fail("units", file+" starts "+program+", which is not berthd", "name /usr/bin/berthd there and: "+restartBerth)
			continue
		case strings.ContainsAny(o.Value, "$%"):
			continue // only systemd can expand variables and specifiers
		}
		if err := config.CheckArgs(args[1:], c.ConfigFile); err != nil {
			c.fail("units", file+": "+err.Error(), "correct it and: "+restartBerth)
		}
	}
}
