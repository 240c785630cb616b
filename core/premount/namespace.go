package premount

import (
	"os"
	"strconv"

	"github.com/prometheus/procfs"
)

// InOtherMountNS reports whether the process pid is in another mount namespace than berthd, and so does not see the mounts
// that berthd makes. It is true as well if that cannot be read: a process in another mount namespace would be given the
// empty directory below a premount, and not the restricted mount.
func InOtherMountNS(pid int) bool {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return true
	}
	other, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/mnt")
	return err != nil || other != own
}

// ParentPID returns the parent of the process pid, 0 if it cannot be read.
func ParentPID(pid int) int {
	process, err := procfs.NewProc(pid)
	if err != nil {
		return 0
	}
	stat, err := process.Stat()
	if err != nil {
		return 0
	}
	return stat.PPID
}

// Lacks says what a node lacks on which no premounts are possible. otherMountNS reports that Docker is in another mount namespace.
func Lacks(otherMountNS bool) string {
	if otherMountNS {
		return "a Docker without a mount namespace of its own (PrivateMounts, MountFlags and the like in its unit)"
	}
	return "Linux 5.12 or newer"
}
