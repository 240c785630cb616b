// Package pullprogress follows pulls of images: which layers Docker is downloading or unpacking, how many bytes have
// arrived, and whether the next step depends on the registry.
//
// A Tracker knows all pulls that run. A request joins a Pull, which it shares with other requests for the
// same image, and each time that Docker is called for it is an Attempt, which gets Docker's messages. The Tracker
// writes a log line for long pulls, keeps the metrics, and returns the state of all pulls to the command
// "berthd pulls". It controls no pull.
package pullprogress

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/docker/docker/pkg/jsonmessage"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	// logInterval is how often a pull that takes long is logged.
	logInterval = 10 * time.Second
	// rateWindow is the time of which the rate is the mean, and sampleInterval how often it is measured.
	rateWindow, sampleInterval = 10 * time.Second, time.Second
	// maxPods is how many pods of a pull are kept.
	maxPods = 8
	// maxName is how much is kept of names that callers give.
	maxName = 512
)

// A Tracker knows the pulls that run. Its methods may be called concurrently.
type Tracker struct {
	log     *slog.Logger
	metrics metrics

	mu    sync.Mutex       // guards pulls, and callers and result of each
	pulls map[string]*Pull // by key
}

// New returns a Tracker whose metrics are registered with reg, which may be nil.
func New(reg prometheus.Registerer, log *slog.Logger) *Tracker {
	t := &Tracker{log: log, pulls: map[string]*Pull{}}
	t.metrics = newMetrics(reg, func() float64 {
		t.mu.Lock()
		defer t.mu.Unlock()
		return float64(len(t.pulls))
	})
	return t
}

// A Pull is an image that is being pulled, for one or more requests.
type Pull struct {
	tracker *Tracker
	key     string
	image   string
	started time.Time
	callers int    // guarded by tracker.mu
	result  Result // guarded by tracker.mu

	mu       sync.Mutex // guards following
	pods     []Pod
	attempts int
	source   string
	current  *Attempt
	received int64     // by all attempts
	at       time.Time // when received last grew
	samples  []sample
	timer    *time.Timer // of the next log line
	ended    bool
}

// A sample is what a pull had received at a time.
type sample struct {
	at       time.Time
	received int64
}

// Join adds a request for the image to the Pull with the key, which begins with its first request. The context that
// is returned has it for FromContext. The caller must call Leave.
func (t *Tracker) Join(ctx context.Context, key, image string) (context.Context, *Pull) {
	t.mu.Lock()
	p, ok := t.pulls[key]
	if !ok {
		p = &Pull{tracker: t, key: key, image: clip(image, maxName), started: time.Now()}
		t.pulls[key] = p
	}
	p.callers++
	t.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !ok {
		p.timer = time.AfterFunc(logInterval, p.logStatus)
	}
	if pod, ok := ctx.Value(podKey{}).(Pod); ok && len(p.pods) < maxPods && !slices.Contains(p.pods, pod) {
		p.pods = append(p.pods, pod)
	}
	return context.WithValue(ctx, pullKey{}, p), p
}

// Leave ends a request with that result. The Pull ends with the last one.
func (p *Pull) Leave(result Result) {
	t := p.tracker
	t.mu.Lock()
	if p.result != Success { // another request may have been cancelled since
		p.result = result
	}
	p.callers--
	ended := p.callers == 0
	if ended {
		delete(t.pulls, p.key)
	}
	result = p.result
	t.mu.Unlock()
	if !ended {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.timer.Stop()
	t.metrics.observe(result, p.received, time.Since(p.started))
}

// podKey and pullKey are the keys of a Pod and of a *Pull in a context.
type (
	podKey  struct{}
	pullKey struct{}
)

// WithPod returns a context for Join that has the pod that an image is pulled for. Without a name it
// is ctx: not every request has a pod.
func WithPod(ctx context.Context, namespace, name string) context.Context {
	if name == "" {
		return ctx
	}
	return context.WithValue(ctx, podKey{}, Pod{clip(namespace, maxName), clip(name, maxName)})
}

// FromContext returns the Pull of a context of Join. Like a net/http/httptrace.ClientTrace it is in the
// context because the calls between have no use for it. Without Join it is a Pull that no Tracker knows.
func FromContext(ctx context.Context) *Pull {
	if p, ok := ctx.Value(pullKey{}).(*Pull); ok {
		return p
	}
	return &Pull{started: time.Now()}
}

// An Attempt is one pull by Docker. A Pull has several if there are mirrors.
type Attempt struct {
	pull   *Pull
	layers layers // guarded by pull.mu
}

// Begin begins an Attempt, which replaces the one before. source is the name that Docker pulls.
func (p *Pull) Begin(source string) *Attempt {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := &Attempt{pull: p}
	p.attempts++
	p.current, p.source = a, clip(source, maxName)
	return a
}

// Update applies one of Docker's messages. It reports whether the message changes anything, and
// whether the next step depends on the registry.
func (a *Attempt) Update(m jsonmessage.JSONMessage) (changed, awaitingRegistry bool) {
	p := a.pull
	p.mu.Lock()
	defer p.mu.Unlock()
	before := a.layers.received
	changed = a.layers.update(m)
	now := time.Now()
	if a.layers.received > before {
		p.received += a.layers.received - before
		p.at = now
	}
	p.sampleLocked(now)
	return changed, a.layers.awaitingRegistry()
}

// sampleLocked measures for the rate.
func (p *Pull) sampleLocked(now time.Time) {
	if n := len(p.samples); n > 0 && now.Sub(p.samples[n-1].at) < sampleInterval {
		return
	}
	// One sample before the window is kept.
	for len(p.samples) > 1 && now.Sub(p.samples[1].at) >= rateWindow {
		p.samples = p.samples[1:]
	}
	p.samples = append(p.samples, sample{now, p.received})
}

// rateLocked returns the bytes per second since the last sample that is before the window, or the first one.
func (p *Pull) rateLocked(now time.Time) int64 {
	if now.Sub(p.at) >= rateWindow {
		return 0
	}
	since := sample{at: p.started}
	for i, s := range p.samples {
		if i == 0 || now.Sub(s.at) >= rateWindow {
			since = s
		}
	}
	if seconds := now.Sub(since.at).Seconds(); seconds > 0 {
		return int64(float64(p.received-since.received) / seconds)
	}
	return 0
}

// Status returns how far the pull is.
func (p *Pull) Status() Status {
	callers := 0
	if p.tracker != nil {
		p.tracker.mu.Lock()
		callers = p.callers
		p.tracker.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	s := Status{
		Image: p.image, Attempt: max(p.attempts, 1), Pods: append([]Pod{}, p.pods...), Callers: callers, State: Waiting,
		BytesPerSecond: p.rateLocked(now), Started: p.started, ElapsedSeconds: now.Sub(p.started).Seconds(),
	}
	if p.source != p.image {
		s.Source = p.source // empty before the first attempt
	}
	if p.current != nil {
		p.current.layers.sum(&s)
	}
	return s
}

// logStatus writes the log line of a pull that takes long.
func (p *Pull) logStatus() {
	p.mu.Lock()
	ended := p.ended
	if !ended {
		p.timer.Reset(logInterval)
	}
	p.mu.Unlock()
	if ended {
		return
	}
	s := p.Status()
	attrs := []any{slog.String("image", s.Image)}
	if s.Source != "" {
		attrs = append(attrs, slog.String("source", s.Source))
	}
	if len(s.Pods) > 0 {
		attrs = append(attrs, slog.String("pod", s.Pods[0].Name), slog.String("namespace", s.Pods[0].Namespace))
	}
	p.tracker.log.Info("image pull in progress", append(attrs,
		slog.String("state", string(s.State)), slog.Int64("bytes", s.Bytes), slog.Int64("total-bytes", s.TotalBytes), slog.Bool("total-is-minimum", s.TotalIsMinimum),
		slog.Int("layers-done", s.LayersDone), slog.Int("layers", s.Layers), slog.Int64("bytes-per-second", s.BytesPerSecond),
		slog.Duration("elapsed", s.Elapsed()))...)
}
