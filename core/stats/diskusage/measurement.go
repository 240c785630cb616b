package diskusage

import (
	"errors"
	"path/filepath"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/core/cache"
	"berth/core/engine"
)

// A measurement is one that is not complete yet.
type measurement struct {
	run            runKey
	sizeFromEngine bool  // whether Docker reports the size of the writable layer
	layer          *walk // of the writable layer, unless Docker reports its size
	other          *walk // of volumes and logs
	began          time.Time
	took           time.Duration // sum of the slices
	resume         time.Time     // when the next slice may begin
}

func (m *measurement) close() {
	m.layer.close()
	m.other.close()
}

// measure advances the measurement of c for one slice: from time to time while the
// container runs, and once after it has exited. The error says why something was not
// counted. The caller holds walkLock.
func (t *Tracker) measure(c *cache.Container) error {
	exited := c.Row.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
	if c.Pid == 0 && !exited {
		return nil // never started
	}
	run := runKey{c.ID(), c.Pid}
	begin := time.Now()
	t.mu.Lock()
	last, m := t.usage[c.ID()], t.measurements[c.ID()]
	t.mu.Unlock()
	if m != nil && m.run != run { // exited or restarted since
		t.discard(m)
		m = nil
	}
	switch {
	case m != nil:
		if begin.Before(m.resume) {
			return nil
		}
	case last == nil || last.partial:
	case exited && last.run == run, !exited && begin.Before(last.due):
		return nil
	}
	if m == nil {
		docker, err := t.docker.LastConn()
		if err != nil {
			return err
		}
		m = t.newMeasurement(docker, c, run)
		t.mu.Lock()
		t.measurements[c.ID()] = m
		t.mu.Unlock()
	}
	done := t.advance(m, begin.Add(t.slice))
	took := time.Since(begin)
	m.took += took
	m.resume = time.Now().Add(restFactor * took)
	t.record(m, last, done)
	if !done {
		return nil
	}
	t.discard(m)
	return errors.Join(m.layer.firstErr, m.other.firstErr)
}

func (t *Tracker) newMeasurement(docker *engine.Conn, c *cache.Container, run runKey) *measurement {
	m := &measurement{run: run, layer: newWalk(), other: newWalk(), began: time.Now()}
	if dir := t.layerDir(docker, c); dir != "" {
		m.layer = newWalk(dir)
	} else {
		m.sizeFromEngine = true
	}
	for _, dir := range c.Volumes {
		if isBelow(docker.Features.RootDir, dir) {
			m.other.roots = append(m.other.roots, dir)
		}
	}
	addLogs(m.other, filepath.Join(docker.Features.RootDir, "containers", c.ID()), c.LogFile)
	return m
}

// advance continues m until the given time and reports whether it is complete.
func (t *Tracker) advance(m *measurement, until time.Time) bool {
	if !m.layer.run(until) || !m.other.run(until) {
		return false
	}
	if m.layer.rootErr != nil { // not visible to berthd, but to Docker
		m.sizeFromEngine = true
	}
	return !m.sizeFromEngine || !t.requestEngineSize(m.run).at.Before(m.began)
}

// record stores what m has counted, unless last says as much.
func (t *Tracker) record(m *measurement, last *Usage, done bool) {
	if m.sizeFromEngine && !done {
		return // the size of the layer, which is the largest part, is not known yet
	}
	layerBytes, inodes := m.layer.total()
	if m.sizeFromEngine {
		layerBytes = t.requestEngineSize(m.run).bytes
	}
	otherBytes, otherInodes := m.other.total()
	u := &Usage{
		At: time.Now(), run: m.run, Bytes: layerBytes + otherBytes, LayerBytes: layerBytes, Inodes: inodes + otherInodes,
		HasInodes: !m.sizeFromEngine, partial: !done,
	}
	u.due = u.At.Add(max(measureInterval, restFactor*m.took))
	// A partial result is a lower bound. Without it a container that has more files than
	// can be counted would have no usage at all, and so no limit.
	if !done && (u.Bytes == 0 || last != nil && last.Bytes >= u.Bytes) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.usage[m.run.id] = u
}

// discard closes m and forgets it.
func (t *Tracker) discard(m *measurement) {
	m.close()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.measurements[m.run.id] == m {
		delete(t.measurements, m.run.id)
	}
}
