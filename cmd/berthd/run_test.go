package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"berth/cmd/berthd/internal/config"
	"berth/streaming"
)

// Network agents look into /var/run/netns. Two daemons on a node must not share it, because each
// removes the namespaces that it does not know.
func TestOnlyTheDefaultRunDirUsesTheSharedNetNSDir(t *testing.T) {
	for run, want := range map[string]string{"/run/berth": "/var/run/netns", "/run/other": ""} {
		if got := (&config.Config{RunDir: run}).NetNSDir(); got != want {
			t.Errorf("with run-dir %s: got %q, want %q", run, got, want)
		}
	}
}

func TestWarnsOfStreamsWithoutTLSAndOfOpenMetrics(t *testing.T) {
	for addr, want := range map[string]bool{"": false, "127.0.0.1": false, "127.0.0.1:0": false, "0.0.0.0": true, "0.0.0.0:0": true, "[::1]:0": false} {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, nil))
		warnOfOpenAddresses(config.Config{StreamingAddr: addr, MetricsAddr: addr}, log)
		if got := strings.Contains(out.String(), "without TLS"); got != want {
			t.Errorf("streams at %q: %s", addr, &out)
		}
		if got := strings.Contains(out.String(), "without authentication"); got != want {
			t.Errorf("metrics at %q: %s", addr, &out)
		}
		out.Reset()
		warnOfOpenAddresses(config.Config{StreamingAddr: addr, StreamingTLS: streaming.TLSFiles{Cert: "c", Key: "k"}}, log)
		if out.Len() > 0 {
			t.Errorf("streams with TLS at %q: %s", addr, &out)
		}
	}
}
