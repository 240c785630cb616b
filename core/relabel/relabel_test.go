package relabel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestSetLabelsRelabelsMarkedMounts(t *testing.T) {
	dir := t.TempDir()
	data, link := filepath.Join(dir, "data"), filepath.Join(dir, "link")
	if err := errors.Join(os.Mkdir(data, 0o755), os.Symlink(data, link)); err != nil {
		t.Fatal(err)
	}
	const label = "system_u:object_r:container_file_t:s0:c1,c2"
	denied := errors.New("not allowed")
	for name, tt := range map[string]struct {
		mounts []*runtimeapi.Mount
		label  string
		fails  error
		want   []string
		err    error
	}{
		"no mount asks for it":          {[]*runtimeapi.Mount{{HostPath: data}}, label, denied, nil, nil},
		"one of two mounts asks for it": {[]*runtimeapi.Mount{{HostPath: data, SelinuxRelabel: true}, {HostPath: dir}}, label, nil, []string{data}, nil},
		"symbolic link is resolved":     {[]*runtimeapi.Mount{{HostPath: link, SelinuxRelabel: true}}, label, nil, []string{data}, nil},
		"image volume is skipped":       {[]*runtimeapi.Mount{{Image: &runtimeapi.ImageSpec{Image: "files:1"}, SelinuxRelabel: true}}, label, denied, nil, nil},
		"no label":                      {[]*runtimeapi.Mount{{HostPath: data, SelinuxRelabel: true}}, "", denied, nil, nil},
		"file system without labels":    {[]*runtimeapi.Mount{{HostPath: data, SelinuxRelabel: true}}, label, unix.ENOTSUP, []string{data}, nil},
		"refused":                       {[]*runtimeapi.Mount{{HostPath: data, SelinuxRelabel: true}}, label, denied, []string{data}, denied},
		"path does not exist":           {[]*runtimeapi.Mount{{HostPath: dir + "/none", SelinuxRelabel: true}}, label, nil, nil, fs.ErrNotExist},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			err := setLabels(tt.mounts, tt.label, func(path, l string, shared bool) error {
				if l != label || shared {
					t.Errorf("label %q, shared %v", l, shared)
				}
				got = append(got, path)
				if tt.fails != nil {
					return fmt.Errorf("chcon: %w", tt.fails)
				}
				return nil
			})
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !errors.Is(err, tt.err) {
				t.Errorf("err = %v, want %v", err, tt.err)
			}
		})
	}
}
