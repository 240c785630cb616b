package stats

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/cgroup"
	"berth/network/netns"
)

// A sample is one number of a family.
type sample struct {
	family *family
	values []string // of labels, in the order of the family's keys
	n      uint64
}

// samples are what is told of a pod, and of each of its containers.
type samples struct {
	sandbox    string
	own        []sample
	containers []containerSamples
}

type containerSamples struct {
	id  string
	own []sample
}

// Descriptors returns what Metrics tells on this host. It never changes.
func (s *Service) Descriptors() []*runtimeapi.MetricDescriptor {
	var all []*runtimeapi.MetricDescriptor
	for _, f := range told(thisHost()) {
		all = append(all, &runtimeapi.MetricDescriptor{Name: f.name, Help: f.help, LabelKeys: f.labelKeys()})
	}
	return all
}

// told returns the families that a host can tell of.
func told(h host) (can []*family) {
	for _, f := range families {
		if f.needs == nil || f.needs(h) {
			can = append(can, f)
		}
	}
	return can
}

// Metrics returns all samples of the pods that run and their running
// containers. What ends meanwhile is left out.
func (s *Service) Metrics(ctx context.Context) ([]*runtimeapi.PodSandboxMetrics, error) {
	list, err := s.sample(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]*runtimeapi.PodSandboxMetrics, 0, len(list))
	for _, p := range list {
		out := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.sandbox, Metrics: metrics(p.own)}
		for _, c := range p.containers {
			out.ContainerMetrics = append(out.ContainerMetrics, &runtimeapi.ContainerMetrics{ContainerId: c.id, Metrics: metrics(c.own)})
		}
		all = append(all, out)
	}
	return all, nil
}

// metrics says samples in the words of the CRI. They have no time, which
// stands for now.
func metrics(list []sample) []*runtimeapi.Metric {
	all := make([]*runtimeapi.Metric, 0, len(list))
	for _, m := range list {
		n := m.n
		if m.family.nanos {
			n /= uint64(time.Second)
		}
		all = append(all, &runtimeapi.Metric{Name: m.family.name, MetricType: m.family.kind, LabelValues: m.values, Value: number(n)})
	}
	return all
}

// sample reads all pods that run, in one pass. If ctx ends before all are read, it
// returns those that are.
func (s *Service) sample(ctx context.Context) ([]*samples, error) {
	list, inside, err := s.pods(ctx, &runtimeapi.PodSandboxFilter{State: ready})
	if err != nil {
		return nil, err
	}
	docker, err := s.docker.LastConn()
	if err != nil {
		return nil, err
	}
	under, err := readDisk(docker.Features.ImageFS())
	if err != nil {
		// It is not everybody's, and no reason to tell nothing at all.
		s.log.Debug("no metrics of the file system that containers are on", slog.Any("err", err))
	}
	can := told(thisHost())
	until := time.Now().Add(openedBudget)
	all := among(s.log, list, func(pod *cache.Sandbox) *samples {
		if ctx.Err() != nil {
			return nil
		}
		return s.samplePod(ctx, pod, inside[pod.ID()], under, can, until)
	})
	if err := ctx.Err(); err != nil {
		s.log.Warn("metrics of some pods are left out: reading all took too long", slog.Int("pods", len(list)), slog.Int("read", len(all)))
	}
	return unique(all), nil
}

// unique drops what is told of a pod's cgroup a second time, for an older
// sandbox of the same pod: who collects samples refuses all of them if two
// have the same labels.
func unique(all []*samples) []*samples {
	told := map[string]bool{}
	for _, p := range all {
		p.own = slices.DeleteFunc(p.own, func(m sample) bool {
			key := m.family.name + "\x00" + strings.Join(m.values, "\x00")
			again := told[key]
			told[key] = true
			return again
		})
	}
	return all
}

// samplePod reads one pod and its containers; nil if it has ended.
func (s *Service) samplePod(ctx context.Context, pod *cache.Sandbox, list []*cache.Container, under *disk, can []*family, until time.Time) *samples {
	g, err := s.group(pod.ID(), pod.Pid)
	if err != nil {
		s.leftOut("sandbox", pod.ID(), err)
		return nil
	}
	r := &reading{at: time.Now(), startedAt: pod.StartedAt}
	// A pod without a cgroup of its own, as crictl makes them, has no numbers
	// but those of its network.
	whole := pod.Config.GetLinux().GetCgroupParent() != ""
	if whole {
		g = g.Parent()
		err = r.group(g)
	}
	if err == nil && !pod.HostNetwork {
		r.traffic, err = interfaces(pod.Pid)
	}
	if err != nil {
		s.leftOut("sandbox", pod.ID(), err)
		return nil
	}
	meta := pod.Row.GetMetadata()
	out := &samples{sandbox: pod.ID()}
	for _, f := range can {
		if f.of&pods != 0 && (whole || f.pod()) {
			out.own = f.sample(out.own, r, g.Path(), "", meta.GetNamespace(), meta.GetName(), "")
		}
	}
	for _, c := range list {
		if ctx.Err() != nil {
			break
		}
		r, id, err := s.readContainer(ctx, c, until)
		if err != nil {
			s.leftOut("container", c.ID(), err)
			continue
		}
		r.disk = under
		own := containerSamples{id: c.ID()}
		image := c.Row.GetImage().GetUserSpecifiedImage()
		if image == "" {
			image = c.Row.GetImage().GetImage()
		}
		for _, f := range can {
			if f.of&containers != 0 {
				own.own = f.sample(own.own, r, id, image, meta.GetNamespace(), meta.GetName(), c.Row.GetMetadata().GetName())
			}
		}
		out.containers = append(out.containers, own)
	}
	return out
}

// pod reports whether the family does not come from a cgroup.
func (f *family) pod() bool { return f.of == pods || slices.Contains(otherFamilies, f) }

// sample adds what the family tells of r. labels are the values of keys.
func (f *family) sample(to []sample, r *reading, labels ...string) []sample {
	f.read(r, func(n uint64, values ...string) {
		to = append(to, sample{family: f, values: slices.Concat(labels, values), n: n})
	})
	return to
}

// leftOut tells why something is left out, unless it has just ended.
func (s *Service) leftOut(what, id string, err error) {
	if !gone(err) {
		s.log.Warn("metrics cannot be read, left out", slog.String(what, id), slog.Any("err", err))
	}
}

// counters are those of an interface.
type counters = netns.Counters

// readContainer reads what is known of a container, and the path of its cgroup. What
// is slow is done until the given time.
func (s *Service) readContainer(ctx context.Context, c *cache.Container, until time.Time) (*reading, string, error) {
	g, err := s.group(c.ID(), c.Pid)
	if err != nil {
		return nil, "", err
	}
	r := &reading{at: time.Now(), startedAt: c.Status.GetStartedAt(), asked: c.Status.GetResources().GetLinux()}
	if err := r.group(g); err != nil {
		return nil, "", err
	}
	if r.openFiles, err = readOpenFiles(c.Pid); err != nil {
		return nil, "", err
	}
	list, err := cgroup.Processes(g)
	if err != nil {
		return nil, "", err
	}
	r.processes = uint64(len(list))
	r.opened = s.opened(ctx, c.ID(), list, until)
	if r.written = s.lastWritten(c.ID()); r.written == nil && time.Now().Before(until) {
		// The conformance tests ask for it as soon as a container runs.
		r.written = s.measureFirst(ctx, c)
	}
	// What had ended half-way would be told with zeros.
	_, err = os.Stat("/proc/" + strconv.Itoa(c.Pid))
	return r, g.Path(), err
}

// group reads what the cgroup g counts.
func (r *reading) group(g cgroup.Group) (err error) {
	if r.cpu, err = readCPU(g); err != nil {
		return err
	}
	if r.memory, err = readMemory(g); err != nil {
		return err
	}
	if r.devices, err = readDevices(g); err != nil {
		return err
	}
	if dir, ok := g.Dir("pids"); ok {
		if r.threads, err = sure(cgroup.Number(dir, "pids.current")); err != nil {
			return err
		}
		if r.threadsMax, err = sure(cgroup.Number(dir, "pids.max")); err != nil {
			return err
		}
	}
	if r.threadsMax == cgroup.Unlimited {
		r.threadsMax = 0
	}
	host := thisHost()
	if r.huge, err = readHuge(g, host.pageSizes); err != nil {
		return err
	}
	if g.V2 == "" || !host.pressure {
		return nil
	}
	if r.pressure.cpu, err = pressure(g.V2, "cpu.pressure"); err != nil {
		return err
	}
	if r.pressure.memory, err = pressure(g.V2, "memory.pressure"); err != nil {
		return err
	}
	r.pressure.io, err = pressure(g.V2, "io.pressure")
	return err
}
