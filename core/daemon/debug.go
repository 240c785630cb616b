package daemon

import (
	"context"
	"log/slog"
	"net"
	"net/http"

	"berth/core/httpserver"
	"berth/core/image/pullprogress"
)

// debugRoutes is the HTTP API of the debug socket, for the commands of berthd itself. It only reads.
func debugRoutes(pulls *pullprogress.Tracker) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET "+pullprogress.Path, httpserver.Buffered(pulls))
	return mux
}

// A debugServer serves the debug socket.
type debugServer struct {
	listener net.Listener // nil for none
	handler  http.Handler
	log      *slog.Logger
}

// Run serves until ctx ends. Pods do not depend on it: if it fails, that is logged.
func (s debugServer) Run(ctx context.Context) error {
	if s.listener == nil {
		return nil
	}
	if err := httpserver.Serve(ctx, s.listener, s.handler, s.log); err != nil {
		s.log.Error("debug socket failed: berthd pulls does not work", slog.Any("err", err))
	}
	return nil
}
