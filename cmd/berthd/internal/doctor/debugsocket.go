package doctor

import (
	"fmt"
	"os"
	"path/filepath"

	"berth/cmd/berthd/internal/config"
)

// checkDebugSocket checks the place of the socket for berthd pulls, on which no pod depends. A daemon that does not
// run has none.
func (c *checker) checkDebugSocket() {
	name := c.daemon.DebugSocketPath()
	if name == "" {
		return
	}
	path := c.path(name)
	if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSocket == 0 {
		c.warn("debug socket", path+" is not a socket: "+config.PullsCommand+" does not work", "remove it, or name another path in debug-socket, and: systemctl restart berth.service")
		return
	}
	dir := filepath.Dir(path)
	if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o022 != 0 {
		c.warn("debug socket", fmt.Sprintf("%s has mode %04o: other users can put their own socket there", dir, info.Mode().Perm()), "set debug-socket to a path in a directory of root, or empty for none")
	}
}
