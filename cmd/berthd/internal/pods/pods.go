// Package pods finds the pods of a node without the kubelet: for an operator who needs to know
// where they are in Docker and on the node, also while berthd does not run.
//
// Load returns a Report. It calls the CRI of berthd or, if that does not answer, reads Docker by
// the rules of berthd (daemon.Reader). Both are bounded in time.
package pods

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cmd/berthd/internal/config"
	"berth/core/daemon"
	"berth/core/server"
	"berth/network"
)

const (
	// berthdTimeout is for all calls of berthd, which answers them from memory.
	berthdTimeout = 5 * time.Second
	// dockerTimeout is for the inspects of all containers of the node.
	dockerTimeout = 15 * time.Second
	// maxMessage is the limit of the kubelet's client.
	maxMessage = 16 << 20
)

// Sources of a Report.
const (
	FromBerthd = "berthd"
	FromDocker = "docker"
)

// A Report has the pods of a node, by namespace and name.
type Report struct {
	Source   string `json:"source"`             // FromBerthd or FromDocker
	Endpoint string `json:"endpoint,omitempty"` // of the source
	Note     string `json:"note,omitempty"`     // why the source is not berthd
	Pods     []Pod  `json:"pods"`
}

// A Pod is one sandbox. The kubelet may have several for one pod, of which one is ready.
type Pod struct {
	Namespace   string      `json:"namespace"`
	Name        string      `json:"name"`
	UID         string      `json:"uid"`
	Attempt     uint32      `json:"attempt"`
	ID          string      `json:"id"`
	DockerName  string      `json:"dockerName,omitempty"`
	Ready       bool        `json:"ready"`
	NotReady    string      `json:"notReadyReason,omitempty"`
	CreatedAt   time.Time   `json:"createdAt,omitzero"`
	Pid         int         `json:"pid,omitempty"` // of the pause process
	HostNetwork bool        `json:"hostNetwork,omitempty"`
	NetNS       string      `json:"netns,omitempty"`
	Addresses   []string    `json:"addresses,omitempty"`
	LogDir      string      `json:"logDirectory,omitempty"`
	Handler     string      `json:"runtimeHandler,omitempty"`
	Containers  []Container `json:"containers"`
}

// A Container is one container of a Pod.
type Container struct {
	Name       string    `json:"name"`
	Attempt    uint32    `json:"attempt"` // 0 for the first, then one more with each restart
	ID         string    `json:"id"`
	DockerName string    `json:"dockerName,omitempty"`
	State      string    `json:"state"` // Created, Running, Exited or Unknown
	Reason     string    `json:"reason,omitempty"`
	Message    string    `json:"message,omitempty"`
	ExitCode   *int32    `json:"exitCode,omitempty"` // of one that has exited
	Image      string    `json:"image"`
	Pid        int       `json:"pid,omitempty"`
	CreatedAt  time.Time `json:"createdAt,omitzero"`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	FinishedAt time.Time `json:"finishedAt,omitzero"`
	LogPath    string    `json:"logPath,omitempty"`
}

// A runtime has the calls of the CRI that Load makes.
type runtime interface {
	ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error)
	PodSandboxStatus(context.Context, *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error)
	ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error)
	ContainerStatus(context.Context, *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error)
}

// Load returns the pods of the node whose berthd has the configuration cfg; those of one namespace, if it is not
// empty.
func Load(ctx context.Context, cfg config.Config, namespace string) (*Report, error) {
	report, berthdErr := loadFromBerthd(ctx, cfg, namespace)
	if berthdErr == nil {
		return report, nil
	}
	report, err := loadFromDocker(ctx, cfg, namespace)
	if err != nil {
		return nil, fmt.Errorf("neither berthd nor Docker answers: berthd at %s: %s; %w", cfg.ClientEndpoint(), text(berthdErr), err)
	}
	report.Note = "berthd does not answer: " + text(berthdErr)
	return report, nil
}

// text returns an error of gRPC as one line for the operator.
func text(err error) string { return printable(status.Convert(err).Message()) }

// isNotFound reports whether a pod or container was removed meanwhile.
func isNotFound(err error) bool { return errdefs.IsNotFound(err) || status.Code(err) == codes.NotFound }

// client makes a runtime of a client of gRPC.
type client struct {
	runtimeapi.RuntimeServiceClient
}

func (c client) ListPodSandbox(ctx context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return c.RuntimeServiceClient.ListPodSandbox(ctx, r)
}

func (c client) PodSandboxStatus(ctx context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	return c.RuntimeServiceClient.PodSandboxStatus(ctx, r)
}

func (c client) ListContainers(ctx context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return c.RuntimeServiceClient.ListContainers(ctx, r)
}

func (c client) ContainerStatus(ctx context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return c.RuntimeServiceClient.ContainerStatus(ctx, r)
}

func loadFromBerthd(ctx context.Context, cfg config.Config, namespace string) (*Report, error) {
	ctx, cancel := context.WithTimeout(ctx, berthdTimeout)
	defer cancel()
	endpoint := cfg.ClientEndpoint()
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	found, err := list(ctx, client{runtimeapi.NewRuntimeServiceClient(conn)}, namespace)
	return &Report{Source: FromBerthd, Endpoint: endpoint, Pods: found}, err
}

func loadFromDocker(ctx context.Context, cfg config.Config, namespace string) (report *Report, err error) {
	ctx, cancel := context.WithTimeout(ctx, dockerTimeout)
	reader, err := daemon.NewReader(daemon.Config{
		DockerHost: cfg.DockerEndpoint, RequestTimeout: min(cfg.RequestTimeout, dockerTimeout),
		Network: network.Config{ConfDir: cfg.CNIConfDir, BinDirs: cfg.CNIBinDirs, CacheDir: cfg.CNICacheDir, RunDir: cfg.RunDir, NetNSDir: cfg.NetNSDir()},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		cancel()
		return nil, err
	}
	stopped := make(chan struct{})
	go func() { defer close(stopped); _ = reader.Run(ctx) }() // it returns nil
	defer func() { cancel(); <-stopped }()
	if err := reader.Wait(ctx); err != nil {
		return nil, err
	}
	found, err := list(ctx, reader, namespace)
	return &Report{Source: FromDocker, Endpoint: reader.Host(), Pods: found}, err
}

// list returns the pods of r, sorted.
func list(ctx context.Context, r runtime, namespace string) ([]Pod, error) {
	sandboxes, err := r.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	found := []Pod{}
	known := map[string]bool{}
	for _, s := range sandboxes.GetItems() {
		known[s.GetId()] = true
		if namespace != "" && s.GetMetadata().GetNamespace() != namespace {
			continue
		}
		one, err := r.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.GetId(), Verbose: true})
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		pod, err := newPod(one)
		if err != nil {
			return nil, err
		}
		found = append(found, pod)
	}
	orphans, err := listOrphans(ctx, r, namespace, known)
	if err != nil {
		return nil, err
	}
	found = append(found, orphans...)
	slices.SortFunc(found, func(a, b Pod) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name), b.CreatedAt.Compare(a.CreatedAt), strings.Compare(a.ID, b.ID))
	})
	return found, nil
}

// listOrphans returns a Pod for each sandbox that is not known and has containers, as after
// docker rm of a pause container.
func listOrphans(ctx context.Context, r runtime, namespace string, known map[string]bool) ([]Pod, error) {
	containers, err := r.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	orphans := map[string]*Pod{}
	var order []string
	for _, c := range containers.GetContainers() {
		id := c.GetPodSandboxId()
		ns := c.GetLabels()["io.kubernetes.pod.namespace"] // of the kubelet
		if known[id] || namespace != "" && ns != namespace {
			continue
		}
		one, err := r.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.GetId()})
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if orphans[id] == nil {
			labels := c.GetLabels()
			orphans[id] = &Pod{
				Namespace: ns, Name: labels["io.kubernetes.pod.name"], UID: labels["io.kubernetes.pod.uid"], ID: id,
				NotReady: "there is no pause container",
			}
			order = append(order, id)
		}
		orphans[id].Containers = append(orphans[id].Containers, newContainer(one.GetStatus(), server.ContainerInfo{}))
	}
	var found []Pod
	for _, id := range order {
		sortContainers(orphans[id].Containers)
		found = append(found, *orphans[id])
	}
	return found, nil
}

// newPod returns the Pod of a verbose status.
func newPod(r *runtimeapi.PodSandboxStatusResponse) (Pod, error) {
	s := r.GetStatus()
	var info struct {
		Pid    int             `json:"pid"`
		Node   *server.PodInfo `json:"node"`
		Config struct {
			LogDirectory string `json:"log_directory"`
		} `json:"config"`
	}
	if err := json.Unmarshal([]byte(r.GetInfo()["info"]), &info); err != nil {
		return Pod{}, fmt.Errorf("verbose status of the sandbox %s: %w", s.GetId(), err)
	}
	node := info.Node
	if node == nil { // another runtime, or an older berthd, serves the socket
		return Pod{}, fmt.Errorf("what serves the socket does not know %q in the status of a sandbox: it is no berthd, or an older one", "node")
	}
	pod := Pod{
		Namespace: s.GetMetadata().GetNamespace(), Name: s.GetMetadata().GetName(), UID: s.GetMetadata().GetUid(), Attempt: s.GetMetadata().GetAttempt(),
		ID: s.GetId(), DockerName: node.Name, Ready: s.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY, NotReady: node.NotReady,
		CreatedAt: at(s.GetCreatedAt()), Pid: info.Pid, NetNS: node.NetNS, LogDir: info.Config.LogDirectory, Handler: s.GetRuntimeHandler(),
		HostNetwork: s.GetLinux().GetNamespaces().GetOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE,
		Containers:  []Container{},
	}
	if ip := s.GetNetwork().GetIp(); ip != "" {
		pod.Addresses = append(pod.Addresses, ip)
	}
	for _, ip := range s.GetNetwork().GetAdditionalIps() {
		pod.Addresses = append(pod.Addresses, ip.GetIp())
	}
	for _, c := range r.GetContainersStatuses() {
		pod.Containers = append(pod.Containers, newContainer(c, node.Containers[c.GetId()]))
	}
	sortContainers(pod.Containers)
	return pod, nil
}

// newContainer returns the Container of a status.
func newContainer(s *runtimeapi.ContainerStatus, node server.ContainerInfo) Container {
	c := Container{
		Name: s.GetMetadata().GetName(), Attempt: s.GetMetadata().GetAttempt(), ID: s.GetId(), DockerName: node.Name, Pid: node.Pid,
		Reason: s.GetReason(), Message: s.GetMessage(), Image: s.GetImage().GetImage(),
		CreatedAt: at(s.GetCreatedAt()), StartedAt: at(s.GetStartedAt()), FinishedAt: at(s.GetFinishedAt()), LogPath: s.GetLogPath(),
	}
	switch s.GetState() {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		c.State = "Created"
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		c.State = "Running"
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		c.State = "Exited"
		code := s.GetExitCode()
		c.ExitCode = &code
	default:
		c.State = "Unknown"
	}
	return c
}

// sortContainers sorts by name, the last attempt first.
func sortContainers(list []Container) {
	slices.SortFunc(list, func(a, b Container) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(b.Attempt, a.Attempt), b.CreatedAt.Compare(a.CreatedAt))
	})
}

// at returns a time of the CRI, zero if it is not set.
func at(nanoseconds int64) time.Time {
	if nanoseconds == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanoseconds).UTC()
}
