package pause_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"berth/core/pause"
)

func TestArchiveIsSmallAndAlwaysTheSame(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		a, err := pause.Archive(arch)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := pause.Archive(arch)
		if !bytes.Equal(a, b) {
			t.Errorf("%s: two archives differ", arch)
		}
		if len(a) > 1<<20 {
			t.Errorf("%s: %d bytes, want less than 1 MiB", arch, len(a))
		}
	}
	if _, err := pause.Archive("vax"); !errdefs.IsNotImplemented(err) {
		t.Errorf("err = %v, want not implemented", err)
	}
}

func TestProgramsAreThoseOfTheSource(t *testing.T) {
	for _, tool := range []string{"gcc", "aarch64-linux-gnu-gcc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	dir := t.TempDir()
	if out, err := exec.Command("./src/build.sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		want, err := os.ReadFile("pause-" + arch)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "pause-"+arch)); err != nil || !bytes.Equal(got, want) {
			t.Skipf("%s: other bytes from this compiler than from gcc 12 (%v)", arch, err)
		}
	}
}

func TestEndsWhenTold(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		cmd := exec.Command("./pause-" + runtime.GOARCH)
		if err := cmd.Start(); err != nil {
			t.Skipf("cannot run it here: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(5*time.Second, func() { cmd.Process.Kill() })
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v, want exit code 0", sig, err)
		}
		timer.Stop()
	}
}
