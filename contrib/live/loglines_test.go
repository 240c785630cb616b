package live

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// logModes are the flags for each way in which berthd writes logs; logBuffers for those with Docker's files.
var (
	logModes   = map[string]string{"json-file": "--log-buffer=json-file", "local": "--container-logs=cri", "follow": "--container-logs=follow"}
	logBuffers = map[string]string{"json-file": "--log-buffer=json-file", "local": "--log-buffer=local"}
)

// records reads the log at path: stream, tag and text of each record.
func (n *node) records(path string) (list [][3]string) {
	n.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		fields := strings.SplitN(strings.TrimSuffix(string(line), "\n"), " ", 4)
		if len(fields) != 4 {
			n.t.Fatalf("%s: not a record: %.200q", path, line)
		}
		if _, err := time.Parse(time.RFC3339Nano, fields[0]); err != nil {
			n.t.Fatalf("%s: %v", path, err)
		}
		list = append(list, [3]string(fields[1:]))
	}
	return list
}

// lines puts the pieces of each stream's lines together. The last one has to be over.
func (n *node) lines(path string) map[string][]string {
	n.t.Helper()
	open, lines := map[string]string{}, map[string][]string{}
	for _, r := range n.records(path) {
		open[r[0]] += r[2]
		if r[1] == "F" {
			lines[r[0]] = append(lines[r[0]], open[r[0]])
			delete(open, r[0])
		}
	}
	for stream, text := range open {
		n.t.Errorf("%s: the last line of %s is not over: %.100q", filepath.Base(filepath.Dir(path)), stream, text)
	}
	return lines
}

// exited waits until a container is said to have ended.
func (n *node) exited(id string) {
	n.t.Helper()
	n.until(30*time.Second, "no end", func() bool {
		seen, err := n.runtime.ContainerStatus(context.Background(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
		return err == nil && seen.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
	})
}

// TestLastLineWithoutLineBreakIsFull: once a container has ended no line of its log is waited for.
func TestLastLineWithoutLineBreakIsFull(t *testing.T) {
	for mode, flags := range logModes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t, flags)
			config := n.pod("last")
			pod, err := n.run(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			const piece = 16384
			x := func(count int) string { return fmt.Sprintf("printf '%%0%dd' 0", count) }
			type streams = map[string][]string
			cases := []struct {
				name, script string
				tty          bool
				want         streams
			}{
				{"two", "echo one; printf two", false, streams{"stdout": {"one", "two"}}},
				{"only", "printf only", false, streams{"stdout": {"only"}}},
				{"stderr", "printf err >&2", false, streams{"stderr": {"err"}}},
				{"both", "printf a; printf b >&2", false, streams{"stdout": {"a"}, "stderr": {"b"}}},
				{"failing", "printf bad; exit 3", false, streams{"stdout": {"bad"}}},
				{"long", x(40000), false, streams{"stdout": {strings.Repeat("0", 40000)}}},
				{"piece", x(piece), false, streams{"stdout": {strings.Repeat("0", piece)}}},
				{"pieces", x(3*piece) + "; " + x(2*piece) + " >&2", false, streams{"stdout": {strings.Repeat("0", 3*piece)}, "stderr": {strings.Repeat("0", 2*piece)}}},
				{"whole", x(piece) + "; echo; echo next", false, streams{"stdout": {strings.Repeat("0", piece), "next"}}},
				{"tty", "echo one; printf two", true, streams{"stdout": {"one\r", "two"}}},
				{"ttypiece", x(2 * piece), true, streams{"stdout": {strings.Repeat("0", 2*piece)}}},
				{"closed", "printf early; exec >&- 2>&-; sleep 1", false, streams{"stdout": {"early"}}},
				{"killed", "echo one; printf half; sleep 100", false, streams{"stdout": {"one", "half"}}},
				{"killedpiece", x(piece) + "; sleep 100", false, streams{"stdout": {strings.Repeat("0", piece)}}},
				{"away", "sleep 2; printf away", false, streams{"stdout": {"away"}}},
				{"awaypiece", x(piece) + "; sleep 2; " + x(piece), false, streams{"stdout": {strings.Repeat("0", 2*piece)}}},
			}
			ids := map[string]string{}
			log := func(name string) string { return n.path("logs", "last", name, "0.log") }
			for _, c := range cases {
				config2 := shell(c.name, c.script)
				config2.Tty = c.tty
				ids[c.name] = n.create(pod, config, config2)
			}
			n.kill()
			for _, name := range []string{"away", "awaypiece"} {
				n.until(20*time.Second, "no end", func() bool {
					c, err := n.docker.ContainerInspect(context.Background(), ids[name])
					return err == nil && !c.State.Running
				})
			}
			n.start()
			for _, name := range []string{"killed", "killedpiece"} {
				if _, err := n.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: ids[name]}); err != nil {
					t.Error(err)
				}
			}
			for _, c := range cases {
				n.exited(ids[c.name])
				got := n.lines(log(c.name))
				for _, stream := range []string{"stdout", "stderr"} {
					if !slices.Equal(got[stream], c.want[stream]) {
						t.Errorf("%s: %s is %.200q, want %.200q", c.name, stream, got[stream], c.want[stream])
					}
				}
			}
			for _, name := range []string{"two", "killed"} {
				list := n.records(log(name))
				if last := list[len(list)-1]; last[1] != "F" || last[2] == "" {
					t.Errorf("%s: the last record is %q", name, last)
				}
			}
			n.remove(pod)
			os.RemoveAll(n.path("logs"))
			n.clean()
		})
	}
}

// TestLogIsRotatedBetweenLines: what reads rotated files one by one finds whole lines.
func TestLogIsRotatedBetweenLines(t *testing.T) {
	for mode, flags := range logModes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t, flags)
			config := n.pod("between")
			pod, err := n.run(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			id := n.create(pod, config, shell("c", `while :; do awk 'BEGIN{s=sprintf("%60000s",""); for(i=0;i<50;i++) print s; print s >"/dev/stderr"}'; sleep 0.01; done`))
			log := n.path("logs", "between", "c", "0.log")
			var older []string
			for i := range 20 {
				n.until(20*time.Second, "nothing is written", func() bool { info, err := os.Stat(log); return err == nil && info.Size() > 200_000 })
				name := fmt.Sprintf("%s.%d", log, i)
				if err := os.Rename(log, name); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				if _, err := n.runtime.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took > 3*time.Second {
					t.Errorf("rotating takes %v", took)
				}
				older = append(older, name)
			}
			if _, err := n.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
				t.Fatal(err)
			}
			for _, name := range append(older, log) {
				for stream, lines := range n.lines(name) {
					for i, line := range lines {
						if len(line) != 60000 && (name != log || i < len(lines)-1) { // the very last one is cut off by the kill
							t.Errorf("%s: line %d of %s has %d bytes", filepath.Base(name), i, stream, len(line))
						}
					}
				}
			}
			n.remove(pod)
			os.RemoveAll(n.path("logs"))
			n.clean()
		})
	}
}

// TestLogKeepsBytesOfDriver: a log goes on whatever is printed, also by a terminal, and has the bytes that
// the log driver keeps: json-file those of text, but for characters at each 16 KiB, local all.
func TestLogKeepsBytesOfDriver(t *testing.T) {
	for mode, flag := range logModes {
		t.Run(mode, func(t *testing.T) { logKeepsBytes(t, mode, newNode(t, flag)) })
	}
}

func logKeepsBytes(t *testing.T, mode string, n *node) {
	config := n.pod("terminal")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	prints := map[string]struct{ script, text string }{
		"two":   {`awk 'BEGIN{printf "a"; for(i=0;i<20000;i++) printf "\303\251"; print ""}'`, "a" + strings.Repeat("é", 20000)},
		"three": {`awk 'BEGIN{printf "a"; for(i=0;i<20000;i++) printf "\342\202\254"; print ""}'`, "a" + strings.Repeat("€", 20000)},
		"four":  {`awk 'BEGIN{printf "ab"; for(i=0;i<20000;i++) printf "\360\237\230\200"; print ""}'`, "ab" + strings.Repeat("😀", 20000)},
		"bytes": {`head -c 40000 /dev/zero | tr '\000' '\377'; echo`, strings.Repeat("\xff", 40000)},
		"every": {`awk 'BEGIN{for(i=1;i<256;i++) if(i!=10) printf "%c", i; print ""}'`, everyByte()},
		"times": {`awk 'BEGIN{for(i=0;i<2000;i++) printf "2026-11-23T14:26:30.123456789Z "; print ""}'`, strings.Repeat("2026-11-23T14:26:30.123456789Z ", 2000)},
	}
	ids := map[string]string{}
	for name, p := range prints {
		for _, tty := range []bool{true, false} {
			c := shell(fmt.Sprintf("%s-%v", name, tty), "echo before; "+p.script+"; echo after; printf end")
			c.Tty = tty
			ids[c.GetMetadata().GetName()] = n.create(pod, config, c)
		}
	}
	for name, id := range ids {
		n.exited(id)
		c, err := n.docker.ContainerInspect(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		kind, _, _ := strings.Cut(name, "-")
		long, end := prints[kind].text, ""
		if c.Config.Tty {
			end = "\r"
		}
		switch driver := c.HostConfig.LogConfig.Type; {
		case driver == "json-file":
			long = damaged(long)
		case mode != "follow" && driver != mode:
			t.Errorf("%s: log driver %s", name, driver)
		}
		got := n.lines(n.path("logs", "terminal", name, "0.log"))["stdout"]
		if want := []string{"before" + end, long + end, "after" + end, "end"}; !slices.Equal(got, want) {
			t.Errorf("%s, log driver %s: got %d lines, want %d", name, c.HostConfig.LogConfig.Type, len(got), len(want))
			for i, line := range got {
				t.Logf("line %d: %d bytes, %.40q ... %q", i, len(line), line, line[max(0, len(line)-100):])
			}
		}
	}
	n.remove(pod)
	os.RemoveAll(n.path("logs"))
	n.clean()
}

// everyByte is each byte but zero, which not every awk prints, and the line break.
func everyByte() string {
	var text []byte
	for i := 1; i < 256; i++ {
		if i != '\n' {
			text = append(text, byte(i))
		}
	}
	return string(text)
}

// damaged is what a json-file makes of a line: Docker cuts it at each 16 KiB, and for what is not
// UTF-8 in a piece there is one U+FFFD for each byte.
func damaged(line string) string {
	var out strings.Builder
	for piece := range slices.Chunk([]byte(line), 16<<10) {
		for _, r := range string(piece) {
			out.WriteRune(r)
		}
	}
	return out.String()
}

// TestLogPathMustBeARegularFile: a named pipe, directory or link at the log path is an error, in time, of the call that needs
// the log, and delays neither other calls nor the end of berthd.
func TestLogPathMustBeARegularFile(t *testing.T) {
	for mode, flags := range logModes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t, flags)
			config := n.pod("odd")
			pod, err := n.run(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			victim := n.path("victim")
			if err := os.WriteFile(victim, []byte("before"), 0o600); err != nil {
				t.Fatal(err)
			}
			kinds := map[string]func(path string) error{
				"named pipe":    func(path string) error { return syscall.Mkfifo(path, 0o600) },
				"directory":     func(path string) error { return os.Mkdir(path, 0o755) },
				"symbolic link": func(path string) error { return os.Symlink(victim, path) },
			}
			short := func() (context.Context, context.CancelFunc) { return context.WithTimeout(t.Context(), 10*time.Second) }
			for kind, put := range kinds {
				name := strings.ReplaceAll(kind, " ", "-")
				log := n.path("logs", "odd", name, "0.log")
				c := shell(name, "while :; do echo x; sleep 0.1; done")
				if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
					t.Fatal(err)
				}
				if kind != "symbolic link" { // of an earlier attempt: replaced
					if err := put(log); err != nil {
						t.Fatal(err)
					}
					ctx, cancel := short()
					_, err = n.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: config})
					cancel()
					if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), kind) || !strings.Contains(err.Error(), log) {
						t.Errorf("create with a %s: %v", kind, err)
					}
					if err := os.Remove(log); err != nil {
						t.Fatal(err)
					}
				}
				id := n.create(pod, config, c)
				n.until(10*time.Second, "nothing is written", func() bool { text, _ := os.ReadFile(log); return len(text) > 0 })
				if err := os.Rename(log, log+".1"); err != nil {
					t.Fatal(err)
				}
				if err := put(log); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := short()
				_, err = n.runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
				cancel()
				if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), kind) {
					t.Errorf("reopen with a %s: %v", kind, err)
				}
			}
			began := time.Now()
			if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			select {
			case <-n.done:
			case <-time.After(20 * time.Second):
				t.Errorf("berthd is still there %v after SIGTERM", time.Since(began))
			}
			n.kill()
			n.start() // with all that in the way
			n.remove(pod)
			if text, err := os.ReadFile(victim); err != nil || string(text) != "before" {
				t.Errorf("written through a link: %.100q, %v", text, err)
			}
			os.RemoveAll(n.path("logs"))
			n.clean()
		})
	}
}

// TestImageCannotChooseTheLogPath: labels of an image are labels of its containers.
func TestImageCannotChooseTheLogPath(t *testing.T) {
	n := newNode(t)
	config := n.pod("victim")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	victim, fresh := n.path("victim"), n.path("fresh")
	if err := os.WriteFile(victim, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for sandbox, path := range map[string]string{strings.Repeat("0", 64): victim, pod: fresh} {
		made, err := n.docker.ContainerCreate(t.Context(), &container.Config{
			Image: *image, Cmd: []string{"sh", "-c", "echo owned; sleep 100"},
			Labels: map[string]string{
				"io.kubernetes.docker.type": "container", "io.kubernetes.sandbox.id": sandbox, "io.kubernetes.container.logpath": path,
				"berth.config": `{"metadata":{"name":"x"},"image":{"image":"x"}}`, "berth.labels": "[]", "berth.annotations": "[]",
			},
		}, &container.HostConfig{NetworkMode: "none", LogConfig: container.LogConfig{Type: "json-file"}}, nil, nil, "")
		if err == nil {
			err = n.docker.ContainerStart(t.Context(), made.ID, container.StartOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, made.ID)
	}
	// The event of a container of a pod comes after these, and it has its log.
	id := n.create(pod, config, shell("c", "echo hello; sleep 100"))
	log := n.path("logs", "victim", "c", "0.log")
	n.until(10*time.Second, "no log", func() bool { text, _ := os.ReadFile(log); return bytes.HasSuffix(text, []byte(" hello\n")) })
	n.kill()
	n.start()
	if _, err := n.runtime.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(victim); err != nil || string(text) != "before" {
		t.Errorf("a file of the node has %.200q, %v", text, err)
	}
	if _, err := os.Lstat(fresh); !os.IsNotExist(err) {
		t.Errorf("a file of the node was made: %v", err)
	}
	for _, id := range ids {
		if err := n.docker.ContainerRemove(t.Context(), id, container.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	}
	n.remove(pod)
	os.RemoveAll(n.path("logs"))
	n.clean()
}

// TestLogBuffersAtTheSameTime: the option is for new containers, and each container keeps its log driver.
func TestLogBuffersAtTheSameTime(t *testing.T) {
	n := newNode(t)
	n.withFlags("--log-buffer=json-file")
	config := n.pod("buffers")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	const lines = 300
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo line $i; sleep 0.02; done", lines)
	buffers := []string{"json-file", "local", "json-file"}
	var ids []string
	for i, buffer := range buffers {
		if i > 0 {
			n.flags = append(n.flags, "--log-buffer="+buffer)
			n.kill()
			n.start()
		}
		ids = append(ids, n.create(pod, config, shell(fmt.Sprintf("c%d", i), script)))
	}
	var want []string
	for i := range lines {
		want = append(want, fmt.Sprintf("line %d", i+1))
	}
	for i, id := range ids {
		n.exited(id)
		seen, err := n.docker.ContainerInspect(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if got := seen.HostConfig.LogConfig; got.Type != buffers[i] || got.Config["max-size"] != "32m" || got.Config["max-file"] != "3" {
			t.Errorf("container %d: log driver %+v, want %s", i, got, buffers[i])
		}
		if got := n.lines(n.path("logs", "buffers", fmt.Sprintf("c%d", i), "0.log"))["stdout"]; !slices.Equal(got, want) {
			t.Errorf("container %d: got %d lines, want %d", i, len(got), len(want))
		}
	}
	n.remove(pod)
	os.RemoveAll(n.path("logs"))
	n.clean()
}
