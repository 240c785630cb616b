package network

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"berth/core/tracing"
)

func TestPluginsHaveSpans(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	ctx := tracing.NewContext(t.Context(), sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)))
	plugin := filepath.Join(t.TempDir(), "fake")
	script := "#!/bin/sh\n[ $CNI_COMMAND = ADD ] && echo '{}' && exit\necho '{\"code\": 100, \"msg\": \"no address\"}'\nexit 1\n"
	if err := os.WriteFile(plugin, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	exec := &pluginExec{log: slog.New(slog.DiscardHandler)}
	for _, command := range []string{"ADD", "DEL"} {
		env := []string{"CNI_COMMAND=VERSION", "CNI_COMMAND=" + command, "CNI_CONTAINERID=pod1", "SECRET=hunter2"}
		if _, err := exec.ExecPlugin(ctx, plugin, nil, env); (err != nil) != (command == "DEL") {
			t.Fatalf("%s: %v", command, err)
		}
	}
	ended := recorder.Ended()
	if len(ended) != 2 || ended[0].Name() != "CNI ADD fake" || ended[1].Name() != "CNI DEL fake" {
		t.Fatalf("spans %v", ended)
	}
	if s := ended[1].Status(); s.Code != codes.Error || !strings.Contains(s.Description, "no address") {
		t.Errorf("status of the DEL that has failed: %v", s)
	}
	attributes := map[string]string{}
	for _, a := range ended[0].Attributes() {
		attributes[string(a.Key)] = a.Value.AsString()
	}
	if len(attributes) != 3 || attributes["cni.command"] != "ADD" || attributes["cni.plugin"] != "fake" || attributes["sandbox.id"] != "pod1" {
		t.Errorf("attributes %v", attributes)
	}
}
