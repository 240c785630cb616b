package doctor

import (
	"net"
	"path/filepath"
	"strings"
	"testing"

	"berth/cmd/berthd/internal/config"
)

func TestCollectorOfTracesIsTried(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	socket := filepath.Join(t.TempDir(), "otel.sock")
	unix, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	for _, c := range []struct {
		endpoint string
		want     State
	}{
		{tcp.Addr().String(), OK},
		{"unix://" + socket, OK},
		{"127.0.0.1:1", Warn},
		{"unix:///none/otel.sock", Warn},
	} {
		checked := &checker{daemon: config.Config{Tracing: config.Tracing{Endpoint: c.endpoint, SamplesPerMillion: 1}}}
		checked.checkTracing(t.Context())
		if len(checked.report) != 1 || checked.report[0].State != c.want || !strings.Contains(checked.report[0].Message, "collector") {
			t.Errorf("%s: %v, want %s", c.endpoint, checked.report, c.want)
		}
	}
	off := &checker{}
	off.checkTracing(t.Context())
	if len(off.report) > 0 {
		t.Errorf("without an endpoint: %v", off.report)
	}
}
