package main

import (
	"fmt"
	"strings"
)

// A support says whether a runtime has a feature.
type support string

const (
	yes  support = "yes"
	part support = "partly"
	no   support = "no"
	// below marks a feature of the Docker Engine that berth passes on or leaves alone.
	below support = "Docker's"
)

// A feature is a row of contrib/docs/features.md. The columns of the other runtimes are as read in the
// sources of cri-dockerd 0.4.3, containerd 2.3.4 and CRI-O 1.36.3 and 1.37.0; only berth's was tested.
type feature struct {
	name        string
	criDockerd  string
	containerd  string
	crio        string
	berth       support
	description string
	tests       string // as in row; each yes has at least one
}

// A featureArea is a section of the page.
type featureArea struct {
	title    string
	features []feature
}

const featuresHead = `# berth beside cri-dockerd, containerd and CRI-O

Written by ` + "`go generate ./contrib/coverage`" + `; do not edit. The other columns were read in the sources of cri-dockerd 0.4.3,
containerd 2.3.4 and CRI-O 1.36.3 and 1.37.0 and not run. Each "yes" of berth names a test that shows it: ` + "`live`" + `
are tests of the whole daemon on real Docker Engines, ` + "`e2e`" + ` critest and the story with a real kubelet.
What berth does not have and why is in [open.md](open.md).

`

// featuresPage returns the text of features.md.
func featuresPage() string {
	var b strings.Builder
	b.WriteString(featuresHead)
	count := map[support]int{}
	for _, a := range featureAreas {
		for _, f := range a.features {
			count[f.berth]++
		}
	}
	fmt.Fprintf(&b, "Of %d features berth has %d, %d in part; %d are Docker's own, %d are missing.\n",
		count[yes]+count[part]+count[below]+count[no], count[yes], count[part], count[below], count[no])
	for _, a := range featureAreas {
		fmt.Fprintf(&b, "\n## %s\n\n| feature | cri-dockerd | containerd | CRI-O | berth | tests |\n|---|---|---|---|---|---|\n", a.title)
		for _, f := range a.features {
			how := string(f.berth)
			if f.description != "" {
				how += ": " + f.description
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", f.name, f.criDockerd, f.containerd, f.crio, how, quoted(f.tests))
		}
	}
	return b.String()
}
