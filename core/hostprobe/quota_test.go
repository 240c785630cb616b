package hostprobe

import (
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
)

func TestProjectQuotaOfInnermostMount(t *testing.T) {
	for name, c := range map[string]struct {
		table string
		want  bool
	}{
		"none":                         {"", false},
		"xfs":                          {"1 0 8:1 / / rw - xfs /dev/a rw,attr2,prjquota\n", true},
		"xfs without":                  {"1 0 8:1 / / rw - xfs /dev/a rw,attr2,noquota\n", false},
		"xfs with quotas of users":     {"1 0 8:1 / / rw - xfs /dev/a rw,usrquota\n", false},
		"ext4":                         {"1 0 8:1 / / rw - ext4 /dev/a rw,prjquota\n", false},
		"ext4 above xfs":               {"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 8:2 / /var rw - xfs /dev/b rw,prjquota\n", true},
		"ext4 below xfs, listed first": {"2 1 8:2 / /var rw - ext4 /dev/b rw\n1 0 8:1 / / rw - xfs /dev/a rw,prjquota\n", false},
		"hidden":                       {"1 0 8:1 / / rw - xfs /dev/a rw,prjquota\n2 1 8:2 / / rw - ext4 /dev/b rw\n", false},
	} {
		mounts, err := mountinfo.GetMountsFromReader(strings.NewReader(c.table), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := hasProjectQuota(mounts); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
	if !LayerQuota("btrfs", "/nothing") || LayerQuota("fuse-overlayfs", "/") {
		t.Error("of storage drivers, btrfs has quotas and fuse-overlayfs has none")
	}
}
