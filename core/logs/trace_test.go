package logs_test

import (
	"slices"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"berth/core/logs"
	"berth/core/tracing"
)

func TestReopenDrainAndRemoveHaveSpans(t *testing.T) {
	t.Parallel()
	recorder := tracetest.NewSpanRecorder()
	ctx := tracing.NewContext(t.Context(), sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)))
	n := newNode(t, logs.ModeCRI)
	n.create()
	n.printLines(1000)
	n.logs.Observe(ctx, n.inspected(true))
	if err := n.logs.Reopen(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	n.logs.Observe(ctx, n.inspected(false))
	n.logs.Observe(ctx, n.inspected(false)) // the log is complete
	if err := n.logs.Remove(ctx, "c1", n.source, n.logDir(), n.path); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range recorder.Ended() {
		names = append(names, s.Name())
	}
	if want := []string{"reopen container log", "drain container log", "close container log"}; !slices.Equal(names, want) {
		t.Errorf("spans %q, want %q: one for each step, none for lines", names, want)
	}
}
