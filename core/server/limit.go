package server

import (
	"cmp"
	"log/slog"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxResponse is the size of a response, in bytes, from which on fields are removed. It
// is below maxMessage, the limit of gRPC. A kubelet whose list of pods fails reports the
// node as not ready.
var maxResponse = 15 << 20 // changed by tests only

// identityLabels are the labels and annotations by which the kubelet recognises its pods
// and containers (pkg/kubelet/types and kuberuntime/labels.go in Kubernetes). They are
// never removed; their values are short.
var identityLabels = map[string]bool{
	"io.kubernetes.pod.name":               true,
	"io.kubernetes.pod.namespace":          true,
	"io.kubernetes.pod.uid":                true,
	"io.kubernetes.container.name":         true,
	"io.kubernetes.container.hash":         true,
	"io.kubernetes.container.restartCount": true,
}

// A sizeLimiter reduces responses to at most limit bytes.
type sizeLimiter struct {
	limit int
	log   *slog.Logger

	warned sync.Map // methods whose responses have been reduced before
}

// limitSize returns resp if it is at most f.limit bytes, or a reduced copy. It removes
// annotations from rows, first from those that are not active and from old ones, then
// labels, then the last rows unless they are pods or containers. The rows of resp may be
// shared and are not modified.
func (f *sizeLimiter) limitSize(call string, resp any) any {
	m, ok := resp.(proto.Message)
	if !ok {
		return resp
	}
	size := proto.Size(m)
	if size <= f.limit || len(rowsToTrim(m.ProtoReflect())) == 0 {
		return resp // without rows: the output of ExecSync is bounded in core/exec
	}
	m = proto.CloneOf(m)
	excess := size - f.limit
	for _, what := range []protoreflect.Name{"annotations", "labels"} {
		for _, row := range rowsToTrim(m.ProtoReflect()) {
			if excess > 0 {
				excess -= removeEntries(row, what)
			}
		}
	}
	// excess was computed without the length prefixes, so check the size.
	for proto.Size(m) > f.limit && dropLastRows(m.ProtoReflect()) {
	}
	if _, loaded := f.warned.LoadOrStore(call, true); !loaded {
		f.log.Warn("response exceeds the size of a gRPC message: annotations, then labels, are removed from some rows; remove large annotations from pods, or delete old pods (logged once per method)",
			slog.String("call", call), slog.Int("bytes", size), slog.Int("limit", f.limit))
	}
	return m
}

// rowsToTrim returns the rows of a response in the order in which fields are removed
// from them: inactive before active, old before new.
func rowsToTrim(m protoreflect.Message) (rows []protoreflect.Message) {
	for field, v := range m.Range {
		if !isRows(field) {
			continue
		}
		for i := range v.List().Len() {
			rows = append(rows, v.List().Get(i).Message())
		}
	}
	slices.SortStableFunc(rows, func(a, b protoreflect.Message) int {
		if isActive(a) != isActive(b) {
			if isActive(a) {
				return 1
			}
			return -1
		}
		return cmp.Compare(createdAt(a), createdAt(b))
	})
	return rows
}

func isRows(field protoreflect.FieldDescriptor) bool {
	return field.IsList() && field.Kind() == protoreflect.MessageKind
}

// isActive reports whether a row is a sandbox or container that is ready, running or
// created. Rows without a state are active.
func isActive(row protoreflect.Message) bool {
	field := row.Descriptor().Fields().ByName("state")
	if field == nil || field.Kind() != protoreflect.EnumKind {
		return true
	}
	switch state := row.Get(field).Enum(); field.Enum().Values().ByNumber(state).Name() {
	case "SANDBOX_READY", "CONTAINER_RUNNING", "CONTAINER_CREATED":
		return true
	default:
		return false
	}
}

func createdAt(row protoreflect.Message) int64 {
	field := row.Descriptor().Fields().ByName("created_at")
	if field == nil || field.Kind() != protoreflect.Int64Kind {
		return 0
	}
	return row.Get(field).Int()
}

// removeEntries removes the entries of all maps called what from m and its nested messages,
// except identityLabels. It returns by how many bytes m became smaller.
func removeEntries(m protoreflect.Message, what protoreflect.Name) (saved int) {
	before := proto.Size(m.Interface())
	removeEntriesFrom(m, what)
	return before - proto.Size(m.Interface())
}

func removeEntriesFrom(m protoreflect.Message, what protoreflect.Name) {
	for field, v := range m.Range {
		switch {
		case field.IsMap() && field.Name() == what:
			entries := v.Map()
			for key := range entries.Range {
				if !identityLabels[key.String()] {
					entries.Clear(key)
				}
			}
		case isRows(field):
			for i := range v.List().Len() {
				removeEntriesFrom(v.List().Get(i).Message(), what)
			}
		case field.Kind() == protoreflect.MessageKind && !field.IsMap() && !field.IsList():
			removeEntriesFrom(v.Message(), what)
		}
	}
}

// dropLastRows removes the last quarter of the rows of a list, at least one, and reports
// whether there was a row to remove. Pods and containers are kept: the kubelet would
// conclude that one that is not listed does not exist.
func dropLastRows(m protoreflect.Message) bool {
	for field, v := range m.Range {
		if !isRows(field) {
			continue
		}
		switch field.Message().FullName() {
		case (&runtimeapi.PodSandbox{}).ProtoReflect().Descriptor().FullName(),
			(&runtimeapi.Container{}).ProtoReflect().Descriptor().FullName(),
			(&runtimeapi.ContainerStatus{}).ProtoReflect().Descriptor().FullName():
			continue
		}
		if n := v.List().Len(); n > 0 {
			v.List().Truncate(n - max(n/4, 1))
			return true
		}
	}
	return false
}

// A limitedStream limits the size of each message that it sends.
type limitedStream struct {
	grpc.ServerStream
	call string
	*sizeLimiter
}

// SendMsg is grpc.ServerStream's.
func (s limitedStream) SendMsg(m any) error { return s.ServerStream.SendMsg(s.limitSize(s.call, m)) }
