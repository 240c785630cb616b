// Coverage writes contrib/docs/coverage.md: how every field of every message
// of the CRI is handled, and which tests cover it. The rows are in rows.go; a
// test of this package fails if they and the CRI differ. With -features it writes
// contrib/docs/features.md, which compares berth with other runtimes (featurerows.go).
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

//go:generate go run . -out ../docs/coverage.md
//go:generate go run . -features -out ../docs/features.md

// A mechanism is what applies a field of a request, or the source of a field
// of a response.
type mechanism string

const (
	engine  mechanism = "Engine"  // a field of the Engine API
	cgroup  mechanism = "cgroup"  // a file of a cgroup
	proc    mechanism = "/proc"   // a file of a process
	mount   mechanism = "mount"   // a mount that berth creates or changes
	files   mechanism = "file"    // a file that berth writes
	plugins mechanism = "CNI"     // the network plugins
	store   mechanism = "stored"  // a label of the Docker container, or the state directory
	berth   mechanism = "berth"   // berth itself
	refused mechanism = "refused" // with an error that says what to do
	nothing mechanism = "none"    // no effect, for the reason in the description
)

// A row describes one field, or with the field "*" all fields of a message.
type row struct {
	field       string
	by          mechanism
	description string
	tests       string // PACKAGE.TestX, by the last element of the package's path, separated by spaces
}

// A message is a message of the CRI with its rows.
type message struct {
	name string
	rows []row
}

func main() {
	out := flag.String("out", "", "`file` to write")
	features := flag.Bool("features", false, "write features.md instead")
	flag.Parse()
	text := page()
	if *features {
		text = featuresPage()
	}
	if err := os.WriteFile(*out, []byte(text), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const head = `# Every field of the CRI

Written by ` + "`go generate ./contrib/coverage`" + `; do not edit. The tables describe how berth applies every field of every
request, and the source of every field of a response, in the CRI v1 of ` + "`k8s.io/cri-api`" + ` 0.37.2.
A message that is part of several others is listed once.

| by | |
|---|---|
| Engine | a field of the Docker Engine API |
| cgroup, /proc | a file that berth writes or reads |
| mount | a mount that berth creates or changes; a premount is a mount that berth creates because the Engine API cannot express it |
| file | a file that berth writes |
| CNI | the network plugins |
| stored | a label of the Docker container, or berth's state directory |
| berth | berth itself |
| refused | with an error that says what to do |
| none | no effect, for the reason given |

Tests are named with their package; ` + "`live`" + ` are tests of the whole daemon on a real Docker Engine
(` + "`contrib/live`" + `), ` + "`e2e.TestCRI`" + ` is critest.
`

// page returns the text of coverage.md.
func page() string {
	var b strings.Builder
	b.WriteString(head)
	described := map[string]message{}
	for _, m := range messages {
		described[m.name] = m
	}
	for _, d := range reachable() {
		m := described[string(d.Name())]
		if len(m.rows) == 0 {
			continue // the message has no fields
		}
		fmt.Fprintf(&b, "\n## %s\n\n| field | by | how | tests |\n|---|---|---|---|\n", m.name)
		for _, r := range m.rows {
			name := "`" + r.field + "`"
			if r.field == "*" {
				name = "all fields"
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name, r.by, r.description, quoted(r.tests))
		}
	}
	return b.String()
}

// quoted returns the names of tests as code.
func quoted(names string) string {
	tests := strings.Fields(names)
	for i, t := range tests {
		tests[i] = "`" + t + "`"
	}
	return strings.Join(tests, ", ")
}

// reachable lists the messages that the requests and responses of all CRI calls
// contain, in the order of their first use.
func reachable() []protoreflect.MessageDescriptor {
	var list []protoreflect.MessageDescriptor
	seen := map[protoreflect.FullName]bool{}
	var visit func(protoreflect.MessageDescriptor)
	visit = func(m protoreflect.MessageDescriptor) {
		if seen[m.FullName()] {
			return
		}
		seen[m.FullName()] = true
		list = append(list, m)
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			if f.IsMap() {
				f = f.MapValue()
			}
			if f.Message() != nil {
				visit(f.Message())
			}
		}
	}
	services := (&runtimeapi.VersionRequest{}).ProtoReflect().Descriptor().ParentFile().Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			method := services.Get(i).Methods().Get(j)
			visit(method.Input())
			visit(method.Output())
		}
	}
	return list
}
