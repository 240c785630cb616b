// Package identity determines the user and the groups that a container runs with, from
// its security context and from the user, /etc/passwd and /etc/group of its image. It is
// pure: values in, values out, no I/O.
//
// Docker gets numbers only. It resolves names when the container starts, by its own rules
// and from files that the image's author controls, so with names it could run a container
// as another user than the one that the kubelet has checked (runAsNonRoot) and reports.
//
// Errors are of kind InvalidArgument where the request is invalid, and of kind
// FailedPrecondition where the image is the reason.
package identity

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// maxID is the highest UID or GID that Kubernetes, runc and Docker accept. Docker up
	// to 28.5 truncates higher ones from /etc/passwd to 32 bits, so that 4294967296
	// is root.
	maxID = 1<<31 - 1
	// maxGroups bounds the groups of a container: they are kept in its labels, which
	// Docker repeats in each of its events.
	maxGroups = 4096
)

// isValid reports whether id is a UID or GID that a container may have.
func isValid(id int64) bool { return id >= 0 && id <= maxID }

// PasswdFiles are the contents of /etc/passwd and /etc/group of an image.
type PasswdFiles struct{ Passwd, Group []byte }

// An Identity is the user and the groups of a container, by number.
type Identity struct {
	User   string   // UID:GID or UID for Config.User of the Engine API; "" for the image's user
	Groups []string // GIDs for HostConfig.GroupAdd of the Engine API
	// Status is the same for the container's status in the CRI; nil for sandboxes.
	Status *runtimeapi.LinuxContainerUser
}

// ForContainer returns the identity of a container of an image whose Config.User is
// imageUser.
//
// With a group in Config.User, Docker does not add the groups that /etc/group lists the
// user in. With the policy Merge they are in Groups, with Strict they are left out.
func ForContainer(sc *runtimeapi.LinuxContainerSecurityContext, imageUser string, files PasswdFiles) (Identity, error) {
	if err := checkContext(sc); err != nil {
		return Identity{}, err
	}
	name, group, err := requested(sc, imageUser)
	if err != nil {
		return Identity{}, err
	}
	acct, err := lookup(name, group, files)
	if err != nil {
		return Identity{}, err
	}
	gids := slices.Clone(sc.GetSupplementalGroups())
	if sc.GetSupplementalGroupsPolicy() != runtimeapi.SupplementalGroupsPolicy_Strict {
		gids = append(gids, acct.groups...)
	}
	slices.Sort(gids)
	gids = slices.Compact(gids)
	if len(gids) > maxGroups {
		return Identity{}, failed("user %q has %d supplemental groups: at most %d are supported", name, len(gids), maxGroups)
	}
	out := Identity{User: fmt.Sprintf("%d:%d", acct.uid, acct.gid), Groups: formatGIDs(gids)}
	for _, gid := range out.Groups {
		if other, ok := acct.aliases[gid]; ok {
			return Identity{}, failed("supplemental group %s: /etc/group of the image has a group of that name with GID %d, which Docker would add instead", gid, other)
		}
	}
	gids = append(gids, acct.gid)
	slices.Sort(gids)
	out.Status = &runtimeapi.LinuxContainerUser{Uid: acct.uid, Gid: acct.gid, SupplementalGroups: slices.Compact(gids)}
	return out, nil
}

// requested returns the user and the group that a container must run with, as numbers or
// as names; "" stands for the default.
func requested(sc *runtimeapi.LinuxContainerSecurityContext, imageUser string) (name, group string, err error) {
	name, group, _ = strings.Cut(imageUser, ":")
	switch {
	case sc.GetRunAsUser() != nil:
		name, group = strconv.FormatInt(sc.GetRunAsUser().GetValue(), 10), ""
	case sc.GetRunAsUsername() != "":
		name, group = sc.GetRunAsUsername(), ""
	case sc.GetRunAsGroup() != nil:
		// "run_as_group should only be specified when run_as_user or run_as_username is
		// specified; otherwise, the runtime MUST error." (LinuxContainerSecurityContext in
		// api.proto of the CRI)
		return "", "", invalid("run_as_group needs run_as_user or run_as_username")
	}
	if sc.GetRunAsGroup() != nil {
		group = strconv.FormatInt(sc.GetRunAsGroup().GetValue(), 10)
	}
	return name, group, nil
}

// ForSandbox returns the identity of a pause process.
func ForSandbox(sc *runtimeapi.LinuxSandboxSecurityContext) (Identity, error) {
	if err := checkContext(sc); err != nil {
		return Identity{}, err
	}
	out := Identity{Groups: formatGIDs(sc.GetSupplementalGroups())}
	uid, gid := sc.GetRunAsUser(), sc.GetRunAsGroup()
	switch {
	case uid == nil:
		// The Kubernetes API allows runAsGroup alone for a pod, and policies set it. The
		// pause process then keeps the user and group of its image: it opens no files.
	case gid == nil && sc.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Strict:
		// With a group in Config.User Docker adds none of the image's groups.
		out.User = strconv.FormatInt(uid.GetValue(), 10) + ":0"
	case gid == nil:
		out.User = strconv.FormatInt(uid.GetValue(), 10)
	default:
		out.User = strconv.FormatInt(uid.GetValue(), 10) + ":" + strconv.FormatInt(gid.GetValue(), 10)
	}
	return out, nil
}

// securityContext is what the security contexts of sandboxes and containers have in common.
type securityContext interface {
	GetRunAsUser() *runtimeapi.Int64Value
	GetRunAsGroup() *runtimeapi.Int64Value
	GetSupplementalGroups() []int64
	GetSupplementalGroupsPolicy() runtimeapi.SupplementalGroupsPolicy
}

// checkContext refuses IDs out of range and unknown policies.
func checkContext(sc securityContext) error {
	policy := sc.GetSupplementalGroupsPolicy()
	if _, ok := runtimeapi.SupplementalGroupsPolicy_name[int32(policy)]; !ok {
		return invalid("supplemental_groups_policy %v: must be Merge or Strict", policy)
	}
	check := func(field string, id int64) error {
		if !isValid(id) {
			return invalid("%s %d: must be between 0 and %d", field, id, maxID)
		}
		return nil
	}
	if err := check("run_as_user", sc.GetRunAsUser().GetValue()); err != nil {
		return err
	}
	if err := check("run_as_group", sc.GetRunAsGroup().GetValue()); err != nil {
		return err
	}
	for _, gid := range sc.GetSupplementalGroups() {
		if err := check("supplemental_groups", gid); err != nil {
			return err
		}
	}
	return nil
}

// An account is what the files of an image contain about a user.
type account struct {
	uid, gid int64
	groups   []int64 // GIDs of the groups that list the user as a member
	// aliases maps group names that are numbers to the GIDs of these groups, where the
	// two differ. Docker up to 28.5 reads a number in GroupAdd as a name first
	// (moby/sys/user before v0.5).
	aliases map[string]int
}

// lookup finds a user by name or UID, and a group by name or GID. Without a user it is
// root, without a group the user's group in /etc/passwd. The rules are those of
// user.GetExecUser, but each file is read once and no number out of range is accepted.
func lookup(name, group string, files PasswdFiles) (account, error) {
	uid, byUID, err := parseID("user", name)
	if err != nil {
		return account{}, err
	}
	gid, byGID, err := parseID("group", group)
	if err != nil {
		return account{}, err
	}
	byUID = byUID || name == ""
	users, err := user.ParsePasswdFilter(bytes.NewReader(files.Passwd), func(u user.User) bool {
		return byUID && u.Uid == uid || !byUID && u.Name == name
	})
	if err != nil {
		return account{}, failed("/etc/passwd of the image: %v", err)
	}
	self := user.User{Uid: uid}
	switch {
	case len(users) > 0:
		self = users[0]
	case !byUID:
		return account{}, failed("user %q: not in /etc/passwd of the image", name)
	}
	out := account{uid: int64(self.Uid), gid: int64(self.Gid), aliases: map[string]int{}}
	found := group == "" || byGID
	if byGID {
		out.gid = int64(gid)
	}
	_, err = user.ParseGroupFilter(bytes.NewReader(files.Group), func(g user.Group) bool {
		if !found && g.Name == group {
			found, out.gid = true, int64(g.Gid)
		}
		if self.Name != "" && slices.Contains(g.List, self.Name) {
			out.groups = append(out.groups, int64(g.Gid))
		}
		if n, err := strconv.Atoi(g.Name); err == nil && n != g.Gid {
			out.aliases[g.Name] = g.Gid
		}
		return false
	})
	switch {
	case err != nil:
		return account{}, failed("/etc/group of the image: %v", err)
	case !found:
		return account{}, failed("group %q: not in /etc/group of the image", group)
	}
	for _, id := range append([]int64{out.uid, out.gid}, out.groups...) {
		if !isValid(id) {
			return account{}, failed("user %q: the image's files give it the UID or GID %d: must be between 0 and %d", name, id, maxID)
		}
	}
	return out, nil
}

// parseID parses a user or group that is a number; ok is false for a name. As in Docker, a
// number is never a name.
func parseID(kind, text string) (id int, ok bool, err error) {
	id, err = strconv.Atoi(text)
	switch {
	case err == nil && isValid(int64(id)):
		return id, true, nil
	case err == nil, errors.Is(err, strconv.ErrRange):
		return 0, false, failed("%s %s: must be between 0 and %d", kind, text, maxID)
	default:
		return 0, false, nil
	}
}

func formatGIDs(gids []int64) []string {
	var out []string
	for _, gid := range gids {
		out = append(out, strconv.FormatInt(gid, 10))
	}
	return out
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

func failed(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrFailedPrecondition)...)
}
