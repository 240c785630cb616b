package main

import (
	"bufio"
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// firstResponseTimeout is for the first response of a runtime, which may have just started.
const firstResponseTimeout = 20 * time.Second

// A cri is a side with a CRI socket: berthd and a peer get the same requests.
type cri struct {
	label   string
	version string // name and version that it reports
	image   string
	dir     string // directory of logs
	runtime runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
	socket  string
	conn    *grpc.ClientConn
	own     process   // the process of the runtime
	engine  []process // processes of its Engine
	working workers   // all of these
	host    bool      // pods are in the network of the node
	userNS  bool      // pods have user namespaces
}

// dial connects to a runtime and waits until it is ready.
func dial(ctx context.Context, r runtimePlan, dir string, engine []process) (*cri, error) {
	if err := checkSocket(r.Socket); err != nil {
		return nil, fmt.Errorf("%s: %w", r.Name, err)
	}
	conn, err := connect(r.Socket)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Name, err)
	}
	c := &cri{label: r.Name, image: r.Image, socket: r.Socket, dir: filepath.Join(dir, r.Name), engine: engine, host: r.HostNetwork, userNS: r.UserNS}
	c.use(conn)
	if err := c.findProcesses(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, firstResponseTimeout)
	defer cancel()
	v, err := c.runtime.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return nil, fmt.Errorf("%s at %s does not serve CRI v1: %w", r.Name, r.Socket, err)
	}
	c.version = r.About
	if c.version == "" {
		c.version = v.GetRuntimeName() + " " + v.GetRuntimeVersion()
	}
	if err := c.ready(ctx); err != nil {
		return nil, fmt.Errorf("%s is not ready: %w", r.Name, err)
	}
	return c, c.fetch(ctx)
}

// connect returns a connection to a CRI socket.
func connect(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix:"+strings.TrimPrefix(socket, "unix://"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20))) // as the kubelet does
}

// use makes all calls on a connection.
func (c *cri) use(conn *grpc.ClientConn) {
	c.conn, c.runtime, c.images = conn, runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
}

// findProcesses finds the process of the runtime.
func (c *cri) findProcesses() (err error) {
	if c.own, err = listeningProcess(c.label, c.socket); err != nil {
		return err
	}
	c.working, err = newWorkers(append([]process{c.own}, c.engine...)...)
	return err
}

// ready waits until RuntimeReady and NetworkReady are true.
func (c *cri) ready(ctx context.Context) error {
	for {
		s, err := c.runtime.Status(ctx, &runtimeapi.StatusRequest{})
		if err != nil {
			return err
		}
		var lacks []string
		for _, cond := range s.GetStatus().GetConditions() {
			if !cond.GetStatus() && (cond.GetType() == runtimeapi.RuntimeReady || cond.GetType() == runtimeapi.NetworkReady) {
				lacks = append(lacks, cond.GetReason()+": "+cond.GetMessage())
			}
		}
		if len(lacks) == 0 {
			return nil
		}
		if wait(ctx, 100*time.Millisecond) != nil {
			return fmt.Errorf("%s", strings.Join(lacks, "; "))
		}
	}
}

// fetch pulls the image if it is missing.
func (c *cri) fetch(ctx context.Context) error {
	spec := &runtimeapi.ImageSpec{Image: c.image}
	found, err := c.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
	if err != nil {
		return fmt.Errorf("%s: image %s: %w", c.label, c.image, err)
	}
	if found.GetImage() != nil {
		return nil
	}
	if _, err := c.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec}); err != nil {
		return fmt.Errorf("%s has no image %s and cannot pull it: %w", c.label, c.image, err)
	}
	return nil
}

func (c *cri) name() string  { return c.label }
func (c *cri) cost() workers { return c.working }

// network returns the mode of the network namespace of pods.
func (c *cri) network() runtimeapi.NamespaceMode {
	if c.host {
		return runtimeapi.NamespaceMode_NODE
	}
	return runtimeapi.NamespaceMode_POD
}

// namespaces returns the namespaces of a pod and of its containers.
func (c *cri) namespaces(pod string) *runtimeapi.NamespaceOption {
	options := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER, Network: c.network()}
	if c.userNS {
		options.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: idRange(pod), Gids: idRange(pod)}
	}
	return options
}

// idRange returns the IDs of a pod with a user namespace: as those of a kubelet they are multiples of their number, and differ
// between pods.
func idRange(pod string) []*runtimeapi.IDMapping {
	const length, ranges = 1 << 16, 1 << 14
	h := fnv.New32a()
	_, _ = io.WriteString(h, pod)
	return []*runtimeapi.IDMapping{{HostId: length * (1 + h.Sum32()%ranges), Length: length}}
}

// config returns the config of the pod with a name.
func (c *cri) config(name string) *runtimeapi.PodSandboxConfig {
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: filepath.Join(c.dir, name),
		Labels:       map[string]string{"app": name},
		Annotations:  map[string]string{"note": "an annotation"},
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"bench.local"}},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: c.namespaces(name)}},
	}
	if c.host {
		config.Hostname = ""
	}
	return config
}

func (c *cri) run(ctx context.Context, pod string) (string, error) {
	config := c.config(pod)
	if err := os.MkdirAll(config.GetLogDirectory(), 0o755); err != nil { // as the kubelet does
		return "", err
	}
	r, err := c.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	return r.GetPodSandboxId(), err
}

func (c *cri) create(ctx context.Context, sandbox, pod, container, script string) (string, error) {
	return c.createContainer(ctx, sandbox, pod, container, script, false)
}

func (c *cri) createContainer(ctx context.Context, sandbox, pod, container, script string, stdin bool) (string, error) {
	r, err := c.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: sandbox, SandboxConfig: c.config(pod),
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: container},
			Image:    &runtimeapi.ImageSpec{Image: c.image},
			Command:  []string{"sh", "-c", script},
			LogPath:  container + ".log",
			Stdin:    stdin,
			Labels:   map[string]string{"container": container},
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: c.namespaces(pod)}},
		},
	})
	return r.GetContainerId(), err
}

func (c *cri) start(ctx context.Context, id string) error {
	_, err := c.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
	return err
}

func (c *cri) status(ctx context.Context, id string) error {
	_, err := c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	return err
}

func (c *cri) exec(ctx context.Context, id string) error {
	r, err := c.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 20})
	if err == nil && r.GetExitCode() != 0 {
		err = fmt.Errorf("true exits with %d", r.GetExitCode())
	}
	return err
}

func (c *cri) stopContainer(ctx context.Context, id string) error {
	_, err := c.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id})
	return err
}

func (c *cri) removeContainer(ctx context.Context, id string) error {
	_, err := c.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
	return err
}

func (c *cri) stop(ctx context.Context, sandbox string) error {
	_, err := c.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox})
	return err
}

func (c *cri) remove(ctx context.Context, sandbox string) error {
	_, err := c.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox})
	return err
}

func (c *cri) ended(ctx context.Context, id string) (bool, error) {
	r, err := c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	return r.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_EXITED, err
}

func (c *cri) logLines(_ context.Context, _, pod, container string) (int, error) {
	f, err := os.Open(filepath.Join(c.dir, pod, container+".log"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return countLines(f)
}

func countLines(r io.Reader) (n int, err error) {
	lines := bufio.NewReaderSize(r, 1<<20)
	for {
		if _, err := lines.ReadSlice('\n'); err == io.EOF {
			return n, nil
		} else if err != nil {
			return n, err
		}
		n++
	}
}

func (c *cri) listSandboxes(ctx context.Context) (int, error) {
	r, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	return len(r.GetItems()), err
}

func (c *cri) listContainers(ctx context.Context) (int, error) {
	r, err := c.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	return len(r.GetContainers()), err
}

func (c *cri) containerStats(ctx context.Context) (int, error) {
	r, err := c.runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	return len(r.GetStats()), err
}

func (c *cri) podStats(ctx context.Context) (int, error) {
	r, err := c.runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
	if status.Code(err) == codes.Unimplemented || status.Code(err) == codes.Unknown && strings.Contains(err.Error(), "not implemented") {
		return 0, errNotImplemented
	}
	if err != nil && strings.Contains(err.Error(), "cgroupPath is empty") { // containerd 2.3 has these only for pods below a cgroup of the kubelet
		return 0, errNotImplemented
	}
	return len(r.GetStats()), err
}

func (c *cri) listImages(ctx context.Context) (int, error) {
	r, err := c.images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	return len(r.GetImages()), err
}

// statuses requests the status of each sandbox and container, one by one.
func (c *cri) statuses(ctx context.Context) (int, error) {
	pods, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return 0, err
	}
	for _, p := range pods.GetItems() {
		if _, err := c.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.GetId()}); err != nil {
			return 0, err
		}
	}
	list, err := c.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return 0, err
	}
	for _, k := range list.GetContainers() {
		if _, err := c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: k.GetId()}); err != nil {
			return 0, err
		}
	}
	return len(list.GetContainers()), nil
}

func (c *cri) lists() []listCall {
	return []listCall{
		{rowPods, 100, c.listSandboxes}, {rowContainers, 100, c.listContainers}, {rowStatuses, 10, c.statuses},
		{rowStats, 10, c.containerStats}, {rowPodStats, 10, c.podStats}, {rowImages, 100, c.listImages},
	}
}

func (c *cri) relist(ctx context.Context, second int) error {
	if _, err := c.listSandboxes(ctx); err != nil {
		return err
	}
	if _, err := c.listContainers(ctx); err != nil {
		return err
	}
	if _, err := c.runtime.Status(ctx, &runtimeapi.StatusRequest{}); err != nil {
		return err
	}
	if second%statsEvery == 0 {
		if _, err := c.containerStats(ctx); err != nil {
			return err
		}
	}
	if second%imagesEvery == 0 {
		if _, err := c.images.ListImages(ctx, &runtimeapi.ListImagesRequest{}); err != nil {
			return err
		}
		if _, err := c.images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{}); err != nil {
			return err
		}
	}
	return nil
}

func (c *cri) noop(ctx context.Context) error {
	_, err := c.runtime.Version(ctx, &runtimeapi.VersionRequest{})
	return err
}
