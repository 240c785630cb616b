package premount

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth/core/names"
)

var nameC, nameD = names.NewPremount(), names.NewPremount()

// inMountNS runs f in a mount namespace of its own.
func inMountNS(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	done := make(chan error, 1)
	ownThread(func() {
		defer close(done)
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")
		}
		if err != nil {
			done <- err
			return
		}
		f(t)
	})
	if err := <-done; err != nil {
		t.Skipf("needs root, for mounts of its own: %v", err)
	}
}

// ownThread runs f on a thread that ends with it. That is never the first one: it cannot end, and /proc/PID shows its mounts
// as those of the process.
func ownThread(f func()) {
	go func() {
		runtime.LockOSThread() // and never unlocked
		if unix.Gettid() != os.Getpid() {
			f()
			return
		}
		defer runtime.UnlockOSThread()
		done := make(chan struct{})
		ownThread(func() {
			defer close(done)
			f()
		})
		<-done
	}()
}

// mountTree returns a tmpfs with another one below it.
func mountTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Join(dir, "below")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", d, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "top.txt"), "top")
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// flags returns the flags of the mount at path (statfs(2)).
func flags(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Flags) //nolint:unconvert // int32 on arm, uint32 on s390x
}

// mounted returns the lines of mountinfo with dir in them.
func mounted(t *testing.T, dir string) (lines []string) {
	t.Helper()
	info, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(info)) {
		if strings.Contains(line, " "+dir) {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestCreateAppliesOptionsToTopOrTree(t *testing.T) {
	inMountNS(t, func(t *testing.T) {
		source := mountTree(t)
		dir := filepath.Join(t.TempDir(), "mounts")
		s := New(dir)
		for _, tt := range []struct {
			options    []string
			top, below int64
		}{
			{[]string{"ro"}, unix.ST_RDONLY, 0},
			{[]string{"rro"}, unix.ST_RDONLY, unix.ST_RDONLY},
			{[]string{"noexec", "nosuid", "nodev"}, unix.ST_NOEXEC | unix.ST_NOSUID | unix.ST_NODEV, 0},
			{[]string{"rro", "noexec"}, unix.ST_RDONLY | unix.ST_NOEXEC, unix.ST_RDONLY},
			{[]string{"noexec", "rnosuid", "noexec"}, unix.ST_NOEXEC | unix.ST_NOSUID, unix.ST_NOSUID},
			{nil, 0, 0},
		} {
			if err := s.Create(nameC, []Mount{{Source: source, Options: tt.options}}); err != nil {
				t.Fatalf("%v: %v", tt.options, err)
			}
			const compared = unix.ST_RDONLY | unix.ST_NOEXEC | unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOATIME
			top, below := flags(t, s.Path(nameC, 0))&compared, flags(t, s.Path(nameC, 0)+"/below")&compared
			if top != tt.top || below != tt.below {
				t.Errorf("%v: flags %#x and below %#x, want %#x and %#x", tt.options, top, below, tt.top, tt.below)
			}
			if flags(t, source)&compared != 0 {
				t.Errorf("%v: the source itself changed", tt.options)
			}
			if err := s.Remove(nameC); err != nil {
				t.Fatal(err)
			}
		}
		if left := mounted(t, dir); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the empty directory of premounts stays: %v", err)
		}
	})
}

func TestCheckAcceptsOnlyRestrictions(t *testing.T) {
	for option, ok := range map[string]bool{
		"noexec": true, "rnoexec": true, "nosuid": true, "rnosuid": true, "nodev": true, "rnodev": true,
		"ro": true, "rro": true, "nosymfollow": true, "rnosymfollow": true,
		"": false, "r": false, "bind": false, "size=1": false, "NOEXEC": false, "rrro": false, " noexec": false,
		// Would clear a flag of the node's own mount.
		"rw": false, "rrw": false, "exec": false, "rexec": false, "suid": false, "rsuid": false, "dev": false, "rdev": false,
		"symfollow": false, "rsymfollow": false, "defaults": false, "remount": false,
		// Restrict nothing.
		"relatime": false, "noatime": false, "rstrictatime": false, "diratime": false, "shared": false, "rbind": false,
	} {
		if err := CheckOptions([]string{option}); (err == nil) != ok || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", option, err)
		}
	}
}

func TestInOtherMountNSAndParentPID(t *testing.T) {
	if InOtherMountNS(os.Getpid()) {
		t.Error("this process is reported in another mount namespace than its own")
	}
	// 0 is not a process, and no PID is this high (/proc/sys/kernel/pid_max).
	for _, pid := range []int{0, -1, 1 << 30} {
		if !InOtherMountNS(pid) {
			t.Errorf("process %d, which cannot be read, is reported in our mount namespace", pid)
		}
	}
	if got := ParentPID(os.Getpid()); got != os.Getppid() {
		t.Errorf("parent %d, want %d", got, os.Getppid())
	}
	if got := ParentPID(0); got != 0 {
		t.Errorf("parent of process 0: %d, want 0", got)
	}
	other := make(chan int)
	done := make(chan struct{})
	ownThread(func() {
		if unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS) != nil {
			close(other)
			return
		}
		other <- unix.Gettid()
		<-done
	})
	tid, ok := <-other
	if !ok {
		t.Skip("needs root, for mounts of its own")
	}
	defer close(done)
	if !InOtherMountNS(tid) {
		t.Error("a thread in a mount namespace of its own is reported in ours")
	}
}

// The sysfs of a network namespace is read-only in all its mounts if its first mount was.
func TestWritableSysfsMakesNewMountsWritable(t *testing.T) {
	inMountNS(t, func(t *testing.T) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Skip(err)
		}
		if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_RDONLY|unix.MS_NOSUID, ""); err != nil {
			t.Fatal(err)
		}
		privileged := t.TempDir()
		if err := unix.Mount("sysfs", privileged, "sysfs", unix.MS_NOSUID, ""); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(privileged+"/class/net/lo/ifalias", []byte("a"), 0); !errors.Is(err, unix.EROFS) {
			t.Errorf("before: %v, want EROFS", err)
		}
		err := WritableSysfs(unix.Gettid())
		if errors.Is(err, errors.ErrUnsupported) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(privileged+"/class/net/lo/ifalias", []byte("a"), 0); err != nil {
			t.Errorf("after: %v", err)
		}
		if flags(t, "/sys")&unix.ST_RDONLY == 0 {
			t.Error("the first mount is writable as well")
		}
		later := t.TempDir()
		if err := unix.Mount("sysfs", later, "sysfs", unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		if flags(t, later)&unix.ST_RDONLY == 0 {
			t.Error("a read-only mount made later is writable")
		}
		if err := unix.Mount("tmpfs", "/sys", "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		if err := WritableSysfs(unix.Gettid()); err == nil {
			t.Error("a file system that is not a sysfs was remounted")
		}
	})
	if err := WritableSysfs(1 << 30); err == nil {
		t.Error("no error for a process that does not exist")
	}
}

// A mount of the node that is noexec stays so, whatever the options of the premount.
func TestCreateClearsNoFlagOfTheSource(t *testing.T) {
	inMountNS(t, func(t *testing.T) {
		source := mountTree(t)
		const own = unix.MS_NOEXEC | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_RDONLY
		if err := unix.Mount("", source, "", unix.MS_REMOUNT|unix.MS_BIND|own, ""); err != nil {
			t.Fatal(err)
		}
		s := New(filepath.Join(t.TempDir(), "mounts"))
		for option := range restrictions {
			if err := s.Create(nameC, []Mount{{Source: source, Options: []string{option, "r" + option}}}); err != nil {
				t.Fatal(err)
			}
			const want = unix.ST_NOEXEC | unix.ST_NOSUID | unix.ST_NODEV | unix.ST_RDONLY
			if got := flags(t, s.Path(nameC, 0)) & want; got != want {
				t.Errorf("%s: flags %#x, want %#x", option, got, want)
			}
			if err := s.Remove(nameC); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestCreateMountsASingleFile(t *testing.T) {
	inMountNS(t, func(t *testing.T) {
		source := mountTree(t)
		s := New(filepath.Join(t.TempDir(), "mounts"))
		if err := s.Create(nameC, []Mount{{Source: source}, {Source: source + "/top.txt", Options: []string{"ro"}}}); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(s.Path(nameC, 1)); string(text) != "top" || err != nil {
			t.Errorf("%q, %v", text, err)
		}
		if err := s.Remove(nameC); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(source + "/top.txt"); err != nil {
			t.Errorf("the source of the mount is gone: %v", err)
		}
	})
}

// The unmount of a shared premount must not propagate to its source.
func TestRemoveKeepsTheMountsOfASharedSource(t *testing.T) {
	inMountNS(t, func(t *testing.T) {
		source := mountTree(t)
		if err := unix.Mount("", source, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
			t.Fatal(err)
		}
		s := New(filepath.Join(t.TempDir(), "mounts"))
		if err := s.Create(nameC, []Mount{{Source: source, Propagation: Shared}, {Source: source, Propagation: Slave}, {Source: source}}); err != nil {
			t.Fatal(err)
		}
		late := filepath.Join(source, "late")
		if err := os.Mkdir(late, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", late, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		for i, want := range []bool{true, true, false} {
			if got, err := isMount(unix.AT_FDCWD, filepath.Join(s.Path(nameC, i), "late")); got != want || err != nil {
				t.Errorf("premount %d has a later mount of its source: %v, %v; want %v", i, got, err, want)
			}
		}
		if err := s.Remove(nameC); err != nil {
			t.Fatal(err)
		}
		if n := len(mounted(t, source)); n != 3 {
			t.Errorf("the source has %d of its 3 mounts left", n)
		}
	})
}

func TestCheckPropagationRefusesMountsThatAreNotShared(t *testing.T) {
	inMountNS(t, func(t *testing.T) {
		at := func(changes ...uintptr) string {
			source := mountTree(t)
			for _, c := range changes {
				if err := unix.Mount("", source, "", c, ""); err != nil {
					t.Fatal(err)
				}
			}
			return source
		}
		// A slave gets later mounts of the shared mount that it was bound from.
		slave := t.TempDir()
		if err := unix.Mount(at(unix.MS_SHARED), slave, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("", slave, "", unix.MS_SLAVE, ""); err != nil {
			t.Fatal(err)
		}
		private, shared := at(unix.MS_PRIVATE), at(unix.MS_SHARED)
		link := filepath.Join(t.TempDir(), "link")
		if err := os.Symlink(shared, link); err != nil {
			t.Fatal(err)
		}
		for name, tt := range map[string]struct {
			path          string
			slave, shared bool
		}{
			"private":              {private, false, false},
			"shared":               {shared, true, true},
			"a file of shared":     {shared + "/top.txt", true, true},
			"a link to shared":     {link, true, true},
			"private below shared": {shared + "/below", false, false},
			"a slave":              {slave, true, false},
			"unbindable":           {at(unix.MS_UNBINDABLE), false, false},
		} {
			for p, want := range map[Propagation]bool{Private: true, Slave: tt.slave, Shared: tt.shared} {
				if err := CheckPropagation(tt.path, p); (err == nil) != want || err != nil && !errdefs.IsFailedPrecondition(err) {
					t.Errorf("%s, %d: %v", name, p, err)
				}
			}
		}
		if err := CheckPropagation(filepath.Join(private, "none"), Slave); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a path that does not exist: %v", err)
		}
	})
}

// A pod that mounts the node's root does not get the premounts.
func TestPremountsAreNotCloned(t *testing.T) {
	inMountNS(t, func(t *testing.T) {
		root := mountTree(t)
		s := New(filepath.Join(root, "run", "mounts"))
		all := []names.Premount{nameC, nameD, names.NewPremount()}
		for _, name := range all {
			if err := s.Create(name, []Mount{{Source: root}}); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(mounted(t, root)); n != 2+1+3*2 {
			t.Errorf("%d mounts:\n%s", n, strings.Join(mounted(t, root), ""))
		}
		for _, name := range all {
			if err := s.Remove(name); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestCreateMountsTheFilesOfAnImage(t *testing.T) {
	inMountNS(t, func(t *testing.T) {
		disk := mountTree(t) // t.TempDir may be on an overlay, which cannot be a layer of another one
		lower, upper := filepath.Join(disk, "lower"), filepath.Join(disk, "upper")
		write(t, lower+"/dir/old", "old")
		write(t, lower+"/dir/both", "lower")
		write(t, upper+"/dir/both", "upper")
		if err := os.Symlink("/dir", upper+"/link"); err != nil {
			t.Fatal(err)
		}
		s := New(filepath.Join(t.TempDir(), "mounts"))
		two, one := []string{upper, lower}, []string{lower}
		if err := s.Create(nameC, []Mount{
			{Layers: two}, {Layers: one}, {Layers: two, SubPath: "link"}, {Layers: two, SubPath: "dir/both"}, {Layers: one, SubPath: "dir"},
		}); err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			i          int
			file, want string
		}{
			{0, "/dir/both", "upper"}, {0, "/dir/old", "old"}, {1, "/dir/both", "lower"}, {2, "/both", "upper"}, {3, "", "upper"}, {4, "/old", "old"},
		} {
			path := s.Path(nameC, tt.i) + tt.file
			if got, err := os.ReadFile(path); string(got) != tt.want || err != nil {
				t.Errorf("%d: %s: %q, %v; want %q", tt.i, tt.file, got, err, tt.want)
			}
			if err := os.WriteFile(path, nil, 0); !errors.Is(err, unix.EROFS) {
				t.Errorf("%d: %s can be written: %v", tt.i, tt.file, err)
			}
		}
		if err := s.Remove(nameC); err != nil {
			t.Fatal(err)
		}
		for _, sub := range []string{"nothing", "../../../../../etc/passwd"} {
			if err := s.Create(nameD, []Mount{{Layers: two}, {Layers: two, SubPath: sub}}); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v", sub, err)
			}
			if names, err := s.Names(); len(names) > 0 || err != nil {
				t.Errorf("left behind: %v, %v", names, err)
			}
		}
	})
}

// An image may have as many layers as Docker allows, with long paths.
func TestCreateMountsAnImageOf128Layers(t *testing.T) {
	inMountNS(t, func(t *testing.T) {
		disk := mountTree(t)
		var layers []string
		for range 128 {
			l := filepath.Join(disk, strings.Repeat("x", 64), string(rune('a'+len(layers)/26))+string(rune('a'+len(layers)%26)))
			write(t, l+"/"+filepath.Base(l), "")
			layers = append(layers, l)
		}
		s := New(filepath.Join(t.TempDir(), "mounts"))
		if err := s.Create(nameC, []Mount{{Layers: layers}}); err != nil {
			t.Fatal(err)
		}
		if all, err := os.ReadDir(s.Path(nameC, 0)); len(all) != 128 || err != nil {
			t.Errorf("%d files, %v", len(all), err)
		}
		if err := s.Remove(nameC); err != nil {
			t.Error(err)
		}
	})
}

// Whatever is in the directory of a name, nothing outside of it is touched, and no symbolic link is followed.
func TestRemoveStaysInsideItsDirectory(t *testing.T) {
	inMountNS(t, func(t *testing.T) {
		victim := mountTree(t)
		run := t.TempDir()
		s := New(filepath.Join(run, "mounts"))
		if err := s.Create(nameC, []Mount{{Source: victim}}); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(run, "mounts", nameC.String())
		for link, target := range map[string]string{"1": victim, "2": filepath.Join(victim, "below"), "3.image": filepath.Join(victim, "top.txt")} {
			if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
				t.Fatal(err)
			}
		}
		// The name itself is a link out of the directory.
		if err := os.Symlink(victim, filepath.Join(run, "mounts", nameD.String())); err != nil {
			t.Fatal(err)
		}
		if err := s.Remove(nameD); err == nil {
			t.Error("a symbolic link was removed as the directory of a name")
		}
		write(t, filepath.Join(dir, "not-staged"), "x")
		if err := s.Remove(nameC); err == nil {
			t.Error("a directory with other files in it was removed")
		}
		if _, err := os.Stat(filepath.Join(dir, "not-staged")); err != nil {
			t.Error(err)
		}
		if err := os.Remove(filepath.Join(dir, "not-staged")); err != nil {
			t.Fatal(err)
		}
		if err := s.Remove(nameC); err != nil {
			t.Error(err)
		}
		for _, file := range []string{"top.txt", "below"} {
			if _, err := os.Stat(filepath.Join(victim, file)); err != nil {
				t.Error(err)
			}
		}
		if n := len(mounted(t, victim)); n != 2 {
			t.Errorf("%d of 2 mounts are left", n)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the directory of the name still exists: %v", err)
		}
	})
}

func TestNamesListsOnlyWhatCreateMakes(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"x", "ABCDEFGHIJKLMNO1", nameC.String() + "A", nameC.String()} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := New(dir).Names(); err != nil || len(got) != 1 || got[0] != nameC {
		t.Errorf("%v, %v", got, err)
	}
}

// TestCompleteMountsWhatDependsOnTheID has a directory and a file whose paths are known only once a container has an ID.
func TestCompleteMountsWhatDependsOnTheID(t *testing.T) {
	inMountNS(t, func(t *testing.T) {
		dir := New(filepath.Join(t.TempDir(), "premounts"))
		state := mountTree(t)
		mounts := []Mount{{Source: filepath.Join(state, names.UnknownID)}, {Source: state}, {Source: filepath.Join(state, names.UnknownID, "file"), Options: []string{"ro"}}}
		for _, name := range []names.Premount{nameC, nameD} {
			if err := dir.Create(name, mounts); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := dir.Remove(name); err != nil {
					t.Error(err)
				}
			}()
		}
		if _, err := os.Stat(dir.Path(nameC, 2)); err != nil {
			t.Errorf("Docker refuses a mount whose source does not exist: %v", err)
		}
		if err := dir.Complete(nameD, "abc", mounts); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), filepath.Join(state, "abc")) {
			t.Errorf("without the source: %v", err)
		}
		write(t, filepath.Join(state, "abc", "file"), "of abc")
		if err := dir.Complete(nameC, "abc", mounts); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(dir.Path(nameC, 2)); err != nil || string(text) != "of abc" {
			t.Errorf("%q, %v", text, err)
		}
		if err := os.WriteFile(dir.Path(nameC, 2), nil, 0); !errors.Is(err, unix.EROFS) {
			t.Errorf("write: %v", err)
		}
		if err := os.WriteFile(filepath.Join(dir.Path(nameC, 0), "other"), nil, 0o644); err != nil {
			t.Error(err)
		}
	})
}
