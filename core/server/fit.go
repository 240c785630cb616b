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

// fitBytes is how large an answer may be before something is left out of it. gRPC
// takes maxMessage, and a kubelet whose list of pods fails calls the node not ready.
var fitBytes = 15 << 20 // changed by tests only

// identity is what the kubelet finds its pods and containers by, and is in every row
// whatever else is left out (pkg/kubelet/types and kuberuntime/labels.go in
// Kubernetes). All of it is small, for names are.
var identity = map[string]bool{
	"io.kubernetes.pod.name":               true,
	"io.kubernetes.pod.namespace":          true,
	"io.kubernetes.pod.uid":                true,
	"io.kubernetes.container.name":         true,
	"io.kubernetes.container.hash":         true,
	"io.kubernetes.container.restartCount": true,
}

// A fitter makes answers fit into what gRPC carries.
type fitter struct {
	limit int
	log   *slog.Logger

	said sync.Map // calls whose answers have been cut already
}

// fit returns answer, or one like it of at most f.limit bytes if it is larger: without
// annotations in rows, those of dead and old ones first; then without labels; then,
// unless they are pods or containers, without the last rows. The rows of answer may be
// others' too, and are not changed.
func (f *fitter) fit(call string, answer any) any {
	m, ok := answer.(proto.Message)
	if !ok {
		return answer
	}
	size := proto.Size(m)
	if size <= f.limit || len(expendable(m.ProtoReflect())) == 0 {
		return answer // or one that has no rows: what a command wrote is bounded where it is read
	}
	m = proto.CloneOf(m)
	over := size - f.limit
	for _, what := range []protoreflect.Name{"annotations", "labels"} {
		for _, row := range expendable(m.ProtoReflect()) {
			if over > 0 {
				over -= strip(row, what)
			}
		}
	}
	// What frames a row has become shorter as well.
	for proto.Size(m) > f.limit && dropLast(m.ProtoReflect()) {
	}
	if _, again := f.said.LoadOrStore(call, true); !again {
		f.log.Warn("an answer is too large for one message: annotations, and labels if need be, are left out of some of its rows; remove large annotations from pods, or old pods (not said again of this call)",
			slog.String("call", call), slog.Int("bytes", size), slog.Int("limit", f.limit))
	}
	return m
}

// expendable returns the rows of an answer, those first that can do without something
// the earliest: what does not run, and what is old.
func expendable(m protoreflect.Message) (rows []protoreflect.Message) {
	for field, v := range m.Range {
		if !isRows(field) {
			continue
		}
		for i := range v.List().Len() {
			rows = append(rows, v.List().Get(i).Message())
		}
	}
	slices.SortStableFunc(rows, func(a, b protoreflect.Message) int {
		if alive(a) != alive(b) {
			if alive(a) {
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

// alive reports whether a row is one that runs. Where there is no state all are.
func alive(row protoreflect.Message) bool {
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

// strip takes the entries of every map called what out of m and what is in it, but for
// identity, and returns by how many bytes m is shorter.
func strip(m protoreflect.Message, what protoreflect.Name) (saved int) {
	before := proto.Size(m.Interface())
	stripAll(m, what)
	return before - proto.Size(m.Interface())
}

func stripAll(m protoreflect.Message, what protoreflect.Name) {
	for field, v := range m.Range {
		switch {
		case field.IsMap() && field.Name() == what:
			entries := v.Map()
			for key := range entries.Range {
				if !identity[key.String()] {
					entries.Clear(key)
				}
			}
		case isRows(field):
			for i := range v.List().Len() {
				stripAll(v.List().Get(i).Message(), what)
			}
		case field.Kind() == protoreflect.MessageKind && !field.IsMap() && !field.IsList():
			stripAll(v.Message(), what)
		}
	}
}

// dropLast takes the last quarter of the rows out of a list, or one, and reports
// whether there was one to take. A pod or container that is not listed would be taken
// for one that is gone: those stay.
func dropLast(m protoreflect.Message) bool {
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

// fitting sends what fits.
type fitting struct {
	grpc.ServerStream
	call string
	*fitter
}

// SendMsg is of grpc.ServerStream.
func (s fitting) SendMsg(m any) error { return s.ServerStream.SendMsg(s.fit(s.call, m)) }
