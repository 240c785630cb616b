package state_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/state"
)

type record struct{ Name string }

// newBucket returns a bucket and its directory.
func newBucket(t testing.TB) (*state.Bucket[record], string) {
	t.Helper()
	dir := t.TempDir()
	s, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := state.OpenBucket[record](s, "pods")
	if err != nil {
		t.Fatal(err)
	}
	return b, filepath.Join(dir, "v1", "pods")
}

func TestRecordsOfAnyKeyRoundTrip(t *testing.T) {
	b, _ := newBucket(t)
	keys := []string{"short", strings.Repeat("long", 100), "a/b", ".hidden", ""}
	for _, key := range keys {
		if err := b.Put(key, record{key}); err != nil {
			t.Fatal(err)
		}
	}
	names, err := b.Keys()
	if err != nil || len(names) != len(keys) {
		t.Errorf("Names() = %q, %v; want %d", names, err, len(keys))
	}
	var byName []string
	for _, name := range names {
		got, ok, err := b.Get(name)
		if err != nil || !ok {
			t.Errorf("no record with the name %q", name)
		}
		byName = append(byName, got.Name)
	}
	for _, key := range keys {
		if got, ok, err := b.Get(key); err != nil || !ok || got.Name != key || !slices.Contains(byName, key) {
			t.Errorf("got %+v for %q", got, key)
		}
		if err := b.Delete(key); err != nil {
			t.Error(err)
		}
		if _, ok, err := b.Get(key); err != nil || ok {
			t.Errorf("%q exists after Delete", key)
		}
		if err := b.Delete(key); err != nil {
			t.Errorf("second Delete: %v", err)
		}
	}
}

func TestProtoBucketIgnoresUnknownFieldsAndTornRecords(t *testing.T) {
	dir := t.TempDir()
	s, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	limits, err := state.OpenProtoBucket[*runtimeapi.LinuxContainerResources](s, "limits")
	if err != nil {
		t.Fatal(err)
	}
	if err := limits.Put("put", &runtimeapi.LinuxContainerResources{CpuShares: 7}); err != nil {
		t.Fatal(err)
	}
	if got, ok, err := limits.Get("put"); err != nil || !ok || got.GetCpuShares() != 7 {
		t.Errorf("got %v, %t, want 7", got, ok)
	}
	for name, text := range map[string]string{"later": `{"cpuShares":"5","new":{}}`, "empty": "", "torn": `{"cpuShares":"5`} {
		if err := os.WriteFile(filepath.Join(dir, "v1", "limits", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, ok, err := limits.Get("later"); err != nil || !ok || got.GetCpuShares() != 5 {
		t.Errorf("got %v, %t, want 5", got, ok)
	}
	for _, key := range []string{"empty", "torn", "missing"} {
		if got, ok, err := limits.Get(key); err != nil || ok || got != nil {
			t.Errorf("%s: got %v, %t, want none", key, got, ok)
		}
	}
}

func TestTornRecordReadsAsAbsent(t *testing.T) {
	b, dir := newBucket(t)
	for name, text := range map[string]string{"empty": "", "torn": `{"Name":"we`, "of another type": `{"Name":["web"]}`, ".torn": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"empty", "torn", "of another type"} {
		if got, ok, err := b.Get(name); err != nil || ok || got != (record{}) {
			t.Errorf("%s: got %+v, %t, want none", name, got, ok)
		}
	}
	if names, _ := b.Keys(); len(names) != 3 {
		t.Errorf("Names() = %q, want all but the hidden one", names)
	}
}

// For lack of file descriptors, for example: who takes such a record for absent drops what a pod has.
func TestRecordThatCannotBeReadIsNotAbsent(t *testing.T) {
	b, dir := newBucket(t)
	if err := os.Mkdir(filepath.Join(dir, "unreadable"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, ok, err := b.Get("unreadable"); err == nil || ok {
		t.Errorf("got %+v, %t, %v, want an error", got, ok, err)
	}
}

func TestNilBucketIsEmpty(t *testing.T) {
	var b *state.Bucket[record]
	if got, ok, err := b.Get("key"); err != nil || ok {
		t.Errorf("got %+v", got)
	}
}

func TestOpenBucketRemovesTempFilesOfInterruptedPuts(t *testing.T) {
	_, dir := newBucket(t)
	for _, name := range []string{".torn", ".key.123"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := state.Open(filepath.Dir(filepath.Dir(dir)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := state.OpenBucket[record](s, "pods"); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

func TestFailedPutLeavesNoTempFile(t *testing.T) {
	b, dir := newBucket(t)
	if err := os.MkdirAll(filepath.Join(dir, "taken", "by a directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := b.Put("taken", record{}); err == nil {
		t.Error("no error")
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

func TestMoveRecordsReplacesAndKeepsOthers(t *testing.T) {
	dir := t.TempDir()
	s, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	isNew := func(data []byte) bool { return strings.Contains(string(data), "new") }
	if err := s.MoveRecords("old", "pods", isNew); err != nil {
		t.Errorf("without a bucket: %v", err)
	}
	old, err := state.OpenBucket[record](s, "old")
	if err != nil {
		t.Fatal(err)
	}
	pods, err := state.OpenBucket[record](s, "pods")
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("long", 100)
	for key, name := range map[string]string{"a": "new a", "b": "b", long: "new long"} {
		if err := old.Put(key, record{name}); err != nil {
			t.Fatal(err)
		}
	}
	if err := pods.Put("a", record{"earlier a"}); err != nil {
		t.Fatal(err)
	}
	if err := s.MoveRecords("old", "pods", isNew); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"a": "new a", "b": "", long: "new long"} {
		if got, _, _ := pods.Get(key); got.Name != want {
			t.Errorf("%.8s: got %q, want %q", key, got.Name, want)
		}
	}
	if names, err := old.Keys(); err != nil || !slices.Equal(names, []string{"b"}) {
		t.Errorf("left in the old bucket: %q, %v, want b", names, err)
	}
}

func TestDeleteOfMissingKeyOnReadOnlyFileSystem(t *testing.T) {
	b, dir := newBucket(t)
	if err := unix.Mount("state", dir, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Skip("mount needs privileges:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := b.Delete("key"); err != nil {
		t.Error(err)
	}
}

func BenchmarkPut(b *testing.B) {
	bucket, _ := newBucket(b)
	for b.Loop() {
		if err := bucket.Put("k8s_POD_web_default_0", record{"k8s_POD_web_default_0"}); err != nil {
			b.Fatal(err)
		}
	}
}
