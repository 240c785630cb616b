package enginetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/versions"
)

// A route is a method and path of the API.
type route struct {
	name  string // for example "POST /containers/{id}/start"
	match *regexp.Regexp
	serve func(*call) error
}

// A call is a request in progress.
type call struct {
	http.ResponseWriter
	*http.Request

	server    *apiServer
	name      string // the value of {id} or {name}
	query     url.Values
	responded bool // the response has begun
}

// newRoutes returns all routes of the Engine.
func (e *Engine) newRoutes() []route {
	var routes []route
	for _, r := range []struct {
		name  string
		serve func(*call) error
	}{
		{"GET /_ping", e.ping},
		{"HEAD /_ping", e.ping},
		{"GET /version", e.version},
		{"GET /info", e.info},
		{"GET /system/df", e.diskUsage},
		{"GET /events", e.events},

		{"POST /containers/create", e.create},
		{"GET /containers/json", e.list},
		{"GET /containers/{id}/json", e.inspect},
		{"POST /containers/{id}/start", e.start},
		{"POST /containers/{id}/stop", e.stop},
		{"POST /containers/{id}/restart", e.restart},
		{"POST /containers/{id}/kill", e.kill},
		{"POST /containers/{id}/wait", e.wait},
		{"POST /containers/{id}/pause", e.pause},
		{"POST /containers/{id}/unpause", e.unpause},
		{"POST /containers/{id}/update", e.update},
		{"POST /containers/{id}/rename", e.rename},
		{"POST /containers/{id}/resize", e.resize},
		{"POST /containers/{id}/attach", e.attach},
		{"GET /containers/{id}/logs", e.logs},
		{"GET /containers/{id}/archive", e.archive},
		{"HEAD /containers/{id}/archive", e.archive},
		{"POST /containers/{id}/exec", e.execCreate},
		{"DELETE /containers/{id}", e.remove},
		{"POST /exec/{id}/start", e.execStart},
		{"POST /exec/{id}/resize", e.execResize},
		{"GET /exec/{id}/json", e.execInspect},

		{"GET /distribution/{name}/json", e.distribution},
		{"GET /images/json", e.imageList},
		{"POST /images/create", e.imagePull},
		{"POST /images/load", e.imageLoad},
		{"GET /images/get", e.imageSave},
		{"GET /images/{name}/json", e.imageInspect},
		{"POST /images/{name}/tag", e.imageTag},
		{"DELETE /images/{name}", e.imageRemove},
	} {
		pattern := strings.NewReplacer("{id}", "([^/]+)", "{name}", "(.+)").Replace(r.name)
		routes = append(routes, route{r.name, regexp.MustCompile("^" + pattern + "$"), r.serve})
	}
	return routes
}

var versionPrefix = regexp.MustCompile(`^/v([0-9]+\.[0-9]+)(/.*)$`)

// handler serves the API for r.
func (e *Engine) handler(r *apiServer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.calls.Add(1)
		defer r.calls.Done()
		c := &call{ResponseWriter: w, Request: req, server: r, query: req.URL.Query()}
		err := e.dispatch(c)
		if errors.Is(err, errHangUp) {
			panic(http.ErrAbortHandler)
		}
		if err != nil && !c.responded {
			c.respondError(err)
		}
	})
}

// dispatch applies the faults for c and then calls the handler of its route.
func (e *Engine) dispatch(c *call) error {
	e.mu.Lock()
	newest, oldest := e.api, e.minAPI
	e.mu.Unlock()
	h := c.Header()
	h.Set("Api-Version", newest)
	h.Set("Docker-Experimental", "false")
	h.Set("Ostype", "linux")
	h.Set("Server", "Docker/"+serverVersion(newest)+" (linux)")

	path := c.URL.Path
	if m := versionPrefix.FindStringSubmatch(path); m != nil {
		path = m[2]
		if versions.GreaterThan(m[1], newest) {
			return errorf(http.StatusBadRequest, "client version %s is too new. Maximum supported API version is %s", m[1], newest)
		}
		if versions.LessThan(m[1], oldest) {
			return errorf(http.StatusBadRequest, "client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", m[1], oldest)
		}
	}
	line := c.Method + " " + path
	for _, r := range e.routes {
		m := r.match.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if len(m) > 1 {
			c.name = m[1]
		}
		e.recordTrace(r.name, c)
		lose, err := e.injectFaults(c, r.name, line)
		if err != nil {
			return err
		}
		if !lose {
			return r.serve(c)
		}
		c.ResponseWriter = discard{header: http.Header{}}
		_ = r.serve(c)
		return errHangUp
	}
	return errorf(http.StatusNotFound, "page not found")
}

// Header returns the header of the response.
func (c *call) Header() http.Header { return c.ResponseWriter.Header() }

// Write writes to the response.
func (c *call) Write(p []byte) (int, error) { return c.ResponseWriter.Write(p) }

// errHangUp closes the connection without a response.
var errHangUp = errors.New("close the connection")

// An apiError is an error response.
type apiError struct {
	status int
	text   string
}

func (r *apiError) Error() string { return r.text }

func errorf(status int, format string, args ...any) error {
	return &apiError{status, fmt.Sprintf(format, args...)}
}

// respondError responds with an error.
func (c *call) respondError(err error) {
	status := http.StatusInternalServerError
	var r *apiError
	if errors.As(err, &r) {
		status = r.status
	}
	_ = c.respond(status, map[string]string{"message": err.Error()})
}

// respond responds with a status and, unless it is nil, body as JSON.
func (c *call) respond(status int, body any) error {
	c.responded = true
	if body == nil {
		c.WriteHeader(status)
		return nil
	}
	c.Header().Set("Content-Type", "application/json")
	c.WriteHeader(status)
	if c.Method == http.MethodHead {
		return nil
	}
	return json.NewEncoder(c.ResponseWriter).Encode(body)
}

// stream begins a response of several JSON messages and returns a function that sends one.
func (c *call) stream() (send func(any) error) {
	c.responded = true
	c.Header().Set("Content-Type", "application/json")
	c.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(c.ResponseWriter)
	_ = flush.Flush()
	enc := json.NewEncoder(c.ResponseWriter)
	return func(piece any) error {
		if err := enc.Encode(piece); err != nil {
			return err
		}
		return flush.Flush()
	}
}

// decode reads the body of the request.
func (c *call) decode(into any) error {
	if err := json.NewDecoder(c.Body).Decode(into); err != nil {
		return errorf(http.StatusBadRequest, "%v", err)
	}
	return nil
}

// boolParam reads a Boolean of the query as Engines do.
func (c *call) boolParam(name string) bool {
	switch strings.ToLower(strings.TrimSpace(c.query.Get(name))) {
	case "", "0", "no", "false", "none":
		return false
	default:
		return true
	}
}

// intParam reads an integer of the query, def if there is none.
func (c *call) intParam(name string, def int) (int, error) {
	text := c.query.Get(name)
	if text == "" {
		return def, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, errorf(http.StatusBadRequest, "%v", err)
	}
	return n, nil
}

// filters reads the filters of the query, and refuses unknown ones.
func (c *call) filters(known ...string) (filters.Args, error) {
	args, err := filters.FromJSON(c.query.Get("filters"))
	if err != nil {
		return args, errorf(http.StatusBadRequest, "%v", err)
	}
	accepted := map[string]bool{}
	for _, k := range known {
		accepted[k] = true
	}
	for _, k := range args.Keys() {
		if !accepted[k] {
			return args, errorf(http.StatusBadRequest, "Invalid filter '%s'", k)
		}
	}
	return args, nil
}

// discard is a ResponseWriter for responses that are dropped.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(p []byte) (int, error) { return io.Discard.Write(p) }
func (d discard) WriteHeader(int)             {}
