package doctor

import (
	"errors"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
)

func TestErrCountsFailures(t *testing.T) {
	for _, c := range []struct {
		report Report
		want   string
	}{
		{nil, ""},
		{Report{{State: OK}, {State: Warn}}, ""},
		{Report{{State: Fail}, {State: Warn}}, "1 thing is wrong with this node"},
		{Report{{State: Fail}, {State: OK}, {State: Fail}}, "2 things are wrong with this node"},
	} {
		var got string
		if err := c.report.Err(); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%v: got %q, want %q", c.report, got, c.want)
		}
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestWriteReturnsErrorOfWriter(t *testing.T) {
	report := Report{{"docker", Fail, "of\ntwo lines", "a fix"}}
	var text strings.Builder
	if err := report.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	if got, want := text.String(), "fail  docker          of two lines -> a fix\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if report.WriteText(failingWriter{}) == nil || report.WriteJSON(failingWriter{}) == nil {
		t.Error("no error of a writer that fails")
	}
}

func TestMountOfFindsInnermostMount(t *testing.T) {
	const table = `1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
2 1 8:2 / /var/lib rw master:1 - ext4 /dev/sda2 rw
3 1 8:3 / /var/lib/kubelet2 rw shared:3 - ext4 /dev/sda3 rw
4 1 8:4 / /mnt rw - ext4 /dev/shared:1 rw
5 4 8:5 / /mnt rw shared:5 master:2 - ext4 /dev/sda5 rw
6 1 8:6 / /with\040space rw - ext4 /dev/sda6 rw
`
	mounts, err := mountinfo.GetMountsFromReader(strings.NewReader(table), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dir, point string
		shared     bool
	}{
		{"/", "/", true},
		{"/etc", "/", true},
		{"/var/lib/kubelet", "/var/lib", false},
		{"/var/lib/kubelet2", "/var/lib/kubelet2", true},
		{"/mnt/x", "/mnt", true},
		{"/with space/x", "/with space", false},
	} {
		m := mountOf(mounts, c.dir)
		if m == nil || m.Mountpoint != c.point || isShared(m) != c.shared {
			t.Errorf("%s: got %+v, want mount %s, shared %v", c.dir, m, c.point, c.shared)
		}
	}
	if m := mountOf(nil, "/"); m != nil {
		t.Errorf("mount %v in an empty table", m)
	}
}
