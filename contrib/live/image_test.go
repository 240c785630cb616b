package live

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	dockerimage "github.com/docker/docker/api/types/image"
	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/engine/enginetest"
)

// victim makes a directory of the node that no image may have an effect on, and
// returns a check of that.
func (n *node) victim() (dir string, check func(when string)) {
	n.t.Helper()
	dir = n.path("target")
	for _, d := range []string{dir, dir + "/empty", n.path("run", "mounts")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := os.WriteFile(dir+"/file", []byte("the node's"), 0o600); err != nil {
		n.t.Fatal(err)
	}
	before := enginetest.Tree(n.t, dir)
	return dir, func(when string) {
		n.t.Helper()
		if diff := cmp.Diff(before, enginetest.Tree(n.t, dir)); diff != "" {
			n.t.Errorf("%s: files of the node (-want +got):\n%s", when, diff)
		}
	}
}

// labelled is a Dockerfile with labels.
func labelled(from string, set map[string]string) string {
	var text strings.Builder
	fmt.Fprintf(&text, "FROM %s\n", from)
	for _, k := range slices.Sorted(maps.Keys(set)) {
		// Those that a Dockerfile cannot say are for the tests on the fake Engine.
		if !strings.ContainsAny(set[k], "\x00") {
			fmt.Fprintf(&text, "LABEL %s='%s'\n", k, set[k])
		}
	}
	return text.String()
}

// TestLabelsOfImagesAreNotTrusted has every label that berth reads set by images: of a pod's
// container, of containers that are run by hand, committed, and made by docker
// build, and of the pause image; before and after a restart of berthd.
func TestLabelsOfImagesAreNotTrusted(t *testing.T) {
	n := newNode(t)
	target, unharmed := n.victim()
	sets := enginetest.HostileLabels(n.path("run"), target)
	byHand := map[string]string{}
	hand := func(what, ref string) {
		t.Helper()
		made, err := n.docker.ContainerCreate(t.Context(), &container.Config{Image: ref, Cmd: []string{"sh", "-c", "echo owned; exec sleep 1000"}}, nil, nil, nil, "")
		if err == nil {
			err = n.docker.ContainerStart(t.Context(), made.ID, container.StartOptions{})
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		byHand[made.ID] = what
	}
	config := n.pod("labels")
	pod, err := n.run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for i, name := range slices.Sorted(maps.Keys(sets)) {
		ref := fmt.Sprintf("berth-labels:%d", i)
		// A container of each step of a build has the labels, too.
		n.build(ref, labelled(*image, sets[name])+"RUN echo owned; sleep 0.3\n")
		hand(name, ref)
		c := shell(fmt.Sprintf("c%d", i), "exec sleep 1000")
		c.Image.Image = ref
		if i%2 == 0 {
			c.LogPath = ""
		}
		id := n.create(pod, config, c)
		want[id] = c.GetLogPath()
		committed, err := n.docker.ContainerCommit(t.Context(), id, container.CommitOptions{})
		if err != nil {
			t.Fatal(err)
		}
		hand("committed: "+name, committed.ID)
		t.Cleanup(func() {
			n.docker.ImageRemove(context.Background(), committed.ID, dockerimage.RemoveOptions{Force: true})
		})
	}

	check := func(when string) {
		t.Helper()
		unharmed(when)
		for id, what := range byHand {
			if seen, err := n.docker.ContainerInspect(t.Context(), id); err != nil || !seen.State.Running {
				t.Errorf("%s: the container run by hand (%s) was stopped or removed: %v", when, what, err)
			}
		}
		pods, err := n.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil || len(pods.GetItems()) != 1 {
			t.Errorf("%s: pods %v, %v", when, pods, err)
		}
		list, err := n.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
		if err != nil || len(list.GetContainers()) != len(want) {
			t.Errorf("%s: %d containers, want %d, %v", when, len(list.GetContainers()), len(want), err)
		}
		for _, c := range list.GetContainers() {
			path, mine := want[c.GetId()]
			if !mine || len(c.GetLabels()) != 1 || len(c.GetAnnotations()) != 0 || c.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Errorf("%s: listed %v", when, c)
			}
			if path != "" {
				path = filepath.Join(config.GetLogDirectory(), path)
			}
			s, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.GetId()})
			if u := s.GetStatus().GetUser().GetLinux(); err != nil || s.GetStatus().GetLogPath() != path || u.GetUid() != 0 || u.GetGid() != 0 {
				t.Errorf("%s: status %v, %v; want log path %q and user 0:0", when, s.GetStatus(), err, path)
			}
		}
	}
	check("running")
	n.kill()
	n.start() // which inspects everything, and collects what an earlier berthd has left
	check("after a restart")
	n.remove(pod)
	clear(want)
	left, err := n.docker.ContainerList(t.Context(), container.ListOptions{All: true})
	if err != nil || len(left) != len(byHand) {
		t.Errorf("%d containers are left, want the %d that were run by hand; %v", len(left), len(byHand), err)
	}
	unharmed("after the pod's removal")
	for id := range byHand {
		if err := n.docker.ContainerRemove(t.Context(), id, container.RemoveOptions{Force: true, RemoveVolumes: true}); err != nil {
			t.Error(err)
		}
	}
	n.removeLeftovers()
}

// TestLabelsOfPauseImageAreNotTrusted makes sandboxes of an image with every label that berth reads.
func TestLabelsOfPauseImageAreNotTrusted(t *testing.T) {
	n := newNode(t, "--pod-infra-container-image", "berth-labelled-pause:1")
	target, unharmed := n.victim()
	for i, set := range enginetest.HostileLabels(n.path("run"), target) {
		n.build("berth-labelled-pause:1", labelled(*image, set)+"ENTRYPOINT [\"sleep\", \"1000\"]\n")
		pod, err := n.run(t.Context(), n.pod("pause"))
		if err != nil {
			t.Fatalf("%s: %v", i, err)
		}
		n.kill()
		n.start()
		s, err := n.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
		if got := s.GetStatus(); err != nil || got.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY || got.GetRuntimeHandler() != "" || len(got.GetLabels()) != 2 || len(got.GetAnnotations()) != 1 {
			t.Errorf("%s: %v, %v", i, got, err)
		}
		n.remove(pod)
		unharmed(i)
	}
	n.removeLeftovers()
}

// TestFilesOfImagesAreNotTrusted runs images that say and hold what no honest image does. Each
// either runs or is refused with an error; berthd goes on, the node is unharmed, and
// the pod can be removed with all that belonged to it.
func TestFilesOfImagesAreNotTrusted(t *testing.T) {
	n := newNode(t)
	target, unharmed := n.victim()
	quote := strconv.Quote
	for name, lines := range map[string]string{
		"volumes everywhere":           `VOLUME ["/etc", "/proc/1", "/dev/shm", "/sys/fs", "/tmp/../x"]`,
		"a volume at a pod's file":     `COMMIT VOLUME ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"]`,
		"a working directory of proc":  `WORKDIR /proc/self/fd/8`,
		"a working directory of links": "RUN ln -s " + quote(target) + " /work\nWORKDIR /work",
		"a stop signal of numbers":     "STOPSIGNAL 64",
		"a health check":               "HEALTHCHECK --interval=1s CMD touch /checked",
		"an environment":               `ENV PATH="" LD_PRELOAD=/x BERTH=1 DOCKER_HOST=tcp://127.0.0.1:1`,
		"an entrypoint of nothing":     "ENTRYPOINT []\nCMD []",
		"a user that is not there":     "USER nosuch",
		"a group that is not there":    "USER root:nosuch",
		"a user beyond all numbers":    "RUN echo 'x:x:4294967296:0::/:/bin/sh' >>/etc/passwd\nUSER 4294967296",
		"a negative user":              "USER -1",
		"passwd is the node's file":    "RUN ln -sf " + quote(target+"/file") + " /etc/passwd && ln -sf " + quote(target+"/file") + " /etc/group\nUSER app",
		"passwd is a directory":        "RUN rm /etc/passwd && mkdir /etc/passwd\nUSER app",
		"passwd is a FIFO":             "RUN rm /etc/passwd /etc/group && mkfifo /etc/passwd /etc/group\nUSER app",
		"passwd is a device":           "RUN rm /etc/passwd && mknod /etc/passwd c 1 5\nUSER app",
		"passwd is a loop":             "RUN ln -sf group /etc/passwd && ln -sf passwd /etc/group\nUSER app",
		"passwd is huge":               "RUN yes 'app:x:1000:1000:app:/home/app:/bin/sh' | head -c 3000000 >>/etc/passwd\nUSER app",
		"passwd is binary":             "RUN head -c 100000 /dev/urandom >/etc/passwd\nUSER app",
		"passwd is one line":           "RUN head -c 2000000 /dev/zero | tr '\\0' a >/etc/passwd\nUSER app",
		"etc is a link to proc":        etcIs("proc/self"),
		"etc leads out":                etcIs("../../../../../.." + target),
		"a pod's files are links":      links("etc/hosts", target+"/file", "etc/hostname", target+"/file", "etc/resolv.conf", "../../../../.."+target+"/file"),
		"shm is a link":                links("dev/shm", target),
		"a deep tree":                  "RUN d=/deep; for i in $(seq 200); do d=$d/directory; done; mkdir -p $d",
		"a wide tree":                  "RUN mkdir /wide && cd /wide && seq 20000 | xargs touch",
		"odd names":                    `RUN mkdir /odd && cd /odd && touch "$(printf 'a\nb')" "$(printf '\377\376')" ' ' '*'`,
	} {
		t.Run(name, func(t *testing.T) {
			outer := n.t
			n.t = t
			defer func() { n.t = outer }()
			ref := "berth-contents:1"
			if change, ok := strings.CutPrefix(lines, "COMMIT "); ok {
				n.commit(ref, change) // docker build would refuse it
			} else {
				n.build(ref, "FROM "+*image+" AS base\n"+lines+"\n")
			}
			config := n.pod("contents")
			pod, err := n.run(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			c := shell("c", "while :; do sleep 0.1; done")
			c.Image.Image = ref
			limited, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			made, err := n.runtime.CreateContainer(limited, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: config})
			if err == nil {
				_, err = n.runtime.StartContainer(limited, &runtimeapi.StartContainerRequest{ContainerId: made.GetContainerId()})
			}
			if limited.Err() != nil {
				t.Errorf("no answer in time: %v", err)
			}
			t.Logf("started: %v", err)
			if err == nil {
				s, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: made.GetContainerId()})
				if err != nil {
					t.Error(err)
				}
				if u := s.GetStatus().GetUser().GetLinux(); u != nil {
					n.runsAs(made.GetContainerId(), u)
				}
				if _, err := n.runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: made.GetContainerId()}); err != nil {
					t.Error(err)
				}
			}
			if _, err := n.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
				t.Error(err)
			}
			if !n.ready() {
				t.Error("berthd is not ready")
			}
			n.remove(pod)
			n.removeLeftovers()
			unharmed(name)
		})
	}
}

// links are lines of a Dockerfile for an image with symbolic links in place of what
// docker build itself mounts.
func links(pathsAndTargets ...string) string {
	var script strings.Builder
	script.WriteString("true")
	for i := 0; i < len(pathsAndTargets); i += 2 {
		path, target := "/links/"+pathsAndTargets[i], pathsAndTargets[i+1]
		fmt.Fprintf(&script, " && mkdir -p %s && ln -s %s %s", filepath.Dir(path), target, path)
	}
	return "RUN " + script.String() + "\nFROM scratch\nCOPY --from=base /bin /bin\nCOPY --from=base /links /\nCMD [\"sh\"]"
}

func etcIs(target string) string { return links("etc", target) + "\nUSER app" }

// commit makes an image of one container with a change, such as a line of a Dockerfile.
func (n *node) commit(ref, change string) {
	n.t.Helper()
	ctx := context.Background()
	made, err := n.docker.ContainerCreate(ctx, &container.Config{Image: *image, Cmd: []string{"sh"}}, nil, nil, nil, "")
	if err != nil {
		n.t.Fatal(err)
	}
	defer n.docker.ContainerRemove(ctx, made.ID, container.RemoveOptions{Force: true})
	if _, err := n.docker.ContainerCommit(ctx, made.ID, container.CommitOptions{Reference: ref, Changes: []string{change}}); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { n.docker.ImageRemove(ctx, ref, dockerimage.RemoveOptions{Force: true}) })
}

// runsAs compares the user in a container's status with that of its first process.
func (n *node) runsAs(id string, u *runtimeapi.LinuxContainerUser) {
	n.t.Helper()
	uid, gid := strings.Fields(n.word(id, "Uid")), strings.Fields(n.word(id, "Gid"))
	if len(uid) == 0 || len(gid) == 0 || uid[0] != fmt.Sprint(u.GetUid()) || gid[0] != fmt.Sprint(u.GetGid()) {
		n.t.Errorf("the status says user %d:%d, the process is %v:%v", u.GetUid(), u.GetGid(), uid, gid)
	}
}
