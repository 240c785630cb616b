package pullprogress

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// A State is what a pull is doing.
type State string

// States of a pull.
const (
	Waiting     State = "waiting"     // for the registry: no layer is known yet
	Downloading State = "downloading" // at least one layer
	Unpacking   State = "unpacking"   // all layers are downloaded
	Finishing   State = "finishing"   // all layers are on the node
)

// A Status says how far a pull is. Numbers are as far as Docker has reported them.
type Status struct {
	Image   string `json:"image"`            // as asked for
	Source  string `json:"source,omitempty"` // the name that Docker pulls, if that is another
	Attempt int    `json:"attempt"`          // counts pulls by Docker, from 1: each mirror is one
	Pods    []Pod  `json:"pods"`             // that wait for it, as far as known
	Callers int    `json:"callers"`          // requests that wait for it
	State   State  `json:"state"`
	// Bytes are compressed layers, without those that are on the node already. Before Docker has begun the
	// download of a layer, its size is not in TotalBytes, and TotalIsMinimum is set.
	Bytes          int64     `json:"bytes"`
	TotalBytes     int64     `json:"totalBytes"`
	TotalIsMinimum bool      `json:"totalIsMinimum"`
	LayersDone     int       `json:"layersDone"`
	Layers         int       `json:"layers"`
	BytesPerSecond int64     `json:"bytesPerSecond"` // of the last 10 seconds
	Started        time.Time `json:"started"`
	ElapsedSeconds float64   `json:"elapsedSeconds"`
}

// A Pod is a pod that an image is pulled for.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// Elapsed returns the age of the pull, in whole seconds.
func (s Status) Elapsed() time.Duration { return time.Duration(s.ElapsedSeconds) * time.Second }

// String returns the numbers for an error: 3 of 7 layers, 120 of 800 MiB after 2m0s.
func (s Status) String() string {
	if s.Layers == 0 {
		return fmt.Sprintf("no layer is known after %v", s.Elapsed())
	}
	return fmt.Sprintf("%d of %d layers, %s after %v", s.LayersDone, s.Layers, s.Amount(), s.Elapsed())
}

// Amount returns the bytes: 120 of 800 MiB.
func (s Status) Amount() string {
	switch {
	case s.TotalBytes == 0 && (s.TotalIsMinimum || s.Layers == 0):
		return "size unknown"
	case s.TotalBytes == 0: // all layers are on the node
		return "0 bytes"
	}
	of := "of"
	if s.TotalIsMinimum {
		of = "of at least"
	}
	name, size := unit(s.TotalBytes)
	return fmt.Sprintf("%s %s %s %s", inUnit(s.Bytes, size), of, inUnit(s.TotalBytes, size), name)
}

// Rate returns the bytes per second: 12 MiB/s.
func (s Status) Rate() string {
	name, size := unit(s.BytesPerSecond)
	return inUnit(s.BytesPerSecond, size) + " " + name + "/s"
}

// unit returns the unit in which bytes are printed, and its size.
func unit(bytes int64) (string, int64) {
	switch {
	case bytes < 1<<20:
		return "KiB", 1 << 10
	case bytes < 10<<30:
		return "MiB", 1 << 20
	default:
		return "GiB", 1 << 30
	}
}

// inUnit returns a number of bytes in a unit of that size, with one decimal if it is small.
func inUnit(bytes, size int64) string {
	n := float64(bytes) / float64(size)
	if n > 0 && n < 10 {
		return fmt.Sprintf("%.1f", n)
	}
	return fmt.Sprintf("%.0f", n)
}

// maxListed is how many pulls are in a List: its response is kept in memory.
const maxListed = 500

// MaxResponse is the longest response of the HTTP API in bytes: maxListed pulls with maxPods pods, whose names may be
// of characters that take six bytes in JSON.
const MaxResponse = maxListed * (maxPods + 1) * 2 * maxName * 6

// Path is the path of List in the HTTP API of the debug socket.
const Path = "/v1/pulls"

// A List is the response of the HTTP API.
type List struct {
	Pulls   []Status `json:"pulls"`   // the oldest first
	Omitted int      `json:"omitted"` // number of pulls beyond those
}

// List returns the pulls that run.
func (t *Tracker) List() List {
	t.mu.Lock()
	pulls := make([]*Pull, 0, len(t.pulls))
	for _, p := range t.pulls {
		pulls = append(pulls, p)
	}
	t.mu.Unlock()
	slices.SortFunc(pulls, func(a, b *Pull) int { return cmp.Or(a.started.Compare(b.started), cmp.Compare(a.image, b.image)) })
	listed := min(len(pulls), maxListed)
	list := List{Pulls: make([]Status, 0, listed), Omitted: len(pulls) - listed}
	for _, p := range pulls[:listed] {
		list.Pulls = append(list.Pulls, p.Status())
	}
	return list
}

// ServeHTTP responds with the List as JSON.
func (t *Tracker) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(t.List()) // the client may have disconnected
}
