package live

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/volume"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestDaemonJSONDefaultsDoNotReachPods reads that pods are as the CRI has them, whatever daemon.json
// (contrib/e2e/hostile.json) and the image say of health checks and the like.
func TestDaemonJSONDefaultsDoNotReachPods(t *testing.T) {
	for buffer, flag := range logBuffers {
		t.Run(buffer, func(t *testing.T) { testDaemonJSONDefaults(t, buffer, flag) })
	}
}

func testDaemonJSONDefaults(t *testing.T, buffer, flag string) {
	n := newNode(t)
	n.withFlags(flag)
	n.build("berth-hostile:1", "FROM "+*image+"\n"+`HEALTHCHECK --interval=1s CMD touch /checked
VOLUME /volume
ENV WORD=image
WORKDIR /work
STOPSIGNAL SIGUSR1
ENTRYPOINT ["sh", "-c"]
CMD ["exit 1"]
`)
	config := n.pod("hostile")
	config.Linux.CgroupParent = n.cgroup("hostile")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	c := shell("c", "")
	c.Image.Image = "berth-hostile:1"
	// The entrypoint of the image stays, its command goes.
	const lines = 3000
	c.Command, c.Args = nil, []string{fmt.Sprintf(`trap 'exit 42' USR1; i=0; while [ $i -lt %d ]; do echo "line $i"; i=$((i+1)); done; while :; do sleep 0.1; done`, lines)}
	id := n.create(pod, config, c)
	seen, err := n.docker.ContainerInspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	pause, err := n.docker.ContainerInspect(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	logs := seen.HostConfig.LogConfig
	_, buffered := logs.Config["max-buffer-size"]
	switch {
	case logs.Type != buffer || logs.Config["max-size"] != "32m" || logs.Config["max-file"] != "3":
		t.Errorf("logs %+v", logs)
	case buffered && (logs.Config["max-buffer-size"] != "64m" || logs.Config["mode"] != "non-blocking"):
		t.Errorf("logs that are buffered in any case: %+v", logs)
	case buffered && !strings.Contains(n.log.String(), "max-buffer-size"):
		t.Error("no warning that logs are buffered")
	case !buffered && logs.Config["mode"] != "blocking":
		t.Errorf("logs %+v", logs)
	}
	for what, bad := range map[string]bool{
		"init":                 seen.HostConfig.Init == nil || *seen.HostConfig.Init || pause.HostConfig.Init == nil || *pause.HostConfig.Init,
		"a restart policy":     seen.HostConfig.RestartPolicy.Name != "no" || pause.HostConfig.RestartPolicy.Name != "no",
		"a health check":       seen.State.Health != nil && seen.State.Health.Status != "none",
		"a log of the pause":   pause.HostConfig.LogConfig.Type != "none",
		"no new privileges":    n.word(id, "NoNewPrivs") != "0",
		"its own ipc":          n.proc(id, "ns/ipc") != n.proc(pod, "ns/ipc"),
		"a cgroup of Docker's": !strings.Contains(n.proc(id, "cgroup"), config.Linux.CgroupParent+"/") || !strings.Contains(n.proc(pod, "cgroup"), config.Linux.CgroupParent+"/"),
	} {
		if bad {
			t.Errorf("the pod has %s", what)
		}
	}
	if n.info().CgroupVersion == "1" {
		if here, err := os.Readlink("/proc/self/ns/cgroup"); err != nil || n.proc(id, "ns/cgroup") != here {
			t.Errorf("cgroup namespace %s, the node's is %s, %v", n.proc(id, "ns/cgroup"), here, err)
		}
	}
	for cmd, want := range map[string]string{
		"cat /etc/resolv.conf":                       "nameserver 10.0.0.53\nsearch live.local\noptions ndots:5\n",
		"df -k /dev/shm | awk 'NR == 2 {print $2}'":  "65536\n",
		"echo $WORD; readlink /proc/1/cwd":           "image\n/work\n",
		"touch /volume/x && ls /volume":              "x\n",
		"mkdir /tmp/unconfined && echo made":         "made\n",
		"tr '\\0' ' ' </proc/1/cmdline | cut -c1-11": "sh -c trap \n",
	} {
		if got := n.exec(id, "sh", "-c", cmd); got != want {
			t.Errorf("%s: %q, want %q", cmd, got, want)
		}
	}
	// No line is lost, though the Engine would keep none of them.
	n.until(20*time.Second, "lines are missing in the log", func() bool {
		log, err := os.ReadFile(n.path("logs", "hostile", "c", "0.log"))
		return err == nil && strings.Count(string(log), " stdout F line ") == lines && strings.Contains(string(log), fmt.Sprintf("line %d\n", lines-1))
	})
	time.Sleep(2 * time.Second) // the time of a health check
	if got := n.exec(id, "sh", "-c", "test -e /checked || echo none"); got != "none\n" {
		t.Error("the image's health check ran")
	}
	volumes := 0
	for _, m := range seen.Mounts {
		if m.Type == "volume" {
			volumes++
		}
	}
	status, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil || len(status.GetStatus().GetMounts()) != 0 || volumes != 1 {
		t.Errorf("%d volumes, mounts %v, %v", volumes, status.GetStatus().GetMounts(), err)
	}
	n.homeless()
	if _, err := n.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 20}); err != nil {
		t.Fatal(err)
	}
	if status, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id}); err != nil || status.GetStatus().GetExitCode() != 42 {
		t.Errorf("after the image's stop signal: %v, %v", status, err)
	}
	n.remove(pod)
	n.removeLeftovers()
	if left, err := n.docker.VolumeList(t.Context(), volume.ListOptions{}); err != nil || len(left.Volumes) != 0 {
		t.Errorf("volumes left: %v, %v", left.Volumes, err)
	}
}

// homeless has a pod that names no cgroup, and so gets that of daemon.json if it has one.
// None may be left where Docker would have put it without.
func (n *node) homeless() {
	n.t.Helper()
	if counted, _ := filepath.Glob("/sys/fs/cgroup/hugetlb*"); len(counted) == 0 && n.info().CgroupVersion == "1" {
		return // nothing is to be set that Docker has no word for
	}
	config := n.pod("homeless")
	pod, err := n.run(context.Background(), config)
	if err != nil {
		n.t.Fatal(err)
	}
	c := shell("c", "exec sleep 1000")
	c.Linux.Resources = &runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 32 << 20}}}
	id := n.create(pod, config, c)
	if got := n.cgroupFile(id, "hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"); got != "33554432" {
		n.t.Errorf("huge pages of a pod that names no cgroup: %s", got)
	}
	n.remove(pod)
	for _, pattern := range []string{"/sys/fs/cgroup/docker/", "/sys/fs/cgroup/*/docker/"} {
		if left, err := filepath.Glob(pattern + id); err != nil || len(left) > 0 {
			n.t.Errorf("cgroups left: %v, %v", left, err)
		}
	}
}
