package rootdiff_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/core/rootdiff"
)

// archive returns a tar archive with the entries; regular files have their Linkname as content.
func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content, h.Linkname = h.Linkname, ""
			h.Size = int64(len(content))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		h.Uid, h.Gid, h.Format = h.Uid+os.Getuid(), h.Gid+os.Getgid(), tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, content string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Linkname: content}
}

// newRoot returns a directory with files of an image, and one beside it that must not change.
func newRoot(t testing.TB) (root *os.File, path, outside string) {
	t.Helper()
	dir := t.TempDir()
	path, outside = filepath.Join(dir, "root"), filepath.Join(dir, "outside")
	for _, d := range []string{path, outside, filepath.Join(path, "etc"), filepath.Join(path, "usr", "bin"), filepath.Join(path, "tree", "a", "b")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"root/etc/group", "root/etc/hosts", "root/usr/bin/sh", "root/tree/a/b/c", "outside/secret"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"bin": "usr/bin", "out": outside, "up": "../outside"} {
		if err := os.Symlink(target, filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, path, outside
}

func TestApplyMakesWhatTheContainerHad(t *testing.T) {
	root, path, _ := newRoot(t)
	at := time.Unix(1700000000, 0)
	text := archive(t,
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o700},
		tar.Header{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o750, ModTime: at},
		file("etc/hosts", "new"),
		tar.Header{Name: "etc/tool", Typeflag: tar.TypeReg, Linkname: "tool", Mode: 0o4755, ModTime: at, PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.a": "b"}},
		tar.Header{Name: "etc/link", Typeflag: tar.TypeSymlink, Linkname: "/outside"},
		tar.Header{Name: "etc/hard", Typeflag: tar.TypeLink, Linkname: "etc/tool"},
		tar.Header{Name: "etc/pipe", Typeflag: tar.TypeFifo, Mode: 0o622},
		file("tree", "a file in the place of a directory"),
		tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}, // in the place of a link
		file("bin/x", "x"),
		file("usr/bin/.wh.sh", ""),
	)
	if err := rootdiff.Check(bytes.NewReader(text), int64(len(text))); err != nil {
		t.Fatal(err)
	}
	if err := rootdiff.Apply(root, bytes.NewReader(text), int64(len(text))); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"etc/hosts": "new", "etc/tool": "tool", "etc/hard": "tool", "tree": "a file in the place of a directory", "bin/x": "x", "etc/group": "old"} {
		if got, err := os.ReadFile(filepath.Join(path, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	for name, want := range map[string]fs.FileMode{"etc": fs.ModeDir | 0o750, "etc/tool": fs.ModeSetuid | 0o755, "etc/pipe": fs.ModeNamedPipe | 0o622, "etc/link": fs.ModeSymlink | 0o777, "bin": fs.ModeDir | 0o755} {
		info, err := os.Lstat(filepath.Join(path, name))
		if err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", name, info.Mode(), err, want)
		}
		if (name == "etc" || name == "etc/tool") && !info.ModTime().Equal(at) {
			t.Errorf("%s: changed at %v", name, info.ModTime())
		}
	}
	if _, err := os.Lstat(filepath.Join(path, "usr/bin/sh")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file with a whiteout: %v", err)
	}
	value := make([]byte, 16)
	if n, err := unix.Getxattr(filepath.Join(path, "etc/tool"), "trusted.overlay.opaque", value); err == nil {
		t.Errorf("attribute of overlayfs: %q", value[:n])
	}
}

// Nothing outside of the root directory is read or written, and what cannot be restored is refused.
func TestApplyRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		entries []tar.Header
		want    string
		late    bool // only Apply can know
	}{
		"absolute":              {[]tar.Header{file("/etc/x", "")}, "is not below the root directory", false},
		"parent":                {[]tar.Header{file("../outside/secret", "new")}, "is not below the root directory", false},
		"hidden parent":         {[]tar.Header{file("etc/../../outside/secret", "new")}, "is not below the root directory", false},
		"through a link":        {[]tar.Header{file("out/secret", "new")}, "not a directory", true},
		"through a link up":     {[]tar.Header{file("up/secret", "new")}, "not a directory", true},
		"through an own link":   {[]tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/"}, file("l/x", "")}, "not a directory", true},
		"through a link inside": {[]tar.Header{file("bin/x", "")}, "not a directory", true},
		"through a file":        {[]tar.Header{file("etc/group/x", "")}, "not a directory", true},
		"hard link out":         {[]tar.Header{{Name: "x", Typeflag: tar.TypeLink, Linkname: "../outside/secret"}}, "is a hard link to", false},
		"hard link absolute":    {[]tar.Header{{Name: "x", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}}, "is a hard link to", false},
		"hard link by a link":   {[]tar.Header{{Name: "x", Typeflag: tar.TypeLink, Linkname: "out/secret"}}, "not a directory", true},
		"hard link to itself":   {[]tar.Header{{Name: "x", Typeflag: tar.TypeLink, Linkname: "x"}}, "no such file", true},
		"character device":      {[]tar.Header{{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1}}, "is a device node", false},
		"block device":          {[]tar.Header{{Name: "dev", Typeflag: tar.TypeBlock, Devmajor: 8}}, "is a device node", false},
		"whiteout of nothing":   {[]tar.Header{file("etc/.wh.", "")}, "deletes nothing", false},
		"whiteout of a parent":  {[]tar.Header{file("etc/.wh...", "")}, "deletes nothing", false},
		"opaque":                {[]tar.Header{file("etc/.wh..wh..opq", "")}, "opaque", false},
		"deep":                  {[]tar.Header{file(strings.Repeat("a/", 1001)+"x", "")}, "too long", false},
		"other type":            {[]tar.Header{{Name: "x", Typeflag: tar.TypeCont}}, "which is not supported", false},
		"empty symbolic link":   {[]tar.Header{{Name: "x", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("x", 5000)}}, "too long", false},
	} {
		t.Run(name, func(t *testing.T) {
			root, _, outside := newRoot(t)
			text := archive(t, test.entries...)
			err := rootdiff.Check(bytes.NewReader(text), int64(len(text)))
			if (err == nil) != test.late || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("Check: %v, want %q", err, test.want)
			}
			if err := rootdiff.Apply(root, bytes.NewReader(text), int64(len(text))); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Apply: %v, want %q", err, test.want)
			}
			entries, err := os.ReadDir(outside)
			if secret, readErr := os.ReadFile(filepath.Join(outside, "secret")); err != nil || readErr != nil || string(secret) != "old" || len(entries) != 1 {
				t.Errorf("outside: %q, %v, %v, %v", secret, entries, err, readErr)
			}
		})
	}
}

func TestArchivesThatAreNoArchives(t *testing.T) {
	good := archive(t, file("a", strings.Repeat("x", 2000)))
	// A sparse file of GNU tar (type S): a map of one part of one byte at 0, and a real size of 8 GiB.
	sparse := archive(t, file("a", "x"))
	copy(sparse[156:], "S")
	copy(sparse[257:], "ustar  \x00")
	copy(sparse[386:], "00000000000\x0000000000001\x00")
	copy(sparse[483:], "77777777777\x00")
	sum := 8 * int(' ')
	for i, c := range sparse[:512] {
		if i < 148 || i >= 156 {
			sum += int(c)
		}
	}
	copy(sparse[148:], fmt.Sprintf("%06o\x00 ", sum))
	for name, test := range map[string]struct {
		text []byte
		want string
	}{
		"truncated":  {good[:1000], "more bytes than the archive"},
		"compressed": {append([]byte{0x1f, 0x8b, 8, 0}, bytes.Repeat([]byte{1}, 1000)...), "no tar archive"},
		"garbage":    {bytes.Repeat([]byte("garbage "), 1000), "no tar archive"},
		"sparse":     {sparse, "more bytes than the archive"},
	} {
		root, path, _ := newRoot(t)
		err := rootdiff.Apply(root, bytes.NewReader(test.text), int64(len(test.text)))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		if info, err := os.Stat(filepath.Join(path, "a")); err == nil && info.Size() > int64(len(test.text)) {
			t.Errorf("%s: a file of %d bytes", name, info.Size())
		}
	}
}

func TestDelete(t *testing.T) {
	root, path, outside := newRoot(t)
	paths, err := rootdiff.ParseDeleted([]byte(`["/etc/group", "/tree", "/bin", "usr/bin/none", "/none/below", "/etc/hosts/below"]`))
	if err == nil {
		err = rootdiff.Delete(root, paths)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etc/group", "tree", "bin"} {
		if _, err := os.Lstat(filepath.Join(path, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(path, "usr/bin/sh")); err != nil {
		t.Errorf("the target of a deleted link: %v", err)
	}
	if err := rootdiff.Delete(root, []string{"out/secret", "up/secret/x", "bin/sh"}); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(outside, "secret")); err != nil {
		t.Error(err)
	}
	for _, text := range []string{`["../x"]`, `["/"]`, `["/a/../.."]`, `[""]`, `["`, `{"a": 1}`, `["/a\u0000b"]`, `[1]`, strings.Repeat(" ", rootdiff.MaxDeleted+1)} {
		if got, err := rootdiff.ParseDeleted([]byte(text)); err == nil {
			t.Errorf("%.40s: %q", text, got)
		}
	}
}

func FuzzApply(f *testing.F) {
	f.Add(archive(f, file("etc/x", "x"), tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/"}, file("l/x", "y")))
	f.Add(archive(f, tar.Header{Name: "../x", Typeflag: tar.TypeLink, Linkname: "../../x"}))
	f.Fuzz(func(t *testing.T, text []byte) {
		root, _, outside := newRoot(t)
		_ = rootdiff.Apply(root, bytes.NewReader(text), int64(len(text)))
		entries, err := os.ReadDir(filepath.Dir(outside))
		if err != nil || len(entries) != 2 {
			t.Fatal(entries, err)
		}
		if entries, err = os.ReadDir(outside); err != nil || len(entries) != 1 {
			t.Fatal(entries, err)
		}
	})
}
