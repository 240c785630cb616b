package live

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestStatusReportsTheUserThatRuns has images whose files of users Docker could read in another way than berthd: the process has
// exactly the numbers that the kubelet gets.
func TestStatusReportsTheUserThatRuns(t *testing.T) {
	n := newNode(t)
	config := n.pod("identity")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	type security = *runtimeapi.LinuxContainerSecurityContext
	strict := func(s security) { s.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy_Strict }
	const (
		users  = `printf 'root:x:0:0::/:/bin/sh\napp:x:1000:1001::/:/bin/sh\n' >/etc/passwd`
		groups = `printf 'root:x:0:root\nsecret:x:6:app\napp:x:1001:\n' >/etc/group`
		chain  = `mv /etc/$f /$f && ln -s /$f /etc/6 && for i in 5 4 3 2 1; do ln -s /etc/$((i+1)) /etc/$i; done && ln -s 1 /etc/$f`
	)
	for i, tt := range []struct {
		name, script, user string
		request            func(security)
		uid, gid, groups   string
	}{
		{"nothing special", "true", "app", nil, "1000", "1001", "6 1001"},
		{"strict", "true", "app", strict, "1000", "1001", "1001"},
		{"root", "true", "", nil, "0", "0", "0"},
		{"a group of the image", "true", "app:root", nil, "1000", "0", "0 6"},
		{"users behind links", "f=passwd; " + chain, "app", nil, "1000", "1001", "6 1001"},
		{"users behind links, strict", "f=passwd; " + chain, "app", strict, "1000", "1001", "1001"},
		{"groups behind links", "f=group; " + chain, "app", nil, "1000", "1001", "6 1001"},
		{"up through a linked directory", `mkdir -p /usr/etc && mv /etc/passwd /usr/passwd && printf 'app:x:0:0::/:\n' >/passwd && ln -s usr/etc /l && ln -s /l/../passwd /etc/passwd`, "app", nil, "1000", "1001", "6 1001"},
		{"no files", "rm /etc/passwd /etc/group", "1000:1001", nil, "1000", "1001", "1001"},
		{"a link to nothing", "rm /etc/passwd; ln -s /none /etc/passwd", "1000:1001", nil, "1000", "1001", "1001"},
	} {
		name := fmt.Sprintf("identity:%d", i)
		n.build(name, fmt.Sprintf("FROM %s\nRUN %s && %s && %s\n%s", *image, users, groups, tt.script, user(tt.user)))
		c := shell(fmt.Sprint("c", i), "exec sleep 1000")
		c.Image.Image = name
		if tt.request != nil {
			tt.request(c.Linux.SecurityContext)
		}
		id := n.create(pod, config, c)
		seen, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		words := strings.Fields(n.word(id, "Groups"))
		if !slices.Contains(words, tt.gid) {
			words = append(words, tt.gid) // Docker before 20.10.18 has it in Gid alone
		}
		slices.SortFunc(words, func(a, b string) int { x, _ := strconv.Atoi(a); y, _ := strconv.Atoi(b); return x - y })
		words = slices.Compact(words) // later ones have it twice where the image's files list root as a member of root
		is := fmt.Sprintf("%s %s, groups %s", strings.Fields(n.word(id, "Uid"))[0], strings.Fields(n.word(id, "Gid"))[0], strings.Join(words, " "))
		status := seen.GetStatus().GetUser().GetLinux()
		says := fmt.Sprintf("%d %d, groups %s", status.GetUid(), status.GetGid(), strings.Trim(fmt.Sprint(status.GetSupplementalGroups()), "[]"))
		if want := fmt.Sprintf("%s %s, groups %s", tt.uid, tt.gid, tt.groups); is != want || says != want {
			t.Errorf("%s: the process is %s, the kubelet gets %s, want %s", tt.name, is, says, want)
		}
		if got := strings.TrimSpace(n.exec(id, "id", "-u")); got != tt.uid {
			t.Errorf("%s: a command in it runs as %s, want %s", tt.name, got, tt.uid)
		}
	}

	// What Docker 20.10 does with these: it runs the first four with the UID or GID 0 and the fifth
	// with group 0, and its start hangs for ever on the pipe.
	for i, tt := range []struct {
		name, script, user string
		request            func(security)
	}{
		{"a UID that 32 bits cut to root's", `echo 'x:x:4294967296:0::/:/bin/sh' >>/etc/passwd`, "4294967296", nil},
		{"the same by name", `echo 'x:x:4294967296:0::/:/bin/sh' >>/etc/passwd`, "x", nil},
		{"the same from below", `echo 'x:x:-4294967296:0::/:/bin/sh' >>/etc/passwd`, "-4294967296", nil},
		{"a GID that 32 bits cut to root's", `echo 'x:x:1000:4294967296::/:/bin/sh' >>/etc/passwd`, "x", nil},
		{"a group called by a number", "echo '9:x:0:' >>/etc/group", "app", func(s security) { s.SupplementalGroups = []int64{9} }},
		{"a user that is not there", "true", "nobody", strict},
		{"users beyond the limit", `head -c 1048576 /dev/zero | tr '\0' '\n' >/big && cat /etc/passwd >>/big && mv /big /etc/passwd`, "app", strict},
		{"a loop of links", "rm /etc/passwd; ln -s passwd /etc/passwd", "0", strict},
		{"a directory", "rm /etc/passwd; mkdir -p /etc/passwd", "0", strict},
		{"a pipe", "rm /etc/passwd; mknod /etc/passwd p", "0", strict},
	} {
		name := fmt.Sprintf("identity-refused:%d", i)
		n.build(name, fmt.Sprintf("FROM %s\nRUN %s && %s && %s\n%s", *image, users, groups, tt.script, user(tt.user)))
		c := shell(fmt.Sprint("r", i), "exec sleep 1000")
		c.Image.Image = name
		if tt.request != nil {
			tt.request(c.Linux.SecurityContext)
		}
		if err := n.refused(pod, config, c); err == nil || codeOf(err) == codes.Unavailable {
			t.Errorf("%s: %v", tt.name, err)
		}
		got, err := n.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		if uid := got.GetImage().GetUid(); err != nil || uid.GetValue() < 0 || uid.GetValue() >= 1<<31 {
			t.Errorf("%s: the kubelet gets the UID %v, %v", tt.name, uid, err)
		}
	}
	n.remove(pod)
	n.removeLeftovers()
}

// user is the line of a Dockerfile that sets a user.
func user(name string) string {
	if name == "" {
		return ""
	}
	return "USER " + name
}
