package live

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var tortureLines = flag.Int("lines", 150_000, "number of `lines` per container of TestLogsAreExactAcrossKillsAndRotations")

// printer prints numbered lines, every fifth to stderr, every thousandth longer
// than the Engine takes at once, each padded with so many bytes.
func printer(lines, pad int) string {
	return fmt.Sprintf(`awk 'BEGIN {
		pad = sprintf("%%%ds", ""); long = sprintf("%%20000s", "")
		for (i = 1; i <= %d; i++) {
			line = i " " (i %% 1000 ? pad : long) "."
			if (i %% 5) print line; else print line > "/dev/stderr"
		}
	}'`, pad, lines)
}

// create makes a container in a pod and starts it.
func (n *node) create(pod string, config *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) string {
	n.t.Helper()
	ctx := context.Background()
	made, err := n.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: config})
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made.GetContainerId()}); err != nil {
		n.t.Fatal(err)
	}
	return made.GetContainerId()
}

// TestLogsAreExactAcrossKillsAndRotations has many containers print fast while the kubelet rotates their
// logs every second, the Engine its own files, and berthd is killed every few
// seconds: no line may be missing or out of order, and none twice but where
// berthd was killed.
func TestLogsAreExactAcrossKillsAndRotations(t *testing.T) {
	for buffer, flag := range logBuffers {
		t.Run(buffer, func(t *testing.T) {
			n := newNode(t, flag)
			const containers = 10
			config := n.pod("torture")
			pod, err := n.run(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			var ids [containers]string
			for i := range ids {
				pad := 60
				if i == 0 {
					pad = 500 // so that the Engine rotates even if there are few
				}
				ids[i] = n.create(pod, config, shell(fmt.Sprintf("c%d", i), printer(*tortureLines, pad)))
			}
			log := func(i int) string { return n.path("logs", "torture", fmt.Sprintf("c%d", i), "0.log") }
			var rotated [containers]int
			lastKill, kills := time.Now(), 0
			for running := true; running; time.Sleep(time.Second) {
				for i, id := range ids {
					older := fmt.Sprintf("%s.%05d", log(i), rotated[i])
					if err := os.Rename(log(i), older); err != nil {
						continue
					}
					// As the kubelet does: what cannot be reopened is as it was.
					if _, err := n.runtime.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
						if err := os.Rename(older, log(i)); err != nil {
							t.Fatal(err)
						}
						continue
					}
					rotated[i]++
				}
				if time.Since(lastKill) > 3*time.Second {
					n.kill()
					n.start()
					lastKill = time.Now()
					kills++
				}
				list, err := n.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
					State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}})
				if err != nil {
					t.Fatal(err)
				}
				running = len(list.GetContainers()) > 0
			}
			twice := 0
			for i := range ids {
				files, err := filepath.Glob(log(i) + ".*")
				if err != nil {
					t.Fatal(err)
				}
				n, err := inOrder(append(files, log(i)), *tortureLines)
				if err != nil {
					t.Errorf("container %d, %d files: %v", i, len(files)+1, err)
				}
				twice += n
			}
			t.Logf("%d containers of %d lines, berthd killed %d times, %d rotations of the first log: %d lines twice", containers, *tortureLines, kills, rotated[0], twice)
			if strings.Contains(n.log.String(), "has a gap") {
				t.Error("berthd logs a gap")
			}
			n.remove(pod)
			os.RemoveAll(n.path("logs"))
			n.clean()
		})
	}
}

// inOrder reads the files of a log that printer has written and returns how
// many lines are there more than once.
func inOrder(files []string, lines int) (twice int, err error) {
	next := map[string]int{"stdout": 1, "stderr": 5}
	var part [2]bytes.Buffer
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return twice, err
		}
		for line := range strings.Lines(string(data)) {
			fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
			if len(fields) != 4 || (fields[2] != "P" && fields[2] != "F") {
				return twice, fmt.Errorf("%s: not in the CRI's format: %.100q", name, line)
			}
			if _, err := time.Parse(time.RFC3339Nano, fields[0]); err != nil {
				return twice, fmt.Errorf("%s: %w", name, err)
			}
			stream := fields[1]
			whole := &part[len(stream)-len("stderr")+strings.Count(stream, "rr")]
			whole.WriteString(fields[3])
			if fields[2] == "P" {
				continue
			}
			text := whole.String()
			whole.Reset()
			number, rest, _ := strings.Cut(text, " ")
			i, err := strconv.Atoi(number)
			if err != nil || !strings.HasSuffix(rest, ".") || (i%1000 == 0 && len(rest) != 20001) {
				return twice, fmt.Errorf("%s: torn: %.100q", name, text)
			}
			switch {
			case i < next[stream]:
				twice++
			case i > next[stream]:
				return twice, fmt.Errorf("%s: line %d of %s comes after line %d", name, i, stream, next[stream]-1)
			case stream == "stderr":
				next[stream] += 5
			default:
				if next[stream]++; next[stream]%5 == 0 {
					next[stream]++
				}
			}
		}
	}
	if next["stdout"] < lines || next["stderr"] < lines {
		return twice, fmt.Errorf("ends before line %d of stdout, %d of stderr", next["stdout"], next["stderr"])
	}
	return twice, nil
}

// TestLogIsCompleteWhenContainerEnds looks at the log in the moment a container is first
// said to have ended.
func TestLogIsCompleteWhenContainerEnds(t *testing.T) {
	for buffer, flag := range logBuffers {
		t.Run(buffer, func(t *testing.T) {
			n := newNode(t, flag)
			config := n.pod("short")
			pod, err := n.run(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			const lines = 5000
			for i := range 5 {
				name := fmt.Sprintf("c%d", i)
				id := n.create(pod, config, shell(name, printer(lines, 60)))
				for {
					seen, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
					if err != nil {
						t.Fatal(err)
					}
					if seen.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
						break
					}
					time.Sleep(time.Millisecond)
				}
				if twice, err := inOrder([]string{n.path("logs", "short", name, "0.log")}, lines); err != nil || twice > 0 {
					t.Errorf("%d lines twice, %v", twice, err)
				}
			}
			n.remove(pod)
		})
	}
}

// docker logs goes on working beside the kubelet's file.
func TestDockerLogsKeepWorking(t *testing.T) {
	for buffer, flag := range logBuffers {
		t.Run(buffer, func(t *testing.T) {
			n := newNode(t, flag)
			config := n.pod("both")
			pod, err := n.run(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			id := n.create(pod, config, shell("c", "echo out; echo err >&2"))
			n.until(5*time.Second, "no end", func() bool {
				seen, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
				return err == nil && seen.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
			})
			body, err := n.docker.ContainerLogs(t.Context(), id, container.LogsOptions{ShowStdout: true, ShowStderr: true})
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			var out, errs bytes.Buffer
			if _, err := stdcopy.StdCopy(&out, &errs, body); err != nil || out.String() != "out\n" || errs.String() != "err\n" {
				t.Errorf("docker logs: %q, %q, %v", out.String(), errs.String(), err)
			}
			n.remove(pod)
		})
	}
}

// TestFollowModeLogs has berthd read the Engine's log stream, whatever its log
// driver.
func TestFollowModeLogs(t *testing.T) {
	n := newNode(t, "--container-logs=follow")
	config := n.pod("follow")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	const lines = 3000
	tty := shell("tty", "for i in $(seq 200); do echo line $i; done; sleep 1")
	tty.Tty = true
	ids := []string{
		n.create(pod, config, shell("c", printer(lines, 60)+"; sleep 4; echo over")),
		n.create(pod, config, tty),
	}
	log := n.path("logs", "follow", "c", "0.log")
	n.until(10*time.Second, "no log", func() bool { data, err := os.ReadFile(log); return err == nil && len(data) > 100_000 })
	n.kill()
	n.start()
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.runtime.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: ids[0]}); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		n.until(20*time.Second, "no end", func() bool {
			seen, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
			return err == nil && seen.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
		})
	}
	var all []byte
	for _, name := range []string{log + ".1", log} {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data...)
	}
	all, found := bytes.CutSuffix(all, []byte(" stdout F over\n"))
	if !found {
		t.Fatalf("the log does not end in the last line: %.300q", all[max(0, len(all)-300):])
	}
	all = all[:bytes.LastIndexByte(all, '\n')+1]
	whole := n.path("whole.log")
	if err := os.WriteFile(whole, all, 0o600); err != nil {
		t.Fatal(err)
	}
	if twice, err := inOrder([]string{whole}, lines); err != nil || twice > 0 {
		t.Errorf("%d lines twice, %v", twice, err)
	}
	data, err := os.ReadFile(n.path("logs", "follow", "tty", "0.log"))
	if err != nil || bytes.Count(data, []byte{'\n'}) != 200 || !bytes.HasSuffix(data, []byte(" stdout F line 200\r\n")) {
		t.Errorf("of a terminal: %d lines, %v, %.200q", bytes.Count(data, []byte{'\n'}), err, data)
	}
	n.remove(pod)
	os.RemoveAll(n.path("logs"))
	n.clean()
}
