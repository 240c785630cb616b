package todocker

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// maxID is the highest UID or GID that Kubernetes, runc and Docker take. Docker up
	// to 28.5 cuts higher ones from /etc/passwd to 32 bits: 4294967296 is root there.
	maxID = 1<<31 - 1
	// maxGroups bounds the groups of one container: they are in its labels, which
	// Docker repeats in each of its events.
	maxGroups = 4096
)

// validID reports whether id is a UID or GID that a container may have.
func validID(id int64) bool { return id >= 0 && id <= maxID }

// Accounts are the users and groups of an image, as its files list them.
type Accounts struct{ Passwd, Group []byte }

// An identity is who a container runs as.
type identity struct {
	user   string                         // UID:GID for the Engine
	groups []string                       // GIDs that the Engine adds
	told   *runtimeapi.LinuxContainerUser // the same, for the kubelet
}

// identify finds out who a container of an image with the default user imageUser runs as.
//
// The Engine gets numbers only. It resolves names when the container starts, by its own
// rules and from files that the image's author controls, so with names it could run
// something else than what the kubelet is told. With a group in Config.User it adds none of the
// groups that the image puts the user in: with the policy Merge they are in GroupAdd,
// with Strict nowhere.
func identify(sc *runtimeapi.LinuxContainerSecurityContext, imageUser string, a Accounts) (identity, error) {
	if err := groupsPolicy(sc.GetSupplementalGroupsPolicy()); err != nil {
		return identity{}, err
	}
	if err := checkIDs(sc); err != nil {
		return identity{}, err
	}
	who, group, _ := strings.Cut(imageUser, ":")
	switch {
	case sc.GetRunAsUser() != nil:
		who, group = strconv.FormatInt(sc.GetRunAsUser().GetValue(), 10), ""
	case sc.GetRunAsUsername() != "":
		who, group = sc.GetRunAsUsername(), ""
	case sc.GetRunAsGroup() != nil:
		return identity{}, errGroupAlone
	}
	if sc.GetRunAsGroup() != nil {
		group = strconv.FormatInt(sc.GetRunAsGroup().GetValue(), 10)
	}
	found, err := lookUp(who, group, a)
	if err != nil {
		return identity{}, err
	}
	groups := slices.Clone(sc.GetSupplementalGroups())
	if sc.GetSupplementalGroupsPolicy() != runtimeapi.SupplementalGroupsPolicy_Strict {
		groups = append(groups, found.groups...)
	}
	slices.Sort(groups)
	groups = slices.Compact(groups)
	if len(groups) > maxGroups {
		return identity{}, failed("user %q has %d supplemental groups: at most %d are supported", who, len(groups), maxGroups)
	}
	out := identity{user: fmt.Sprintf("%d:%d", found.uid, found.gid)}
	for _, gid := range groups {
		id := strconv.FormatInt(gid, 10)
		if other, ok := found.aliases[id]; ok {
			return identity{}, failed("supplemental group %s: /etc/group of the image has a group of that name with GID %d, which Docker would add instead", id, other)
		}
		out.groups = append(out.groups, id)
	}
	groups = append(groups, found.gid)
	slices.Sort(groups)
	out.told = &runtimeapi.LinuxContainerUser{Uid: found.uid, Gid: found.gid, SupplementalGroups: slices.Compact(groups)}
	return out, nil
}

// identities are the UIDs and GIDs that sandboxes and containers may ask for.
type identities interface {
	GetRunAsUser() *runtimeapi.Int64Value
	GetRunAsGroup() *runtimeapi.Int64Value
	GetSupplementalGroups() []int64
}

// checkIDs refuses UIDs and GIDs out of range.
func checkIDs(sc identities) error {
	check := func(field string, id int64) error {
		if !validID(id) {
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

// An account is what the files of an image say of a user.
type account struct {
	uid, gid int64
	groups   []int64 // that have the user as a member
	// aliases are the GIDs of groups whose names are other numbers. Docker up to 28.5
	// takes a number in GroupAdd for a name first (moby/sys/user before v0.5).
	aliases map[string]int
}

// lookUp finds a user, by name or UID, and a group of it, by name or GID, by the rules of
// user.GetExecUser, but reads each file once and takes no number out of range. Without
// a user it is root, without a group that of /etc/passwd.
func lookUp(who, group string, a Accounts) (account, error) {
	uid, byUID, err := number("user", who)
	if err != nil {
		return account{}, err
	}
	gid, byGID, err := number("group", group)
	if err != nil {
		return account{}, err
	}
	byUID = byUID || who == ""
	users, err := user.ParsePasswdFilter(bytes.NewReader(a.Passwd), func(u user.User) bool {
		return byUID && u.Uid == uid || !byUID && u.Name == who
	})
	if err != nil {
		return account{}, failed("/etc/passwd of the image: %v", err)
	}
	self := user.User{Uid: uid}
	switch {
	case len(users) > 0:
		self = users[0]
	case !byUID:
		return account{}, failed("user %q: not in /etc/passwd of the image", who)
	}
	out := account{uid: int64(self.Uid), gid: int64(self.Gid), aliases: map[string]int{}}
	found := group == "" || byGID
	if byGID {
		out.gid = int64(gid)
	}
	_, err = user.ParseGroupFilter(bytes.NewReader(a.Group), func(g user.Group) bool {
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
		if !validID(id) {
			return account{}, failed("user %q: the image's files give it the UID or GID %d: must be between 0 and %d", who, id, maxID)
		}
	}
	return out, nil
}

// number reads a user or group that is given as a number. As in Docker, what is a
// number is no name.
func number(what, text string) (id int, ok bool, err error) {
	id, err = strconv.Atoi(text)
	switch {
	case err == nil && validID(int64(id)):
		return id, true, nil
	case err == nil, errors.Is(err, strconv.ErrRange):
		return 0, false, failed("%s %s: must be between 0 and %d", what, text, maxID)
	default:
		return 0, false, nil
	}
}
