package daemon

import (
	"log/slog"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/streaming"
)

// streams is the streaming server as core/server uses it, while its address can be bound.
type streams struct{ *reopener[*streaming.Server] }

// listenStreams opens the server of exec, attach and port-forward.
func listenStreams(cfg Streaming, runtime streaming.Runtime, log *slog.Logger) (streams, error) {
	r, err := newReopener("exec, attach and port-forward (--streaming-bind-addr)", func() (*streaming.Server, error) {
		s, err := streaming.Listen(cfg.Addr, cfg.TLS, runtime)
		if err == nil {
			s.ErrorLog = log
		}
		return s, err
	}, func(s *streaming.Server) { log.Info("serving streams", slog.String("url", s.URL())) }, log)
	return streams{r}, err
}

func (s streams) Exec(r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	server, err := s.get()
	if err != nil {
		return nil, err
	}
	return server.Exec(r)
}

func (s streams) Attach(r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	server, err := s.get()
	if err != nil {
		return nil, err
	}
	return server.Attach(r)
}

func (s streams) PortForward(r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	server, err := s.get()
	if err != nil {
		return nil, err
	}
	return server.PortForward(r)
}
