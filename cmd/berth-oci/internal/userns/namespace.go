package userns

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/cmd/berth-oci/internal/spec"
	"berth/core/ociedit"
)

// HolderName is the name, argv[0], under which this program starts itself to hold a user namespace: main must call Hold then.
const HolderName = "berth-oci-userns"

// Hold waits until the process that has started this one ends, or kills it.
func Hold() { _, _ = io.Copy(io.Discard, os.Stdin) }

// newUserNamespace returns a user namespace with mappings. Only a process can have a new one; it has ended on return.
func newUserNamespace(uids, gids []ociedit.IDMapping) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	defer w.Close()
	holder, err := os.StartProcess("/proc/self/exe", []string{HolderName}, &os.ProcAttr{
		Env:   []string{},
		Files: []*os.File{r},
		Sys: &syscall.SysProcAttr{
			Cloneflags:                 unix.CLONE_NEWUSER,
			UidMappings:                kernelMappings(uids),
			GidMappings:                kernelMappings(gids),
			GidMappingsEnableSetgroups: true,
			Pdeathsig:                  syscall.SIGKILL,
		},
	})
	if err != nil {
		return nil, err
	}
	file, err := os.Open("/proc/" + strconv.Itoa(holder.Pid) + "/ns/user")
	killErr := holder.Kill()
	_, waitErr := holder.Wait()
	return file, errors.Join(err, killErr, waitErr)
}

func kernelMappings(mappings []ociedit.IDMapping) (list []syscall.SysProcIDMap) {
	for _, m := range mappings {
		list = append(list, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
	}
	return list
}

// join returns the path of the user namespace of sandbox, or "" if the container gets a new one, and whether the network namespace of
// the container belongs to another user namespace.
func (x *session) join(s *spec.Spec, u *ociedit.UserNamespace, sandbox *ociedit.Process) (path string, foreignNetwork bool, err error) {
	network, hostNetwork, err := networkNamespace(s)
	if err != nil {
		return "", false, err
	}
	if sandbox == nil {
		return "", hostNetwork || network != "", nil
	}
	path = spec.NamespacePath(sandbox, "user")
	file, err := os.Open(path)
	if err != nil {
		return "", false, fmt.Errorf("user namespace of the pod: %w", err)
	}
	x.users = append(x.users, user{u.UIDMappings, u.GIDMappings, file})
	for name, want := range map[string][]ociedit.IDMapping{"uid_map": u.UIDMappings, "gid_map": u.GIDMappings} {
		name = fmt.Sprintf("/proc/%d/%s", sandbox.PID, name)
		text, err := os.ReadFile(name)
		if err != nil {
			return "", false, fmt.Errorf("user namespace of the pod: %w", err)
		}
		if got, err := parseMappings(text); err != nil || !sameMappings(got, want) {
			return "", false, fmt.Errorf("user namespace of the pod: %s is %q, and the instructions have %v", name, bytes.Join(bytes.Fields(text), []byte(" ")), want)
		}
	}
	if err := sandbox.Check(); err != nil { // the files above may be those of a process that has got its PID
		return "", false, err
	}
	if hostNetwork || network == "" {
		return path, hostNetwork, nil
	}
	owned, err := ownedBy(network, file)
	if err == nil && !owned { // the runtime enters the user namespace first
		err = fmt.Errorf("network namespace %s belongs to another user namespace than the pod's", network)
	}
	return path, false, err
}

// networkNamespace returns the path of the network namespace that the container joins, and whether it is the host's. A path of
// the host's is removed from s: Docker 20.10 names it, and so does Docker for a container that has the network of another one. From
// within the user namespace the runtime could not enter it.
func networkNamespace(s *spec.Spec) (path string, host bool, err error) {
	path, host, err = s.NetworkNamespace()
	if err != nil || path == "" {
		return path, host, err
	}
	named, err := os.Stat(path)
	if err != nil {
		return "", false, fmt.Errorf("network namespace: %w", err)
	}
	own, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return "", false, err
	}
	if os.SameFile(named, own) {
		return "", true, s.UseHostNetwork()
	}
	return path, false, nil
}

// parseMappings reads /proc/PID/uid_map.
func parseMappings(text []byte) (mappings []ociedit.IDMapping, err error) {
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		if len(fields) != 3 {
			return nil, fmt.Errorf("%q has not three fields", line)
		}
		var n [3]uint64
		for i, field := range fields {
			if n[i], err = strconv.ParseUint(string(field), 10, 32); err != nil {
				return nil, err
			}
		}
		mappings = append(mappings, ociedit.IDMapping{ContainerID: uint32(n[0]), HostID: uint32(n[1]), Size: uint32(n[2])})
	}
	return mappings, nil
}

// sameMappings compares mappings in any order: the kernel sorts long ones.
func sameMappings(a, b []ociedit.IDMapping) bool {
	byContainerID := func(a, b ociedit.IDMapping) int { return int(int64(a.ContainerID) - int64(b.ContainerID)) }
	return slices.Equal(slices.SortedFunc(slices.Values(a), byContainerID), slices.SortedFunc(slices.Values(b), byContainerID))
}

// ownedBy reports whether the namespace at path belongs to the user namespace owner.
func ownedBy(path string, owner *os.File) (bool, error) {
	namespace, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer namespace.Close()
	fd, err := unix.IoctlRetInt(int(namespace.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return false, fmt.Errorf("user namespace of %s: %w", path, err)
	}
	defer unix.Close(fd)
	var a, b unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &a), unix.Fstat(int(owner.Fd()), &b)); err != nil {
		return false, err
	}
	return a.Dev == b.Dev && a.Ino == b.Ino, nil
}
