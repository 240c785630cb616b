package diskusage

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
)

// FuzzUpperDir parses arbitrary mount tables. A writable layer is only accepted below the
// directories of Docker and containerd.
func FuzzUpperDir(f *testing.F) {
	for _, text := range []string{
		"36 35 98:0 / /var/lib/docker/rootfs/overlayfs/x rw - overlay overlay rw,lowerdir=/a:/b,upperdir=/var/lib/containerd/u,workdir=/w\n",
		"36 35 98:0 / / rw - overlay overlay rw,upperdir=/var/lib/docker/../../etc\n",
		"36 35 98:0 / / rw - overlay overlay rw,upperdir=/etc,upperdir=/var/lib/docker/x\n",
		"36 35 98:0 / / rw - overlay overlay upperdir=/var/lib/dockerx,upperdir=\n", "36 35\n", "",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := mountinfo.GetMountsFromReader(bytes.NewReader(text), nil)
		if err != nil {
			return
		}
		for _, m := range list {
			dir := upperDir(m.VFSOptions, "/var/lib/docker", "/var/lib/containerd", "")
			if dir != "" && (filepath.Clean(dir) != dir || !strings.HasPrefix(dir, "/var/lib/docker/") && !strings.HasPrefix(dir, "/var/lib/containerd/")) {
				t.Errorf("upper directory %q, which is outside of the roots, from %q", dir, text)
			}
		}
	})
}
