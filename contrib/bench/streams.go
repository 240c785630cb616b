package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// A streamer is a side that transfers data to and from containers.
type streamer interface {
	side
	// execStream runs a command: it writes all of stdin if that is not nil, and its output to stdout.
	execStream(ctx context.Context, id string, command []string, stdin io.Reader, stdout io.Writer) error
	// attach writes stdin to the first process of a container, and what it prints from then on to stdout, until it ends.
	attach(ctx context.Context, id string, stdin io.Reader, stdout io.Writer) error
	// createWithStdin creates a container with an open stdin that runs a script.
	createWithStdin(ctx context.Context, sandbox, pod, container, script string) (id string, err error)
	// forward connects to a port of a pod and writes what it gets to stdout.
	forward(ctx context.Context, sandbox string, port int, stdout io.Writer) error
}

// firstPort is the first of the ports of the pods that port-forward connects to. They are in the network of the node.
const firstPort = 18480

// streamTimeout is for one transfer.
const streamTimeout = 5 * time.Minute

// streams measures transfers of each side.
func (b *bench) streams(ctx context.Context, _ []*cri) (err error) {
	pods := map[side][]*pod{}
	defer func() {
		for s, all := range pods {
			b.cleanUp(ctx, s, &err, all...)
		}
	}()
	size := int64(b.Streams) * 1e6
	for i, s := range b.sides {
		p := &pod{name: "streams"}
		pods[s] = []*pod{p}
		if p.sandbox, err = s.run(ctx, p.name); err != nil {
			return fmt.Errorf("start a pod of %s: %w", s.name(), err)
		}
		server := fmt.Sprintf("exec nc -ll -p %d -e head -c %d /dev/zero", firstPort+i, size)
		if err := errors.Join(addContainer(ctx, s, p, "c0", sleeping), addContainer(ctx, s, p, "server", server)); err != nil {
			return fmt.Errorf("start a container of %s: %w", s.name(), err)
		}
		if err := wait(ctx, measureDelay); err != nil { // until it listens
			return err
		}
	}
	b.say("%d rounds of %d MB each way on each side", b.Rounds, b.Streams)
	for round := range b.Rounds + 1 { // the first is not counted
		for i, s := range b.rotated(round) {
			port := firstPort + (i+round)%len(b.sides)
			if err := b.transfers(ctx, s.(streamer), pods[s][0], port, round, size); err != nil {
				return err
			}
		}
	}
	for _, s := range b.sides {
		if err := b.removeAll(ctx, s, pods[s]); err != nil {
			return err
		}
		delete(pods, s)
	}
	return nil
}

// transfers measures each kind of transfer once.
func (b *bench) transfers(ctx context.Context, s streamer, p *pod, port, round int, size int64) error {
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	// The output of the container is in its log too, so it consists of lines as logs do.
	script := fmt.Sprintf(`read x; yes %s | head -c %d`, strings.Repeat("x", 99), size)
	id, err := s.createWithStdin(ctx, p.sandbox, p.name, fmt.Sprintf("attach-%d", round), script)
	if err != nil {
		return fmt.Errorf("create a container of %s: %w", s.name(), err)
	}
	p.containers = append(p.containers, id)
	if err := s.start(ctx, id); err != nil {
		return fmt.Errorf("start a container of %s: %w", s.name(), err)
	}
	for _, kind := range []struct {
		row string
		do  func(w io.Writer) error
	}{
		{rowStdout, func(w io.Writer) error {
			return s.execStream(ctx, p.containers[0], []string{"head", "-c", strconv.FormatInt(size, 10), "/dev/zero"}, nil, w)
		}},
		{rowStdin, func(w io.Writer) error {
			script := fmt.Sprintf("head -c %d | wc -c", size)
			var answer strings.Builder
			err := s.execStream(ctx, p.containers[0], []string{"sh", "-c", script}, io.LimitReader(zeros{}, size), &answer)
			if n, _ := strconv.ParseInt(strings.TrimSpace(answer.String()), 10, 64); err == nil && n == size {
				_, err = io.CopyN(w, zeros{}, size)
			}
			return err
		}},
		{rowAttach, func(w io.Writer) error { return s.attach(ctx, id, strings.NewReader("\n"), w) }},
		{rowForward, func(w io.Writer) error { return s.forward(ctx, p.sandbox, port, w) }},
	} {
		if err := b.transfer(s, kind.row, round > 0, size, kind.do); err != nil {
			return err
		}
	}
	return nil
}

// transfer measures one transfer, which writes size bytes to its writer.
func (b *bench) transfer(s side, row string, counts bool, size int64, do func(w io.Writer) error) error {
	m, err := newMeter(s.cost(), helpers)
	if err != nil {
		return err
	}
	var n counter
	begin := time.Now()
	if err := do(&n); err != nil {
		return fmt.Errorf("%s of %s: %w", row, s.name(), err)
	}
	took := time.Since(begin).Seconds()
	if int64(n) != size {
		return fmt.Errorf("%s of %s: %d bytes arrived, want %d", row, s.name(), n, size)
	}
	if err := m.read(); err != nil || !counts {
		return err
	}
	b.report.add(row, s.name(), float64(size)/1e6/took)
	_, used := m.used()
	b.report.add(cpuOf(row), s.name(), used/(float64(size)/1e9))
	return nil
}

// A counter counts bytes.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// zeros is endless.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func (c *cri) createWithStdin(ctx context.Context, sandbox, pod, container, script string) (string, error) {
	return c.createContainer(ctx, sandbox, pod, container, script, true)
}

func (c *cri) execStream(ctx context.Context, id string, command []string, stdin io.Reader, stdout io.Writer) error {
	r, err := c.runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: command, Stdin: stdin != nil, Stdout: true})
	if err != nil {
		return err
	}
	return remoteCommand(ctx, r.GetUrl(), stdin, stdout)
}

func (c *cri) attach(ctx context.Context, id string, stdin io.Reader, stdout io.Writer) error {
	r, err := c.runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true})
	if err != nil {
		return err
	}
	return remoteCommand(ctx, r.GetUrl(), stdin, stdout)
}

// upgrade makes a SPDY connection to a URL of a streaming server. As for the kubelet it is HTTP if that has no scheme, as that of cri-dockerd.
func upgrade(ctx context.Context, url, protocol string) (httpstream.Connection, error) {
	if strings.HasPrefix(url, "//") {
		url = "http:" + url
	}
	transport, err := spdy.NewRoundTripper(nil)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	answer, err := transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	return transport.NewConnection(answer)
}

// remoteCommand transfers stdin and stdout of a command, as kubelets do, until stdout ends. Stdin stays open until then: Docker ends an
// attach with its stdin.
func remoteCommand(ctx context.Context, url string, stdin io.Reader, stdout io.Writer) error {
	conn, err := upgrade(ctx, url, remotecommand.StreamProtocolV4Name)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	kinds := []string{remotecommand.StreamTypeError, remotecommand.StreamTypeStdout}
	if stdin != nil {
		kinds = append(kinds, remotecommand.StreamTypeStdin)
	}
	streams := map[string]httpstream.Stream{}
	for _, kind := range kinds {
		if streams[kind], err = conn.CreateStream(http.Header{remotecommand.StreamType: {kind}}); err != nil {
			return err
		}
	}
	sent := make(chan error, 1)
	go func() {
		if stdin == nil {
			sent <- nil
			return
		}
		_, err := io.Copy(streams[remotecommand.StreamTypeStdin], stdin)
		sent <- err
	}()
	if _, err := io.Copy(stdout, streams[remotecommand.StreamTypeStdout]); err != nil {
		return err
	}
	return <-sent
}

func (c *cri) forward(ctx context.Context, sandbox string, port int, stdout io.Writer) error {
	r, err := c.runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: sandbox, Port: []int32{int32(port)}})
	if err != nil {
		return err
	}
	conn, err := upgrade(ctx, r.GetUrl(), portforward.ProtocolV1Name)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	headers := http.Header{portforward.PortHeader: {strconv.Itoa(port)}, portforward.PortForwardRequestIDHeader: {"1"}}
	headers.Set(portforward.StreamType, portforward.StreamTypeError)
	failure, err := conn.CreateStream(headers)
	if err != nil {
		return err
	}
	headers.Set(portforward.StreamType, portforward.StreamTypeData)
	data, err := conn.CreateStream(headers)
	if err != nil {
		return err
	}
	_, err = io.Copy(stdout, data)
	if err := errors.Join(err, data.Close(), failure.Close()); err != nil {
		return err
	}
	text, err := io.ReadAll(failure)
	if len(text) > 0 {
		return errors.New(string(text))
	}
	return err
}

func (b *bare) createWithStdin(ctx context.Context, sandbox, pod, name, script string) (string, error) {
	return b.createContainer(ctx, sandbox, pod, name, script, true)
}

func (b *bare) execStream(ctx context.Context, id string, command []string, stdin io.Reader, stdout io.Writer) error {
	made, err := b.docker.ContainerExecCreate(ctx, id, container.ExecOptions{AttachStdin: stdin != nil, AttachStdout: true, Cmd: command})
	if err != nil {
		return err
	}
	streams, err := b.docker.ContainerExecAttach(ctx, made.ID, container.ExecAttachOptions{})
	if err != nil {
		return err
	}
	return hijacked(streams, stdin, stdout)
}

func (b *bare) attach(ctx context.Context, id string, stdin io.Reader, stdout io.Writer) error {
	streams, err := b.docker.ContainerAttach(ctx, id, container.AttachOptions{Stream: true, Stdin: true, Stdout: true})
	if err != nil {
		return err
	}
	return hijacked(streams, stdin, stdout)
}

// hijacked transfers stdin and stdout of a connection to the Engine until stdout ends.
func hijacked(streams types.HijackedResponse, stdin io.Reader, stdout io.Writer) error {
	defer streams.Close()
	sent := make(chan error, 1)
	go func() {
		if stdin == nil {
			sent <- nil
			return
		}
		_, err := io.Copy(streams.Conn, stdin)
		sent <- err
	}()
	if _, err := stdcopy.StdCopy(stdout, io.Discard, streams.Reader); err != nil {
		return err
	}
	return <-sent
}

// forward connects without the Engine, which has no such call.
func (b *bare) forward(ctx context.Context, _ string, port int, stdout io.Writer) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = io.Copy(stdout, conn)
	return err
}
