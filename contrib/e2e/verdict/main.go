// Command verdict reads the JUnit report of a run of critest and says whether
// it is as it should be: no spec fails but those that are known to, and those
// do.
//
//	verdict -known critest.known report.xml
//
// A line of the file of known failures is the name of a spec, or the beginning
// of it, a tab, and the reason. A reason that begins with "sometimes: " lets the
// spec pass as well. Empty lines and lines that begin with # do not count.
package main

import (
	"encoding/xml"
	"flag"
	"fmt"
	"os"
	"strings"
)

type report struct {
	Suites []struct {
		Cases []testCase `xml:"testcase"`
	} `xml:"testsuite"`
}

type testCase struct {
	Name    string   `xml:"name,attr"`
	Status  string   `xml:"status,attr"`
	Skipped *message `xml:"skipped"`
	Failure *message `xml:"failure"`
	Error   *message `xml:"error"`
}

type message struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

func main() {
	known := flag.String("known", "", "`file` of specs that are known to fail")
	flag.Parse()
	ok, err := judge(*known, flag.Arg(0))
	if err != nil {
		fmt.Fprintln(os.Stderr, "verdict:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func judge(knownPath, reportPath string) (bool, error) {
	known, err := readKnown(knownPath)
	if err != nil {
		return false, err
	}
	text, err := os.ReadFile(reportPath)
	if err != nil {
		return false, err
	}
	var r report
	if err := xml.Unmarshal(text, &r); err != nil {
		return false, fmt.Errorf("%s: %w", reportPath, err)
	}
	passed, failed, skipped, ok := 0, 0, 0, true
	for _, suite := range r.Suites {
		for _, c := range suite.Cases {
			if !strings.HasPrefix(c.Name, "[It]") {
				continue
			}
			name := strings.TrimPrefix(c.Name, "[It] [k8s.io] ")
			why, expected := known.match(name)
			switch {
			case c.Failure != nil || c.Error != nil:
				failed++
				if expected {
					fmt.Printf("known failure: %s\n    %s\n", name, why)
					continue
				}
				ok = false
				m := c.Failure
				if m == nil {
					m = c.Error
				}
				fmt.Printf("FAILED: %s\n    %s\n", name, strings.ReplaceAll(strings.TrimSpace(cut(m.Message, 1500)), "\n", "\n    "))
			case c.Skipped != nil:
				skipped++
				if reason := strings.TrimSpace(c.Skipped.Message); reason != "" && reason != "skipped" {
					fmt.Printf("skipped: %s\n    %s\n", name, cut(reason, 200))
				}
			default:
				passed++
				if expected && !strings.HasPrefix(why, "sometimes: ") {
					ok = false
					fmt.Printf("PASSED, though it is known to fail (take it off the list): %s\n", name)
				}
			}
		}
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	return ok && passed > 0, nil
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n] + " ..."
	}
	return s
}

type list []struct{ name, why string }

func (l list) match(name string) (why string, ok bool) {
	for _, k := range l {
		if strings.HasPrefix(name, k.name) {
			return k.why, true
		}
	}
	return "", false
}

func readKnown(path string) (list, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var l list
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, why, ok := strings.Cut(line, "\t")
		if !ok {
			return nil, fmt.Errorf("%s: %q has no tab before its reason", path, line)
		}
		l = append(l, struct{ name, why string }{name, strings.TrimSpace(why)})
	}
	return l, nil
}
