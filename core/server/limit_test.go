package server

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// large fills m and what is in it: maps with texts of bytes each, and with what the
// kubelet finds pods by, lists with two elements.
func large(m protoreflect.Message, bytes int, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		switch field := fields.Get(i); {
		case field.IsMap():
			if field.MapValue().Kind() != protoreflect.StringKind {
				continue
			}
			entries := m.Mutable(field).Map()
			entries.Set(protoreflect.ValueOfString("large").MapKey(), protoreflect.ValueOfString(strings.Repeat("x", bytes)))
			for key := range identityLabels {
				entries.Set(protoreflect.ValueOfString(key).MapKey(), protoreflect.ValueOfString("kept"))
			}
		case isRows(field):
			for range 2 {
				if depth > 0 {
					large(m.Mutable(field).List().AppendMutable().Message(), bytes, depth-1)
				}
			}
		case field.IsList():
		case field.Kind() == protoreflect.MessageKind:
			if depth > 0 {
				large(m.Mutable(field).Message(), bytes, depth-1)
			}
		case field.Kind() == protoreflect.StringKind:
			m.Set(field, protoreflect.ValueOfString("a name"))
		}
	}
}

// identified reports whether all labels in m are those that the kubelet finds pods by.
func identified(m protoreflect.Message) bool {
	ok := true
	for field, v := range m.Range {
		switch {
		case field.IsMap() && field.Name() == "labels":
			for key := range identityLabels {
				ok = ok && v.Map().Has(protoreflect.ValueOfString(key).MapKey())
			}
		case isRows(field):
			for i := range v.List().Len() {
				ok = ok && identified(v.List().Get(i).Message())
			}
		case field.Kind() == protoreflect.MessageKind && !field.IsMap() && !field.IsList():
			ok = ok && identified(v.Message())
		}
	}
	return ok
}

// ofOnePod are answers whose rows are the containers of one pod, with all that is to be
// known of each: what is left out is not enough for a test as small as this.
var ofOnePod = map[string]bool{"PodSandboxStatusResponse": true, "ContainerEventResponse": true}

// Every answer of the CRI that is a list fits into a message, whatever is in its rows,
// and the kubelet still finds its pods by it.
func TestEveryResponseFitsIntoAMessage(t *testing.T) {
	const rows = 30
	messages := (&runtimeapi.ListContainersResponse{}).ProtoReflect().Descriptor().ParentFile().Messages()
	lists := 0
	for i := range messages.Len() {
		desc := messages.Get(i)
		name := string(desc.Name())
		if !strings.HasSuffix(name, "Response") {
			continue
		}
		var field protoreflect.FieldDescriptor
		for i := range desc.Fields().Len() {
			if f := desc.Fields().Get(i); isRows(f) {
				field = f
			}
		}
		if field == nil {
			continue
		}
		lists++
		t.Run(name, func(t *testing.T) {
			m := dynamicpb.NewMessage(desc)
			for range rows {
				large(m.Mutable(field).List().AppendMutable().Message(), 10_000, 3)
			}
			before := proto.CloneOf[proto.Message](m)
			var out bytes.Buffer
			f := &sizeLimiter{limit: 60 << 10, log: slog.New(slog.NewTextHandler(&out, nil))}
			for range 2 {
				got := f.limitSize(name, m).(proto.Message)
				if size := proto.Size(got); size > f.limit && !ofOnePod[name] {
					t.Errorf("%d bytes of %d, want at most %d", size, proto.Size(m), f.limit)
				}
				if !identified(got.ProtoReflect()) {
					t.Error("a row has lost the labels that identify it")
				}
				n := got.ProtoReflect().Get(field).List().Len()
				switch field.Message().Name() {
				case "PodSandbox", "Container", "ContainerStatus":
					if n != rows {
						t.Errorf("%d rows of %d", n, rows)
					}
				}
			}
			if !proto.Equal(before, m) {
				t.Error("the rows that others may share were modified")
			}
			if n := strings.Count(out.String(), "exceeds the size"); n > 1 || n == 0 && proto.Size(m) > f.limit {
				t.Errorf("logged %d times:\n%s", n, &out)
			}
		})
	}
	if lists < 10 {
		t.Errorf("%d lists", lists)
	}
}

// What is dead goes first, then what is old, and no more than need be.
func TestAnnotationsOfInactiveAndOldRowsAreRemovedFirst(t *testing.T) {
	row := func(id string, state runtimeapi.PodSandboxState, created int64) *runtimeapi.PodSandbox {
		return &runtimeapi.PodSandbox{
			Id: id, State: state, CreatedAt: created, Labels: map[string]string{"app": "web", "io.kubernetes.pod.uid": "u"},
			Annotations: map[string]string{"large": strings.Repeat("x", 1000)},
		}
	}
	const ready, notReady = runtimeapi.PodSandboxState_SANDBOX_READY, runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	list := &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{
		row("new", ready, 4), row("dead", notReady, 3), row("middle", ready, 2), row("old", ready, 1),
	}}
	for limit, want := range map[int]string{
		5000: "new dead middle old", 4000: "new middle old", 3000: "new middle", 2000: "new", 1000: "", 100: "",
	} {
		f := &sizeLimiter{limit: limit, log: slog.New(slog.DiscardHandler)}
		got := f.limitSize("ListPodSandbox", list).(*runtimeapi.ListPodSandboxResponse)
		var whole []string
		for _, r := range got.GetItems() {
			if len(r.GetAnnotations()) > 0 {
				whole = append(whole, r.GetId())
			}
			if app := r.GetLabels()["app"]; (app == "") != (limit == 100) || r.GetLabels()["io.kubernetes.pod.uid"] != "u" {
				t.Errorf("at most %d: %s has labels %v", limit, r.GetId(), r.GetLabels())
			}
		}
		if fmt.Sprint(whole) != fmt.Sprint(strings.Fields(want)) || len(got.GetItems()) != 4 {
			t.Errorf("at most %d: annotations of %v, want of %s", limit, whole, want)
		}
	}
}

// What a command wrote is no list.
func TestExecOutputIsNotReduced(t *testing.T) {
	var out bytes.Buffer
	f := &sizeLimiter{limit: 100, log: slog.New(slog.NewTextHandler(&out, nil))}
	warnings := &runtimeapi.ExecSyncResponse{Stdout: make([]byte, 1000)}
	if got := f.limitSize("ExecSync", warnings); got != warnings || out.Len() > 0 {
		t.Errorf("got %v, %s", got, &out)
	}
}
