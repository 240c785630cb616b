// Package doctor checks a node: Docker, the network of pods, the socket of the CRI, the kubelet, the kernel,
// mounts, units, and leftovers of cri-dockerd and dockershim.
//
// Run returns a Report: one Result for each check, in a fixed order, with the fix if something is
// to be done. The checks only read, and call the Engine, the CRI socket and CNI plugins.
// With a Root other than / the files are those of another node; nothing below it is executed.
package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"berth/cmd/berthd/internal/config"
	"berth/core/engine"
)

// Config is what is checked.
type Config struct {
	Daemon     config.Config // of the berthd on this node
	ConfigFile string        // that its units read unless they name another
	Root       string        // directory with the files of the node
}

// State is the outcome of a check.
type State string

// States of a Result.
const (
	OK   State = "ok"
	Warn State = "warn" // pods run, with a restriction
	Fail State = "fail" // pods do not run, or not as they should
)

// A Result is the outcome of one check.
type Result struct {
	Check   string `json:"check"`
	State   State  `json:"state"`
	Message string `json:"found"`
	Fix     string `json:"do,omitempty"` // what the operator should do
}

// A Report has the results in the order of the checks.
type Report []Result

// checker runs the checks on one node.
type checker struct {
	Config
	daemon config.Config
	engine *engine.Features // nil if Docker did not answer
	report Report
}

// Run runs all checks.
func Run(ctx context.Context, cfg Config) Report {
	c := &checker{Config: cfg, daemon: cfg.Daemon}
	c.checkEngine(ctx)
	c.checkRuntime(ctx)
	c.checkCRIU(ctx)
	c.checkVerifiers()
	c.checkCDI()
	c.checkNetwork(ctx)
	c.checkSocket(ctx)
	c.checkDebugSocket()
	c.checkNRI()
	c.checkKubelet()
	c.checkTracing(ctx)
	c.checkKernel()
	c.checkPropagation()
	c.checkUnits()
	c.checkLeftovers()
	return c.report
}

// Err returns an error with the number of failed checks, nil if there is none.
func (r Report) Err() error {
	failed := 0
	for _, result := range r {
		if result.State == Fail {
			failed++
		}
	}
	switch failed {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("1 thing is wrong with this node")
	default:
		return fmt.Errorf("%d things are wrong with this node", failed)
	}
}

// WriteJSON writes the results as a JSON array.
func (r Report) WriteJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(r)
}

// WriteText writes one line for each result.
func (r Report) WriteText(w io.Writer) error {
	for _, result := range r {
		line := fmt.Sprintf("%-5s %-15s %s", result.State, result.Check, result.Message)
		if result.Fix != "" {
			line += " -> " + result.Fix
		}
		if _, err := fmt.Fprintln(w, strings.ReplaceAll(line, "\n", " ")); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) ok(check, message string) {
	c.report = append(c.report, Result{Check: check, State: OK, Message: message})
}

func (c *checker) warn(check, message, fix string) {
	c.report = append(c.report, Result{check, Warn, message, fix})
}

func (c *checker) fail(check, message, fix string) {
	c.report = append(c.report, Result{check, Fail, message, fix})
}

// has reports whether that check has a result in one of the states, or any if none is given.
func (c *checker) has(check string, states ...State) bool {
	return slices.ContainsFunc(c.report, func(r Result) bool {
		return r.Check == check && (len(states) == 0 || slices.Contains(states, r.State))
	})
}

// path returns where the file of the node is for this process.
func (c *checker) path(name string) string { return filepath.Join(c.Root, name) }

// isForeign reports whether the files are not those of the node that the doctor runs on. Anyone may have
// written them, so none of them is executed.
func (c *checker) isForeign() bool { return filepath.Clean("/"+c.Root) != "/" }
