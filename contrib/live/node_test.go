// Package live tests the whole daemon on a real Docker Engine, from the outside: it calls
// the CRI of a berthd of its own and checks the state of Docker, the network and the file
// system.
package live

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var (
	host    = flag.String("docker", "", "`endpoint` of a Docker Engine to test on, which nobody else uses; without it these tests are skipped")
	image   = flag.String("image", "berth-test:1", "an `image` with a busybox that the Engine has")
	cniBin  = flag.String("cni", "/opt/cni/bin", "`directory` of the CNI plugins")
	program = flag.String("berthd", "", "`path` of the berthd to test; without it one is built")
	peerBin = flag.String("containerd", "", "`directory` of containerd 2.3 and its shim, to compare with")
	enter   = flag.String("enter", "", "`command`, without quotes, before the path of a program that runs it where the Engine runs")
	ociPath = flag.String("berth-oci", "", "`path` of the berth-oci to test; without it one is built")
)

func TestMain(m *testing.M) {
	if command := os.Getenv("CNI_COMMAND"); command != "" { // run as a CNI plugin
		os.Exit(faultyPlugin(command))
	}
	flag.Parse()
	code := 0
	if *host != "" && *program == "" {
		dir, err := os.MkdirTemp("", "berth-live")
		if err != nil {
			panic(err)
		}
		*program = filepath.Join(dir, "berthd")
		if out, err := exec.Command("go", "build", "-o", *program, "berth/cmd/berthd").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build berthd: %v\n%s", err, out)
			os.Exit(1)
		}
		code = m.Run()
		os.RemoveAll(dir)
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// A node is a berthd with directories of its own and a proxy between it and
// Docker.
type node struct {
	t      testing.TB
	dir    string
	flags  []string
	docker *client.Client // not through the proxy
	proxy  *proxy
	log    *lockedBuffer

	metrics string // address of the daemon's metrics, for an audit
	systemd bool   // whether that is Docker's driver of cgroups, for an audit
	strays  []stray

	cmd     *exec.Cmd
	done    chan struct{}
	conn    *grpc.ClientConn
	runtime runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// newNode starts a berthd, with further flags, or skips where there is no Engine.
func newNode(t testing.TB, flags ...string) *node {
	t.Helper()
	n := prepareNode(t, flags...)
	n.start()
	return n
}

// prepareNode is newNode, but for starting berthd.
func prepareNode(t testing.TB, flags ...string) *node {
	t.Helper()
	if *host == "" {
		t.Skip("needs root and a Docker Engine: -docker unix:///...")
	}
	docker, err := client.NewClientWithOpts(client.WithHost(*host), client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { docker.Close() })
	dir, err := os.MkdirTemp("", "berth-node")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: dir, flags: flags, docker: docker, log: &lockedBuffer{}}
	n.proxy = newProxy(t, filepath.Join(dir, "docker.sock"))
	if err := os.MkdirAll(n.path("net.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "live", "plugins": [
		{"type": "bridge", "bridge": "live0", "isGateway": true,
		 "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.87.0.0/16"}], [{"subnet": "fd87::/64"}]]}},
		{"type": "portmap", "capabilities": {"portMappings": true}}]}`, n.path("ipam"))
	if err := os.WriteFile(n.path("net.d", "10-live.conflist"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.kill()
		if t.Failed() {
			polled := func(line string) bool { return strings.Contains(line, "call=Status took=") }
			lines := slices.DeleteFunc(strings.Split(n.log.String(), "\n"), polled)
			t.Logf("the end of berthd's log:\n%s", strings.Join(lines[max(0, len(lines)-60):], "\n"))
		}
		// A test that failed half-way must not fail the next.
		if list, err := docker.ContainerList(context.Background(), container.ListOptions{All: true}); err == nil {
			for _, c := range list {
				docker.ContainerRemove(context.Background(), c.ID, container.RemoveOptions{Force: true})
			}
		}
		handles, _ := filepath.Glob(n.path("run", "netns", "*"))
		files, _ := filepath.Glob(n.path("run", "pods", "*"))
		for _, h := range slices.Concat(handles, files, []string{n.path("run", "netns")}) {
			exec.Command("umount", "-l", h).Run()
		}
		os.RemoveAll(dir)
	})
	return n
}

func (n *node) path(elem ...string) string { return filepath.Join(append([]string{n.dir}, elem...)...) }

// start starts berthd and waits until it is ready.
func (n *node) start() {
	n.t.Helper()
	n.launch(*program, n.ownFlags()...)
}

func (n *node) ownFlags() []string { return append([]string{"--run-dir", n.path("run")}, n.flags...) }

// restart kills berthd and starts it again, while callers call. The clients connect
// again on their own.
func (n *node) restart() {
	n.t.Helper()
	_ = n.cmd.Process.Kill()
	<-n.done
	n.spawn(*program, n.ownFlags()...)
}

// launch starts a berthd, or a cri-dockerd, with what flags both have, and waits
// until it is ready.
func (n *node) launch(program string, flags ...string) {
	n.t.Helper()
	n.spawn(program, flags...)
	conn, err := grpc.NewClient("unix:"+n.path("cri.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)), // as the kubelet does
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, MaxDelay: 500 * time.Millisecond}}))
	if err != nil {
		n.t.Fatal(err)
	}
	n.conn, n.runtime, n.images = conn, runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	n.waitReady(20 * time.Second)
}

// spawn starts the process alone.
func (n *node) spawn(program string, flags ...string) {
	n.t.Helper()
	common := []string{
		"--container-runtime-endpoint", "unix://" + n.path("cri.sock"), "--docker-endpoint", "unix://" + n.path("docker.sock"),
		"--cni-conf-dir", n.path("net.d"), "--cni-bin-dir", *cniBin, "--cni-cache-dir", n.path("cache"),
		"--cri-dockerd-root-directory", n.path("root"),
	}
	if !slices.Contains(flags, "--config") { // flags win over a file
		common = append(common, "--log-level", "debug", "--pod-infra-container-image", "berth.local/pause:1")
	}
	n.cmd = exec.Command(program, slices.Concat(common, flags)...)
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.done = make(chan struct{})
	cmd, done := n.cmd, n.done
	go func() { _ = cmd.Wait(); close(done) }()
}

// waitReady waits until Status says that pods can be run.
func (n *node) waitReady(limit time.Duration) {
	n.t.Helper()
	n.until(limit, "berthd is not ready", func() bool { return n.ready() })
}

// ready reports whether both conditions hold.
func (n *node) ready() bool {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	status, err := n.runtime.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return false
	}
	for _, c := range status.GetStatus().GetConditions() {
		if !c.GetStatus() {
			return false
		}
	}
	return true
}

func (n *node) until(limit time.Duration, what string, ok func() bool) {
	n.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatalf("%s after %v", what, limit)
		}
	}
}

// kill ends berthd as a crash would, and waits for its end.
func (n *node) kill() {
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Kill()
	<-n.done
	n.conn.Close()
	n.cmd = nil
}

// leftovers lists all that berthd and the plugins have on the node.
func (n *node) leftovers() []string {
	n.t.Helper()
	list, err := n.docker.ContainerList(context.Background(), container.ListOptions{All: true})
	if err != nil {
		n.t.Fatal(err)
	}
	var left []string
	for _, c := range list {
		left = append(left, "container "+c.Names[0]+" "+c.State)
	}
	for _, pattern := range []string{
		n.path("run", "netns", "*"), n.path("run", "pods", "*"), n.path("run", "oci", "*"), n.path("root", "berth", "v1", "[flsu]*", "*"), n.path("root", "sandbox", "*"),
		n.path("ipam", "live", "*.*.*.*"), n.path("ipam", "live", "*:*"), n.path("cache", "results", "*"),
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			n.t.Fatal(err)
		}
		for _, f := range found {
			left = append(left, strings.TrimPrefix(f, n.dir))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, n.path("run")+"/") && !strings.Contains(line, n.path("run", "netns")+" ") {
			left = append(left, "mount "+strings.Fields(line)[4])
		}
	}
	links, err := exec.Command("ip", "-o", "link", "show", "type", "veth").Output()
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(string(links)) {
		left = append(left, "link "+strings.Fields(line)[1])
	}
	return left
}

// clean fails unless nothing is left on the node.
func (n *node) clean() {
	n.t.Helper()
	// veth pairs go a moment after their namespaces.
	var left []string
	for range 50 {
		if left = n.leftovers(); len(left) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	n.t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
}

// pod is a pod to ask for; each name is another pod.
func (n *node) pod(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "live", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: n.path("logs", name),
		Labels:       map[string]string{"app": name, "annotation.x": "a label"},
		Annotations:  map[string]string{"note": "an annotation"},
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"10.0.0.53"}, Searches: []string{"live.local"}, Options: []string{"ndots:5"}},
		Linux:        &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
}

// shell is a container that runs a script.
func shell(name, script string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: *image},
		Command:  []string{"sh", "-c", script},
		LogPath:  name + "/0.log",
		Labels:   map[string]string{"container": name},
		Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
}

// run runs a pod with no containers.
func (n *node) run(ctx context.Context, pod *runtimeapi.PodSandboxConfig) (string, error) {
	r, err := n.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
	return r.GetPodSandboxId(), err
}

// remove removes a pod; it must work.
func (n *node) remove(id string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := n.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		n.t.Errorf("stop: %v", err)
	}
	if _, err := n.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		n.t.Errorf("remove: %v", err)
	}
}

// A proxy is between berthd and Docker. It counts requests, and can act at the n-th.
type proxy struct {
	t    testing.TB
	path string
	rev  *httputil.ReverseProxy

	mu     sync.Mutex // guards following
	srv    *http.Server
	calls  map[string]int
	count  int                                                       // of requests since arm
	at     int                                                       // the request to act on, 0 for none
	before bool                                                      // act before Docker sees it
	act    func(w http.ResponseWriter, r *http.Request) (spent bool) // returns whether it has answered
	seen   string                                                    // the request acted on
	faults []*fault
	lifted chan struct{} // closed when the faults are lifted
	hits   int           // requests that had a fault
	traced []tracedRequest

	streams map[*http.Request]context.CancelFunc // end the streams of events: berthd has one for each purpose
}

func newProxy(t testing.TB, path string) *proxy {
	t.Helper()
	real := strings.TrimPrefix(*host, "unix://")
	p := &proxy{t: t, path: path, calls: map[string]int{}, streams: map[*http.Request]context.CancelFunc{}}
	p.rev = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: "docker"}) },
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", real)
		}},
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0),                                                      // connections break on purpose
		ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }, // as a Docker that is not there
	}
	p.open()
	t.Cleanup(p.close)
	return p
}

// open lets berthd reach Docker.
func (p *proxy) open() {
	p.t.Helper()
	os.Remove(p.path)
	l, err := net.Listen("unix", p.path)
	if err != nil {
		p.t.Fatal(err)
	}
	srv := &http.Server{Handler: p}
	p.mu.Lock()
	p.srv = srv
	p.mu.Unlock()
	go srv.Serve(l)
}

// close makes Docker unreachable, and breaks what is open.
func (p *proxy) close() {
	p.mu.Lock()
	srv := p.srv
	p.mu.Unlock()
	srv.Close()
	os.Remove(p.path)
}

// arm makes the n-th request from now on, but for pings and the like, do what
// act does, before or after Docker has done its part.
func (p *proxy) arm(n int, before bool, act func(http.ResponseWriter, *http.Request) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count, p.at, p.before, p.act, p.seen = 0, n, before, act, ""
}

// acted returns the request acted on, "" if it has not come to that.
func (p *proxy) acted() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen
}

func (p *proxy) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.calls)
}

// total counts the requests since reset, but for pings.
func (p *proxy) total() (int, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	sum := 0
	for _, c := range p.calls {
		sum += c
	}
	return sum, fmt.Sprint(slices.Sorted(maps.Keys(p.calls)))
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.recordTrace(r)
	if strings.HasSuffix(r.URL.Path, "/events") {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		r = r.WithContext(ctx)
		p.mu.Lock()
		p.streams[r] = cancel
		p.mu.Unlock()
		defer func(r *http.Request) {
			p.mu.Lock()
			defer p.mu.Unlock()
			delete(p.streams, r)
		}(r)
	}
	if f, lifted := p.faulty(r); f != nil {
		f.serve(p, lifted, w, r)
		return
	}
	quiet := strings.HasSuffix(r.URL.Path, "/_ping") || strings.HasSuffix(r.URL.Path, "/events") ||
		strings.HasSuffix(r.URL.Path, "/info") || strings.HasSuffix(r.URL.Path, "/wait") || strings.HasSuffix(r.URL.Path, "/system/df")
	if quiet {
		p.rev.ServeHTTP(w, r)
		return
	}
	p.mu.Lock()
	p.calls[r.Method+" "+r.URL.Path]++
	p.count++
	act, mine, before := p.act, p.at > 0 && p.count == p.at, p.before
	if mine {
		p.seen = r.Method + " " + r.URL.Path
	}
	p.mu.Unlock()
	if mine && before && act(w, r) {
		return
	}
	if mine && !before {
		p.rev.ServeHTTP(&discard{header: http.Header{}}, r)
		act(w, r)
		return
	}
	p.rev.ServeHTTP(w, r)
}

// discard takes an answer that nobody gets.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}
