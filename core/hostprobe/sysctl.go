package hostprobe

import (
	"os"
	"path/filepath"
	"strings"
)

// SysctlsOn returns those of the sysctls that are 1 on the node, with that value: pods inherit them. dir is /proc/sys. One that the
// kernel does not have is not 1.
func SysctlsOn(dir string, names ...string) map[string]string {
	on := map[string]string{}
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(dir, strings.ReplaceAll(name, ".", "/")))
		if value := strings.TrimSpace(string(text)); err == nil && value == "1" {
			on[name] = value
		}
	}
	return on
}
