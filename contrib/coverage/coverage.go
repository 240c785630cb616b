// Coverage writes contrib/docs/coverage.md: what becomes of every field of
// every message of the CRI, and which test shows it. The rows are in rows.go;
// the test here fails where they and the CRI differ.
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

// A way says by what a field is carried out or, of an answer, where it is from.
type way string

// The ways there are.
const (
	engine  way = "Engine"  // a field of the Engine's API
	cgroup  way = "cgroup"  // a file of a cgroup
	proc    way = "/proc"   // a file of a process
	mount   way = "mount"   // a mount that berth makes, or what it does to one
	files   way = "file"    // a file that berth writes
	plugins way = "CNI"     // the network plugins
	store   way = "kept"    // a label of the Docker container, or the journal
	berth   way = "berth"   // berth itself does it, or knows it
	refused way = "refused" // with an error that says what to do
	nothing way = "none"    // there is nothing to do, and the words say why
)

// A row says what becomes of one field, or with the field "*" of all fields of
// a message.
type row struct {
	field string
	way   way
	words string
	tests string // PACKAGE.TestX, by the last element of the package's path, with spaces between them
}

// A message is a message of the CRI with its rows.
type message struct {
	name string
	rows []row
}

func main() {
	out := flag.String("out", "", "`file` to write")
	flag.Parse()
	if err := os.WriteFile(*out, []byte(page()), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const head = `# Every field of the CRI

Written by ` + "`go generate ./contrib/coverage`" + `; do not edit. It says what becomes of every field of every
request, and where every field of an answer is from, in the CRI v1 of ` + "`k8s.io/cri-api`" + ` 0.37.2.
A message that is part of several others is listed once.

| by | |
|---|---|
| Engine | a field of Docker's own API |
| cgroup, /proc | a file that berth writes or reads |
| mount | a mount that berth makes, or something it does to one |
| file | a file that berth writes |
| CNI | the network plugins |
| kept | a label of the Docker container, or berth's journal |
| berth | berth itself does it or knows it |
| refused | with an error that says what to do |
| none | there is nothing to do, for the reason given |

Tests are named by their package; ` + "`live`" + ` are those of the whole daemon on a real Docker Engine
(` + "`contrib/live`" + `), ` + "`e2e.TestCRI`" + ` is critest.
`

// page is the whole text.
func page() string {
	var b strings.Builder
	b.WriteString(head)
	said := map[string]message{}
	for _, m := range messages {
		said[m.name] = m
	}
	for _, d := range reachable() {
		m := said[string(d.Name())]
		if len(m.rows) == 0 {
			continue // it has no fields
		}
		fmt.Fprintf(&b, "\n## %s\n\n| field | by | how | shown by |\n|---|---|---|---|\n", m.name)
		for _, r := range m.rows {
			name := "`" + r.field + "`"
			if r.field == "*" {
				name = "all fields"
			}
			tests := strings.Fields(r.tests)
			for i, t := range tests {
				tests[i] = "`" + t + "`"
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name, r.way, r.words, strings.Join(tests, ", "))
		}
	}
	return b.String()
}

// reachable lists the messages that any call of the CRI has in its request or
// its answer, in the order in which they are met.
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
