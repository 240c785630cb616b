package restore

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"

	"berth/core/image/pinning"
	"berth/core/ociedit"
)

const (
	id       = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	imageRef = "registry.example.com/app@sha256:" + id
	config   = `{"id":"x","rootfsImage":"app:1","rootfsImageName":"registry.example.com/app:1","rootfsImageRef":"` + imageRef + `"}`
	spec     = `{"process":{"args":["sh","-c","loop"],"capabilities":{"bounding":["CAP_SYS_ADMIN"]}},"root":{"readonly":true},"mounts":[{"destination":"/proc","type":"proc","source":"proc","options":["nosuid"]}],` +
		`"linux":{"namespaces":[{"type":"network","path":"/proc/1/ns/net"},{"type":"mount"}],"maskedPaths":["/proc/kcore"],"readonlyPaths":["/proc/sys"],"seccomp":{}}}`
)

// A thread is what an image core-<ID>.img has.
type thread struct {
	effective uint64
	packed    bool
	seccomp   uint64
	noNewPriv uint64
	user      uint64 // saved one; the others are 1000
	without   string // part that is left out
	twice     bool
	state     uint64
}

func (h thread) image() string {
	var creds []byte
	for field := protowire.Number(1); field <= 8; field++ {
		user := uint64(1000)
		if field == 5 {
			user = h.user
		}
		creds = protowire.AppendVarint(protowire.AppendTag(creds, field, protowire.VarintType), user)
	}
	words := []uint64{h.effective & (1<<32 - 1), h.effective >> 32}
	if h.packed {
		packed := protowire.AppendVarint(protowire.AppendVarint(nil, words[0]), words[1])
		creds = protowire.AppendBytes(protowire.AppendTag(creds, 11, protowire.BytesType), packed)
	} else {
		for _, w := range words {
			creds = protowire.AppendVarint(protowire.AppendTag(creds, 11, protowire.VarintType), w)
		}
	}
	creds = protowire.AppendVarint(protowire.AppendTag(creds, 18, protowire.VarintType), h.noNewPriv)
	var inner []byte
	if h.without != "creds" {
		inner = protowire.AppendBytes(protowire.AppendTag(inner, 10, protowire.BytesType), creds)
	}
	if h.twice {
		inner = protowire.AppendBytes(protowire.AppendTag(inner, 10, protowire.BytesType), nil)
	}
	inner = protowire.AppendVarint(protowire.AppendTag(inner, 11, protowire.VarintType), h.seccomp)
	task := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), max(h.state, 1))
	entry := protowire.AppendBytes(protowire.AppendTag(nil, 3, protowire.BytesType), task)
	if h.without != "thread" {
		entry = protowire.AppendBytes(protowire.AppendTag(entry, 5, protowire.BytesType), inner)
	}
	head := binary.LittleEndian.AppendUint32(nil, commonMagic)
	head = binary.LittleEndian.AppendUint32(head, coreMagic)
	head = binary.LittleEndian.AppendUint32(head, uint32(len(entry)))
	return string(head) + string(entry)
}

// An entry is a file of an archive. Without a type it is a regular file.
type entry struct {
	name, text string
	kind       byte
	link       string
}

// checkpointFiles are those of a checkpoint.
func checkpointFiles() []entry {
	var diff bytes.Buffer
	w := tar.NewWriter(&diff)
	_ = w.WriteHeader(&tar.Header{Name: "n", Typeflag: tar.TypeReg, Mode: 0o600})
	_ = w.Close()
	return []entry{
		{name: "config.dump", text: config}, {name: "spec.dump", text: spec}, {name: "status.dump", text: "{}"}, {name: "deleted.files", text: `["/etc/group"]`},
		{name: "dump.log", text: "log"}, {name: "checkpoint/", kind: tar.TypeDir}, {name: "checkpoint/inventory.img", text: "i"},
		{name: "checkpoint/descriptors.json", text: `["/dev/null","pipe:[1]","pipe:[2]"]`},
		{name: "checkpoint/core-1.img", text: thread{effective: 1 << 10, seccomp: 2, noNewPriv: 1, user: 1000}.image()},
		{name: "checkpoint/core-2.img", text: thread{effective: 1<<3 | 1<<39, packed: true, seccomp: 2, noNewPriv: 1}.image()},
		{name: "checkpoint/core-3.img", text: thread{without: "thread", state: stateDead}.image()},
		{name: "checkpoint/pages-1.img", text: strings.Repeat("memory", 1000)}, {name: "rootfs-diff.tar", text: diff.String()},
	}
}

// with replaces or adds an entry.
func with(files []entry, e entry) []entry {
	at := slices.IndexFunc(files, func(f entry) bool { return f.name == e.name })
	if at < 0 {
		return append(files, e)
	}
	files[at] = e
	return files
}

func archive(t testing.TB, files []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Typeflag: f.kind, Linkname: f.link, Mode: 0o600, Size: int64(len(f.text))}
		if f.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type fixture struct {
	*testing.T
	*Store
	archives string
}

func newFixture(t *testing.T) *fixture {
	archives := filepath.Join(t.TempDir(), "archives")
	if err := os.Mkdir(archives, 0o700); err != nil {
		t.Fatal(err)
	}
	patterns, err := pinning.ParsePatterns([]string{"registry.example.com/checkpoints/*"})
	if err != nil {
		t.Fatal(err)
	}
	return &fixture{t, New(Config{ArchiveDir: archives, Images: patterns}, filepath.Join(t.TempDir(), "restores"), slog.New(slog.DiscardHandler)), archives}
}

func (f *fixture) put(name string, text []byte) string {
	f.Helper()
	path := filepath.Join(f.archives, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		f.Fatal(err)
	}
	return path
}

// left returns the directories of the Store.
func (f *fixture) left() []string {
	f.Helper()
	names, err := f.directories()
	if err != nil {
		f.Fatal(err)
	}
	return names
}

func TestCheckpointOfAnArchive(t *testing.T) {
	f := newFixture(t)
	path := f.put("a.tar", archive(t, checkpointFiles()))
	c, err := f.OpenArchive(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if c.Image != imageRef || c.Name != "registry.example.com/app:1" || strings.Join(c.Args, " ") != "sh -c loop" {
		t.Errorf("%+v", c)
	}
	files, err := f.Unpack(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	want := &ociedit.Restore{
		Dir: files.path(), Mounts: []ociedit.RestoredMount{{Destination: "/proc", Type: "proc", Options: []string{"nosuid"}}},
		Namespaces: []ociedit.RestoredNamespace{{Type: "network", Joined: true}, {Type: "mount"}}, MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"}, ReadonlyRoot: true,
		Capabilities: 1<<10 | 1<<3 | 1<<39, Root: true, Seccomp: true, NoNewPrivileges: true, // of the images, not of the spec
	}
	if diff := cmp.Diff(want, c.Restore); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var names []string
	err = filepath.WalkDir(files.path(), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		name, _ := filepath.Rel(files.path(), path)
		names = append(names, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(names, " "); got != ". checkpoint checkpoint/core-1.img checkpoint/core-2.img checkpoint/core-3.img checkpoint/descriptors.json checkpoint/inventory.img checkpoint/pages-1.img deleted.files rootfs-diff.tar" {
		t.Error(got)
	}
}

// What an archive may not have is refused, and nothing is left of it.
func TestHostileArchives(t *testing.T) {
	core := func(h thread) func([]entry) []entry {
		return func(files []entry) []entry { return with(files, entry{name: "checkpoint/core-2.img", text: h.image()}) }
	}
	add := func(e entry) func([]entry) []entry {
		return func(files []entry) []entry { return append(files, e) }
	}
	set := func(e entry) func([]entry) []entry { return func(files []entry) []entry { return with(files, e) } }
	for name, test := range map[string]struct {
		change func([]entry) []entry
		want   string
	}{
		"no config":             {func(files []entry) []entry { return files[1:] }, "config.dump is missing or not JSON"},
		"no spec":               {func(files []entry) []entry { return slices.Delete(files, 1, 2) }, "spec.dump is missing or not JSON"},
		"config twice":          {add(entry{name: "./config.dump", text: config}), "is there twice"},
		"config is a link":      {set(entry{name: "config.dump", kind: tar.TypeSymlink, link: "/etc/passwd"}), "not a regular file"},
		"config is a directory": {set(entry{name: "config.dump", kind: tar.TypeDir}), "not a regular file"},
		"huge spec":             {set(entry{name: "spec.dump", text: strings.Repeat(" ", maxMetadata+1)}), "has more than"},
		"much of a spec":        {set(entry{name: "spec.dump", text: `{"process":{"args":["` + strings.Repeat("x", ociedit.MaxSize) + `"]}}`}), "bytes of arguments, mounts and paths"},
		"no image":              {set(entry{name: "config.dump", text: "{}"}), `image ""`},
		"image is a path":       {set(entry{name: "config.dump", text: `{"rootfsImage":"/etc/passwd"}`}), "/etc/passwd"},
		"no arguments":          {set(entry{name: "spec.dump", text: "{}"}), "no command line"},
		"terminal":              {set(entry{name: "spec.dump", text: `{"process":{"args":["a"],"terminal":true}}`}), "has a terminal"},
		"user namespace":        {set(entry{name: "spec.dump", text: `{"process":{"args":["a"]},"linux":{"namespaces":[{"type":"user"}]}}`}), "has a user namespace"},
		"no images of CRIU":     {func(files []entry) []entry { return slices.Concat(files[:5], files[12:]) }, "there are no images of CRIU"},
		"no processes":          {func(files []entry) []entry { return slices.Concat(files[:8], files[11:]) }, "there are no images of processes"},
		"parent":                {add(entry{name: "checkpoint/../../evil", text: "x"}), ""},
		"parent in the middle":  {add(entry{name: "checkpoint/../checkpoint/../../x", text: "x"}), ""},
		"nested":                {add(entry{name: "checkpoint/a/b", text: "x"}), "is not a name of CRIU's images"},
		"hidden":                {add(entry{name: "checkpoint/.x", text: "x"}), "is not a name of CRIU's images"},
		"odd name":              {add(entry{name: "checkpoint/a\nb", text: "x"}), "is not a name of CRIU's images"},
		"symbolic link":         {add(entry{name: "checkpoint/l", kind: tar.TypeSymlink, link: "/etc/shadow"}), "is not a regular file"},
		"images are a link":     {set(entry{name: "checkpoint/", kind: tar.TypeSymlink, link: "/etc"}), "is not a regular file"},
		"hard link":             {add(entry{name: "checkpoint/l", kind: tar.TypeLink, link: "/etc/shadow"}), "is not a regular file"},
		"device":                {add(entry{name: "checkpoint/d", kind: tar.TypeBlock}), "is not a regular file"},
		"FIFO":                  {set(entry{name: "rootfs-diff.tar", kind: tar.TypeFifo}), "is not a regular file"},
		"files are a directory": {add(entry{name: "rootfs-diff.tar/x", text: "x"}), "is below a file"},
		"image twice":           {add(entry{name: "checkpoint//inventory.img", text: "x"}), "is there twice"},
		"old credentials":       {add(entry{name: "checkpoint/creds-1.img", text: "x"}), "images of CRIU before 2.0"},
		"no core":               {set(entry{name: "checkpoint/core-2.img", text: "x"}), "core-2.img: no image of a process"},
		"two cores in one":      {set(entry{name: "checkpoint/core-2.img", text: thread{}.image() + thread{}.image()}), "with more than one entry"},
		"no thread":             {core(thread{without: "thread"}), "a process without a thread"},
		"no credentials":        {core(thread{without: "creds"}), "a thread without credentials"},
		"credentials twice":     {core(thread{twice: true}), "is there twice"},
		"descriptors of runc":   {set(entry{name: "checkpoint/descriptors.json", text: `["","","","pipe:[1]"]`}), "more than three files"},
		"no descriptors":        {set(entry{name: "checkpoint/descriptors.json", text: "{"}), "descriptors.json: "},
		"bad deleted files":     {set(entry{name: "deleted.files", text: `["/../x"]`}), "not below the root directory"},
		"bad changed files":     {set(entry{name: "rootfs-diff.tar", text: strings.Repeat("x", 2000)}), "no tar archive"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			c, err := f.OpenArchive(t.Context(), f.put("a.tar", archive(t, test.change(checkpointFiles()))))
			if err == nil {
				_, err = f.Unpack(t.Context(), c)
			}
			if test.want == "" { // outside of what is read
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || !errdefs.IsInvalidArgument(err) && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("%v, want %q", err, test.want)
			}
			if left := f.left(); len(left) > 0 {
				t.Errorf("left %q", left)
			}
		})
	}
}

func TestTruncatedArchivesLeaveNothing(t *testing.T) {
	f := newFixture(t)
	text := archive(t, checkpointFiles())
	for size := 0; size < len(text)-endOfArchive; size += 256 { // rootfs-diff.tar, the last file, ends as the archive does
		c, err := f.OpenArchive(t.Context(), f.put("a.tar", text[:size]))
		if err == nil {
			_, err = f.Unpack(t.Context(), c)
		}
		if err == nil {
			t.Errorf("an archive of %d of %d bytes is accepted", size, len(text))
		}
		if left := f.left(); len(left) > 0 {
			t.Fatalf("left %q", left)
		}
	}
	for name, text := range map[string][]byte{"gzip": {0x1f, 0x8b, 8, 0, 0, 0, 0, 0}, "garbage": bytes.Repeat([]byte("garbage "), 500)} {
		if _, err := f.OpenArchive(t.Context(), f.put("a.tar", text)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// containerd 2.3 compresses the changed files.
func TestCompressedChangesAreDecompressed(t *testing.T) {
	f := newFixture(t)
	entries := checkpointFiles()
	changes := &entries[len(entries)-1]
	plain := changes.text
	compress := func(text string) string {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = io.WriteString(w, text)
		_ = w.Close()
		return b.String()
	}
	unpack := func(text string) (string, error) {
		changes.text = text
		c, err := f.OpenArchive(t.Context(), f.put("a.tar", archive(t, entries)))
		if err != nil {
			t.Fatal(err)
		}
		files, err := f.Unpack(t.Context(), c)
		if err != nil {
			return "", err
		}
		defer files.Release()
		defer files.Remove()
		if _, err := os.Stat(filepath.Join(files.path(), decompressed)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", decompressed, err)
		}
		got, err := os.ReadFile(filepath.Join(files.path(), ociedit.RestoreFiles))
		return string(got), err
	}
	for name, text := range map[string]string{"plain": plain, "compressed": compress(plain)} {
		if got, err := unpack(text); err != nil || got != plain {
			t.Errorf("%s: %d bytes, %v, want %d", name, len(got), err, len(plain))
		}
	}
	good := compress(plain)
	for name, text := range map[string]string{
		"truncated": good[:len(good)-9], "without data": good[:10], "only magic": good[:2], "twice compressed": compress(good), "no archive": compress("x"),
	} {
		if _, err := unpack(text); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want InvalidArgument", name, err)
		}
		if left := f.left(); len(left) > 0 {
			t.Errorf("%s: left %q", name, left)
		}
	}
}

func TestOnlyArchivesBelowTheDirectory(t *testing.T) {
	f := newFixture(t)
	good := archive(t, checkpointFiles())
	path := f.put("a.tar", good)
	outside := filepath.Join(t.TempDir(), "a.tar")
	if err := errors.Join(os.WriteFile(outside, good, 0o600), os.Symlink(outside, filepath.Join(f.archives, "link")), os.Symlink(filepath.Dir(outside), filepath.Join(f.archives, "dir")),
		os.Mkdir(filepath.Join(f.archives, "sub"), 0o700), os.WriteFile(filepath.Join(f.archives, "sub", "a.tar"), good, 0o600), unix.Mkfifo(filepath.Join(f.archives, "fifo"), 0o600),
		os.WriteFile(filepath.Join(f.archives, "open"), good, 0o600), os.Chmod(filepath.Join(f.archives, "open"), 0o666)); err != nil {
		t.Fatal(err)
	}
	for name, is := range map[string]func(error) bool{
		path: nil, filepath.Join(f.archives, "sub/a.tar"): nil,
		outside: errdefs.IsInvalidArgument, f.archives: errdefs.IsInvalidArgument, f.archives + "/": errdefs.IsInvalidArgument, f.archives + "x/a.tar": errdefs.IsInvalidArgument,
		f.archives + "/../archives/a.tar": errdefs.IsInvalidArgument, f.archives + "//a.tar": errdefs.IsInvalidArgument, f.archives + "/a.tar\x00": errdefs.IsInvalidArgument,
		f.archives + "/link": errdefs.IsInvalidArgument, f.archives + "/dir/a.tar": errdefs.IsInvalidArgument, f.archives + "/sub": errdefs.IsInvalidArgument, f.archives + "/fifo": errdefs.IsInvalidArgument,
		f.archives + "/none": errdefs.IsNotFound, f.archives + "/open": errdefs.IsFailedPrecondition,
	} {
		if _, err := f.OpenArchive(t.Context(), name); is == nil && err != nil || is != nil && !is(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
	c, err := f.OpenArchive(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	f.put("a.tar", append(good, make([]byte, 512)...))
	if _, err := f.Unpack(t.Context(), c); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("an archive that was changed: %v", err)
	}
	if err := os.Chmod(f.archives, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := f.OpenArchive(t.Context(), path); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a directory that others can change: %v", err)
	}
	for _, off := range []*Store{nil, New(Config{}, t.TempDir(), slog.New(slog.DiscardHandler))} {
		if _, err := off.OpenArchive(t.Context(), path); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), ArchiveDirOption) {
			t.Errorf("without the option: %v", err)
		}
	}
}

func TestOpenImage(t *testing.T) {
	f := newFixture(t)
	files := checkpointFiles()
	walk := func(_ context.Context, _ string, names []string, visit func(*tar.Header, io.Reader) error) error {
		return walk(t.Context(), bytes.NewReader(archive(t, files)), names, visit)
	}
	listed, other := []string{"registry.example.com/checkpoints/a:1"}, []string{"registry.example.com/a:1"}
	for name, test := range map[string]struct {
		image Image
		store *Store
		found bool
		err   bool
	}{
		"marked and listed":   {Image{Names: listed, HasMark: true}, f.Store, true, false},
		"listed":              {Image{Names: listed}, f.Store, true, false},
		"with a command":      {Image{Names: listed, HasMark: true, HasCommand: true}, f.Store, false, false},
		"marked":              {Image{Names: other, HasMark: true}, f.Store, false, true},
		"neither":             {Image{Names: other}, f.Store, false, false},
		"no name":             {Image{HasMark: true}, f.Store, false, true},
		"marked, no options":  {Image{Names: listed, HasMark: true}, nil, false, true},
		"ordinary, no option": {Image{Names: listed}, nil, false, false},
	} {
		test.image.Size, test.image.Walk = 1<<20, walk
		c, err := test.store.OpenImage(t.Context(), test.image)
		if (c != nil) != test.found || (err != nil) != test.err || err != nil && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), ImagesOption)) {
			t.Errorf("%s: %v, %v", name, c, err)
		}
		if c == nil {
			continue
		}
		unpacked, err := f.Unpack(t.Context(), c)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if err := unpacked.Remove(); err != nil {
			t.Error(err)
		}
	}
	small, err := f.OpenImage(t.Context(), Image{Names: listed, Walk: walk, Size: -1 << 19})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Unpack(t.Context(), small); err == nil || !strings.Contains(err.Error(), "more bytes than the whole checkpoint") {
		t.Errorf("files larger than their image: %v", err)
	}
	if left := f.left(); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}

// unpack returns the files of a checkpoint that belong to the container id, if it is not empty.
func (f *fixture) unpack(id string) *Files {
	f.Helper()
	c, err := f.OpenArchive(f.Context(), f.put("a.tar", archive(f, checkpointFiles())))
	if err != nil {
		f.Fatal(err)
	}
	files, err := f.Unpack(f.Context(), c)
	if err == nil && id != "" {
		err = files.Bind(id)
	}
	if err != nil {
		f.Fatal(err)
	}
	return files
}

func TestGCRemovesWhatNoContainerNeeds(t *testing.T) {
	f := newFixture(t)
	other := strings.Repeat("f", 64)
	for _, owner := range []string{"", id, other, "", id} {
		f.unpack(owner).Release()
	}
	creating := f.unpack("")
	if err := os.Mkdir(filepath.Join(f.dir, "EMPTY"), 0o700); err != nil { // killed right after mkdir
		t.Fatal(err)
	}
	state := map[string]container.ContainerState{id: container.StateCreated}
	inspect := func(_ context.Context, id string) (container.InspectResponse, error) {
		s, ok := state[id]
		if !ok {
			return container.InspectResponse{}, errdefs.ErrNotFound
		}
		return container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{State: &container.State{Status: s, Running: s == container.StateRunning}}}, nil
	}
	for _, step := range []struct {
		state container.ContainerState
		left  int
	}{{container.StateCreated, 3}, {container.StateRunning, 1}, {container.StateExited, 1}} {
		state[id] = step.state
		if err := f.GC(t.Context(), inspect); err != nil {
			t.Fatal(err)
		}
		if left := f.left(); len(left) != step.left {
			t.Errorf("container %s: left %q", step.state, left)
		}
	}
	begun := f.unpack(id)
	begun.Release()
	state[id] = container.StateCreated
	work := filepath.Join(begun.path(), ociedit.RestoreWork)
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, age := range []time.Duration{0, abandonedAfter + time.Minute} {
		if err := errors.Join(os.Chtimes(work, time.Time{}, time.Now().Add(-age)), f.GC(t.Context(), inspect)); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(work); (err == nil) != (age == 0) {
			t.Errorf("a restore that has begun %v ago: %v", age, err)
		}
	}
	creating.Release()
	down := errors.New("docker is down")
	bound := f.unpack(id)
	bound.Release()
	if err := f.GC(t.Context(), func(context.Context, string) (container.InspectResponse, error) {
		return container.InspectResponse{}, down
	}); !errors.Is(err, down) {
		t.Error(err)
	}
	if left := f.left(); len(left) != 1 || left[0] != bound.name {
		t.Errorf("docker is down: left %q", left)
	}
	if err := (*Store)(nil).GC(t.Context(), inspect); err != nil {
		t.Error(err)
	}
}

func TestStarted(t *testing.T) {
	f := newFixture(t)
	if err := f.Started(t.Context(), id, nil, nil); err != nil {
		t.Error("a container that is not restored:", err)
	}
	f.unpack(id).Release()
	if err := f.Started(t.Context(), id, nil, nil); err != nil || len(f.left()) > 0 {
		t.Errorf("%v, left %q", err, f.left())
	}
	files := f.unpack(id)
	work := filepath.Join(files.path(), ociedit.RestoreWork)
	if err := errors.Join(os.Mkdir(work, 0o700), os.WriteFile(filepath.Join(work, ociedit.RestoreLog), fmt.Appendf(nil,
		"(00.1) ok\n(00.2) Error (criu/mount.c:1): mnt: no %s/x and /var/lib/volume/secret\n(00.3) Error (criu/cr-restore.c:2): Restoring FAILED.\n", files.path()), 0o600)); err != nil {
		t.Fatal(err)
	}
	failed := fmt.Errorf("task: %w", errdefs.ErrInvalidArgument)
	err := f.Started(t.Context(), id, failed, []string{"/var/lib/volume", "/data"})
	want := "CRIU cannot restore the container: Error (criu/mount.c:1): mnt: no /x and /data/secret: task: invalid argument"
	if err == nil || err.Error() != want || !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v, want %s", err, want)
	}
	if left := f.left(); len(left) > 0 {
		t.Errorf("left %q", left)
	}
	f.unpack(id).Release()
	if err := f.Started(t.Context(), id, failed, nil); err == nil || err.Error() != failed.Error() {
		t.Errorf("without a log: %v", err)
	}
	for path, want := range map[string]bool{"/docker/" + id: true, "/docker/other": false} {
		files := f.unpack(id)
		if err := os.WriteFile(filepath.Join(files.path(), ociedit.RestoreCgroup), []byte(path), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := f.Remove(t.Context(), id); (err == nil) != want {
			t.Errorf("cgroup %s: %v", path, err)
		}
		if err := files.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	f.unpack(id).Release()
	if err := f.Remove(t.Context(), id); err != nil || len(f.left()) > 0 {
		t.Errorf("%v, left %q", err, f.left())
	}
}

// After a failed start Docker shows the container as created, which is otherwise one whose restore is to come.
func TestFilesThatAFailedStartCouldNotRemoveAreRemovedByGC(t *testing.T) {
	f := newFixture(t)
	files := f.unpack(id)
	files.Release()
	group := filepath.Join(files.path(), ociedit.RestoreCgroup)
	if err := errors.Join(os.Mkdir(filepath.Join(files.path(), ociedit.RestoreWork), 0o700), os.WriteFile(group, []byte("/docker/other"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := f.Started(t.Context(), id, errors.New("task"), nil); err == nil || len(f.left()) != 1 {
		t.Fatalf("%v, left %q", err, f.left())
	}
	if err := os.WriteFile(group, []byte("/docker/"+id), 0o600); err != nil {
		t.Fatal(err)
	}
	err := f.GC(t.Context(), func(context.Context, string) (container.InspectResponse, error) {
		return container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{State: &container.State{Status: container.StateCreated}}}, nil
	})
	if left := f.left(); err != nil || len(left) > 0 {
		t.Errorf("%v, left %q", err, left)
	}
}

// What one process has is what the checkpoint has.
func TestPrivilegesOfProcesses(t *testing.T) {
	for name, test := range map[string]struct {
		threads []thread
		want    processes
	}{
		"none":              {[]thread{{seccomp: 2, noNewPriv: 1, user: 1}, {seccomp: 1, noNewPriv: 1, user: 1}}, processes{seccomp: true, noNewPrivileges: true}},
		"root":              {[]thread{{seccomp: 2, noNewPriv: 1, user: 1}, {seccomp: 2, noNewPriv: 1}}, processes{root: true, seccomp: true, noNewPrivileges: true}},
		"one without":       {[]thread{{seccomp: 2, noNewPriv: 1, user: 1}, {user: 1}}, processes{}},
		"capabilities":      {[]thread{{effective: 1 << 63, user: 1}, {effective: 1, packed: true, user: 1}}, processes{capabilities: 1<<63 | 1}},
		"exited and living": {[]thread{{without: "thread", state: stateZombie}, {user: 1, noNewPriv: 1}}, processes{noNewPrivileges: true}},
	} {
		dir := t.TempDir()
		for i, h := range test.threads {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("core-%d.img", i)), []byte(h.image()), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := readProcesses(dir); err != nil || got != test.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, test.want)
		}
	}
}

func FuzzReadCore(fz *testing.F) {
	fz.Add([]byte(thread{effective: 1 << 40, packed: true}.image()))
	fz.Add([]byte(thread{effective: 1 << 40, without: "creds"}.image()))
	fz.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "core-1.img"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = readProcesses(dir)
	})
}
