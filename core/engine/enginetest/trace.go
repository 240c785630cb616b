package enginetest

// A TracedRequest is a request with a trace context, as the Docker client sends it and
// dockerd >= 25 continues it.
type TracedRequest struct {
	Route       string // method and path, for example POST /containers/{id}/start
	TraceParent string // the header traceparent
}

// TracedRequests returns the requests with a trace context so far.
func (e *Engine) TracedRequests() []TracedRequest {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]TracedRequest(nil), e.traced...)
}

// recordTrace records a request that has a trace context.
func (e *Engine) recordTrace(route string, c *call) {
	if header := c.Request.Header.Get("Traceparent"); header != "" {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.traced = append(e.traced, TracedRequest{route, header})
	}
}
