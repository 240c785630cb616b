package todocker

import (
	"bytes"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Accounts are the users and groups of an image, as its files list them.
type Accounts struct{ Passwd, Group []byte }

// An identity is who a container runs as.
type identity struct {
	user   string   // in the Engine's words; "" leaves it to the image
	groups []string // that the Engine is to add
	// told is what the kubelet is told of it; nil if that cannot be known, as
	// with a user that the image does not have, whom no process will run as.
	told *runtimeapi.LinuxContainerUser
}

// identify finds out who a container of an image with the default user imageUser runs as.
//
// The Engine adds the groups that the image's own files put a user in, but only
// where no group is named. With the policy Merge they belong to the user in any
// case, with Strict in none.
func identify(sc *runtimeapi.LinuxContainerSecurityContext, imageUser string, a Accounts) (identity, error) {
	if err := groupsPolicy(sc.GetSupplementalGroupsPolicy()); err != nil {
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
	out := identity{user: who, groups: groups(sc.GetSupplementalGroups())}
	if group != "" {
		out.user = who + ":" + group
	}
	own, err := find(who, a)
	full := own
	if err == nil && group != "" {
		full, err = find(who+":"+group, a)
	}
	if err != nil {
		return out, nil // the start will say so
	}
	strict := sc.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Strict
	all := slices.Clone(sc.GetSupplementalGroups())
	switch {
	case strict:
		out.user = strconv.Itoa(own.Uid) + ":" + strconv.Itoa(full.Gid)
	case group != "":
		for _, gid := range own.Sgids {
			out.groups = append(out.groups, strconv.Itoa(gid))
		}
		fallthrough
	default:
		for _, gid := range own.Sgids {
			all = append(all, int64(gid))
		}
	}
	all = append(all, int64(full.Gid))
	slices.Sort(all)
	slices.Sort(out.groups)
	out.groups = slices.Compact(out.groups)
	out.told = &runtimeapi.LinuxContainerUser{Uid: int64(own.Uid), Gid: int64(full.Gid), SupplementalGroups: slices.Compact(all)}
	return out, nil
}

// find looks up who as the Engine does.
func find(who string, a Accounts) (*user.ExecUser, error) {
	return user.GetExecUser(who, nil, bytes.NewReader(a.Passwd), bytes.NewReader(a.Group))
}
