package network

import (
	"context"
	"path/filepath"
	"strings"

	"go.opentelemetry.io/otel/attribute"

	"berth/core/tracing"
)

// startSpan begins the span of a plugin that is about to run with the environment env.
func startSpan(ctx context.Context, path string, env []string) (context.Context, tracing.Span) {
	plugin := filepath.Base(path)
	var command, id string
	for _, variable := range env { // the last one of a name wins
		if value, ok := strings.CutPrefix(variable, "CNI_COMMAND="); ok {
			command = value
		} else if value, ok := strings.CutPrefix(variable, "CNI_CONTAINERID="); ok {
			id = value
		}
	}
	attributes := []attribute.KeyValue{attribute.String("cni.command", command), attribute.String("cni.plugin", plugin)}
	if id != "" { // GC and STATUS are about no pod
		attributes = append(attributes, tracing.SandboxID(id))
	}
	return tracing.Start(ctx, "CNI "+command+" "+plugin, attributes...)
}
