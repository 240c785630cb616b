package checkpoint

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// written are files of cri-dockerd 0.4.3.
var written = map[string]struct {
	means Checkpoint
	text  string
}{
	"no ports": {
		Checkpoint{Name: "web-0", Namespace: "default"},
		`{"version":"v1","name":"web-0","namespace":"default","data":{},"checksum":2305795928}`,
	},
	"host network": {
		Checkpoint{Name: "web-0", Namespace: "default", HostNetwork: true},
		`{"version":"v1","name":"web-0","namespace":"default","data":{"host_network":true},"checksum":12315789}`,
	},
	"two ports": {
		Checkpoint{Name: "web-0", Namespace: "default", Ports: []Port{
			{Protocol: "tcp", ContainerPort: 80, HostPort: 8080}, {Protocol: "udp", ContainerPort: 53, HostPort: 5353, HostIP: "127.0.0.1"},
		}},
		`{"version":"v1","name":"web-0","namespace":"default","data":{"port_mappings":[{"protocol":"tcp","container_port":80,"host_port":8080},` +
			`{"protocol":"udp","container_port":53,"host_port":5353,"host_ip":"127.0.0.1"}]},"checksum":799796452}`,
	},
}

func TestEncodeAndDecodeFilesOfCriDockerd(t *testing.T) {
	for name, c := range written {
		t.Run(name, func(t *testing.T) {
			text, err := Encode(c.means)
			if err != nil || string(text) != c.text {
				t.Errorf("got  %s, %v\nwant %s", text, err, c.text)
			}
			means, err := Decode([]byte(c.text))
			if diff := cmp.Diff(c.means, means); err != nil || diff != "" {
				t.Errorf("%v, (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestDecodeIgnoresChecksumAndRefusesOtherFormats(t *testing.T) {
	// dockershim computes another checksum.
	if c, err := Decode([]byte(`{"version":"v1","name":"a","namespace":"b","data":{},"checksum":1}`)); err != nil || c.Name != "a" {
		t.Errorf("%v, %v", c, err)
	}
	for _, text := range []string{"", "{", "null", `{"version":"v2","name":"a"}`, `{"version":"v1"}`} {
		if c, err := Decode([]byte(text)); err == nil {
			t.Errorf("%q: got %v, want an error", text, c)
		}
	}
}

func TestDirWritesListsAndRemoves(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "sandbox"))
	id := strings.Repeat("0a", 32)
	if ids, err := d.IDs(); len(ids) != 0 || err != nil {
		t.Errorf("without a directory: %v, %v", ids, err)
	}
	want := written["two ports"].means
	if err := d.Write(id, want); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".123", "sandbox.123", id + ".123"} {
		if err := os.WriteFile(filepath.Join(string(d), name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := d.IDs(); err != nil || cmp.Diff([]string{id}, ids) != "" {
		t.Errorf("got %v, %v", ids, err)
	}
	if got, ok, err := d.Read(id); err != nil || !ok || cmp.Diff(want, got) != "" {
		t.Errorf("got %v, %t", got, ok)
	}
	for range 2 {
		if err := d.Remove(id); err != nil {
			t.Error(err)
		}
	}
	if _, ok, err := d.Read(id); err != nil || ok {
		t.Error("the checkpoint exists after Remove")
	}
}

func TestTempFilesOfInterruptedWritesAreFoundAndRemoved(t *testing.T) {
	id := strings.Repeat("0a", 32)
	for when, name := range map[string]string{"this release": "." + id + ".123", "berth 1.0": "." + id} {
		d := Dir(t.TempDir())
		if err := os.WriteFile(filepath.Join(string(d), name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if ids, err := d.IDs(); err != nil || cmp.Diff([]string{id}, ids) != "" {
			t.Errorf("%s: IDs = %v, %v", when, ids, err)
		}
		if err := d.Remove(id); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if left, err := os.ReadDir(string(d)); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", when, left, err)
		}
	}
}

func TestFailedWriteLeavesNoTempFile(t *testing.T) {
	d, id := Dir(t.TempDir()), strings.Repeat("0a", 32)
	if err := os.MkdirAll(filepath.Join(string(d), id, "a directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.Write(id, Checkpoint{Name: "web"}); err == nil {
		t.Error("no error")
	}
	if left, err := os.ReadDir(string(d)); err != nil || len(left) != 1 {
		t.Errorf("left %v, %v, want only the directory", left, err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, c := range written {
		f.Add([]byte(c.text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Decode(text)
		if err != nil {
			return
		}
		encoded, err := Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		if c2, err := Decode(encoded); err != nil || cmp.Diff(c, c2) != "" {
			t.Errorf("%v became %v, %v", c, c2, err)
		}
	})
}

func TestRemoveOfMissingCheckpointOnReadOnlyFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("checkpoints", dir, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Skip("mount needs privileges:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := Dir(dir).Remove(strings.Repeat("0123456789abcdef", 4)); err != nil {
		t.Errorf("Remove of a missing checkpoint: %v", err)
	}
}
