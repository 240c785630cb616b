package pause_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/procfs"

	"berth/core/pause"
)

// The IDs of the images. If one of them changes, Ref needs a new tag.
var ids = map[string]string{
	"amd64":   "949347e79082454dc39f344a0f1258da860ceafbe1a123aeff01466bbac6b9db",
	"arm64":   "5c378a8fbf1954457dce132e72c530e23ecdfab42012a2910e635f76a2166247",
	"arm":     "7e6c05d1e7ad9c649e1fe61015a8ccf40dd482bd2d8eb0258d9b3efd638f0686",
	"ppc64le": "131161c36d6c5bbf5a7ec5f4435c1525c66a8762fe45c4d459538a1c1dd67d01",
	"riscv64": "d72f5d325daf2e5bdd2aafe5bc87557b84a9756746c79838264ff79fbb2d88f7",
	"s390x":   "1c94c8c21904fc06dac4c1169e0bc40ce1a24e3a287292245a9f6328a7c9fecc",
}

func TestArchiveIsAReproducibleImage(t *testing.T) {
	for arch, id := range ids {
		t.Run(arch, func(t *testing.T) {
			a, err := pause.Archive(arch)
			if err != nil {
				t.Fatal(err)
			}
			if b, _ := pause.Archive(arch); !bytes.Equal(a, b) {
				t.Error("two archives differ")
			}
			if len(a) > 1<<20 {
				t.Errorf("%d bytes, want less than 1 MiB", len(a))
			}

			files := unpack(t, a)
			var manifest []struct {
				Config           string
				RepoTags, Layers []string
			}
			decode(t, files["manifest.json"], &manifest)
			if len(manifest) != 1 || len(manifest[0].Layers) != 1 {
				t.Fatalf("manifest %s, want one image of one layer", files["manifest.json"])
			}
			if got, want := manifest[0].RepoTags, []string{pause.Ref}; !cmp.Equal(got, want) {
				t.Errorf("tags %q, want %q", got, want)
			}
			configBytes, layer := files[manifest[0].Config], files[manifest[0].Layers[0]]
			if got := digest(configBytes); got != id {
				t.Errorf("image ID %s, want %s: if the change is intended, give Ref a new tag", got, id)
			}

			type execConfig struct {
				Entrypoint []string
				User       string
				Labels     map[string]string
			}
			var config struct {
				Architecture, OS string
				Config           execConfig
				RootFS           struct {
					DiffIDs []string `json:"diff_ids"`
				}
			}
			decode(t, configBytes, &config)
			if config.Architecture != arch || config.OS != "linux" {
				t.Errorf("for %s/%s, want linux/%s", config.OS, config.Architecture, arch)
			}
			if got, want := config.RootFS.DiffIDs, []string{"sha256:" + digest(layer)}; !cmp.Equal(got, want) {
				t.Errorf("layers %q, want %q", got, want)
			}
			want := execConfig{
				Entrypoint: []string{"/pause"},
				User:       "65535:65535",
				Labels: map[string]string{
					"org.opencontainers.image.title":   "berth built-in pause",
					"org.opencontainers.image.version": "1",
				},
			}
			if diff := cmp.Diff(want, config.Config); diff != "" {
				t.Errorf("config (-want +got):\n%s", diff)
			}

			program, err := os.ReadFile("pause-" + arch)
			if err != nil {
				t.Fatal(err)
			}
			if got := unpack(t, layer)["pause"]; !bytes.Equal(got, program) {
				t.Error("the program in the layer differs")
			}
		})
	}
}

func TestArchiveOfOtherArchitectureIsNotImplemented(t *testing.T) {
	_, err := pause.Archive("vax")
	if !errdefs.IsNotImplemented(err) {
		t.Errorf("err = %v, want not implemented", err)
	}
	if err == nil || !strings.Contains(err.Error(), "vax") {
		t.Errorf("err = %v, want it to name the architecture", err)
	}
}

func TestProgramsAreBuiltFromTheCurrentSource(t *testing.T) {
	for line := range strings.Lines(read(t, "built-from")) {
		sum, name, ok := strings.Cut(strings.TrimSpace(line), "  ")
		if !ok {
			continue // the version of a compiler
		}
		if got := digest([]byte(read(t, filepath.Join("src", name)))); got != sum {
			t.Errorf("src/%s has changed since the programs were built: run src/build.sh", name)
		}
	}
}

func TestProgramsAreReproducible(t *testing.T) {
	tools := []string{"gcc", "ld", "objcopy"}
	for _, triplet := range []string{"aarch64-linux-gnu", "arm-linux-gnueabihf", "powerpc64le-linux-gnu", "riscv64-linux-gnu", "s390x-linux-gnu"} {
		tools = append(tools, triplet+"-gcc", triplet+"-ld")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	dir := t.TempDir()
	if out, err := exec.Command("./src/build.sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("build.sh: %v\n%s", err, out)
	}
	if diff := cmp.Diff(read(t, "built-from"), read(t, filepath.Join(dir, "built-from"))); diff != "" {
		t.Skipf("needs the compilers that built the programs (-want +got):\n%s", diff)
	}
	for arch := range ids {
		if read(t, "pause-"+arch) != read(t, filepath.Join(dir, "pause-"+arch)) {
			t.Errorf("%s: the same source and compiler gave other bytes", arch)
		}
	}
}

func TestProgramPrintsItsVersion(t *testing.T) {
	_, tag, _ := strings.Cut(pause.Ref, ":")
	want := fmt.Sprintf("pause %s (berth)\n", tag)
	for arch := range ids {
		t.Run(arch, func(t *testing.T) {
			out, err := command(t, arch, "-v").Output()
			if got := string(out); err != nil || got != want {
				t.Errorf("printed %q (%v), want %q", got, err, want)
			}
		})
	}
}

func TestProgramExitsOnSIGTERMAndSIGINT(t *testing.T) {
	for arch := range ids {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			t.Run(fmt.Sprint(arch, " ", sig), func(t *testing.T) {
				cmd := command(t, arch, "any", "other", "arguments")
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				waitAsleep(t, cmd.Process.Pid)
				begin := time.Now()
				if err := cmd.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
				timer := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
				defer timer.Stop()
				if err := cmd.Wait(); err != nil {
					t.Errorf("%v, want exit code 0", err)
				}
				if took := time.Since(begin); took > time.Second {
					t.Errorf("took %v, want less than a second", took)
				}
			})
		}
	}
}

// The program inherits two children from the shell: one that ends before the program runs,
// and one that ends while it sleeps.
func TestProgramReapsChildrenAndIsIdle(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip("needs sleep")
	}
	program := command(t, runtime.GOARCH).Path
	cmd := exec.Command("/bin/sh", "-c", `"$1" 0 & "$1" 0.3 & exec "$2"`, "sh", sleep, program)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	pid := cmd.Process.Pid
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if stat(t, pid).Comm == filepath.Base(program) && len(children(t, pid)) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("children %v were not reaped", children(t, pid))
		}
	}
	waitAsleep(t, pid)
	before := stat(t, pid).CPUTime()
	time.Sleep(300 * time.Millisecond)
	if used := stat(t, pid).CPUTime() - before; used > 0 {
		t.Errorf("used %v s of CPU time while asleep", used)
	}
}

// command runs the program for arch, with an emulator where that is needed.
func command(t *testing.T, arch string, args ...string) *exec.Cmd {
	t.Helper()
	program, err := filepath.Abs("pause-" + arch)
	if err != nil {
		t.Fatal(err)
	}
	if arch == runtime.GOARCH {
		return exec.Command(program, args...)
	}
	emulator := "qemu-" + strings.NewReplacer("amd64", "x86_64", "arm64", "aarch64").Replace(arch)
	path, err := exec.LookPath(emulator)
	if err != nil {
		if path, err = exec.LookPath(emulator + "-static"); err != nil {
			t.Skipf("needs %s (Debian: qemu-user)", emulator)
		}
	}
	return exec.Command(path, append([]string{program}, args...)...)
}

// asleep waits until the process has been asleep five times in a row: an emulator
// sleeps for a moment while it starts.
func waitAsleep(t *testing.T, pid int) {
	t.Helper()
	inARow := 0
	for range 500 {
		if inARow++; stat(t, pid).State != "S" {
			inARow = 0
		}
		if inARow == 5 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the program does not sleep")
}

// stat reads /proc/PID/stat; the result is empty if the process does not exist.
func stat(t *testing.T, pid int) procfs.ProcStat {
	t.Helper()
	p, err := procfs.NewProc(pid)
	if err == nil {
		var stat procfs.ProcStat
		if stat, err = p.Stat(); err == nil {
			return stat
		}
	}
	if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
		t.Fatal(err)
	}
	return procfs.ProcStat{}
}

// children lists the children of a process, zombies too.
func children(t *testing.T, pid int) (found []procfs.ProcStat) {
	t.Helper()
	procs, err := procfs.AllProcs()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if s := stat(t, p.PID); s.PPID == pid {
			found = append(found, s)
		}
	}
	return found
}

func unpack(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[header.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func decode(t *testing.T, text []byte, to any) {
	t.Helper()
	if err := json.Unmarshal(text, to); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
