package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"berth/core/engine"
)

// doctorConfig is what can be asked of the doctor.
type doctorConfig struct {
	json bool
	root string // where the node's files are
	file string // of the configuration
}

// How a thing was found.
const (
	fine  = "ok"
	doubt = "warn" // pods run, but there is something to know
	wrong = "fail" // pods do not run, or not as they should
)

// A finding is one thing that was looked at.
type finding struct {
	Check string `json:"check"`
	State string `json:"state"` // fine, doubt or wrong
	Found string `json:"found"`
	Do    string `json:"do,omitempty"` // what makes it well
}

// A patient is the node that is looked at.
type patient struct {
	cfg    Config
	engine *engine.Features // nil if the Engine could not be asked
	report []finding
}

// doctor looks over the node and tells on out what it has found, a line each.
// Its error tells how much is wrong.
func doctor(ctx context.Context, cfg Config, out io.Writer) error {
	p := &patient{cfg: cfg}
	p.checkEngine(ctx)
	p.checkNetwork(ctx)
	p.checkSocket(ctx)
	p.checkKubelet()
	p.checkKernel()
	p.checkPropagation()
	p.checkUnits()
	p.checkLeftovers()
	if err := p.print(out); err != nil {
		return err
	}
	count := 0
	for _, f := range p.report {
		if f.State == wrong {
			count++
		}
	}
	switch count {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("1 thing is wrong with this node")
	default:
		return fmt.Errorf("%d things are wrong with this node", count)
	}
}

// print writes the report.
func (p *patient) print(out io.Writer) error {
	if p.cfg.doctor.json {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(p.report)
	}
	for _, f := range p.report {
		line := fmt.Sprintf("%-5s %-15s %s", f.State, f.Check, f.Found)
		if f.Do != "" {
			line += " -> " + f.Do
		}
		if _, err := fmt.Fprintln(out, strings.ReplaceAll(line, "\n", " ")); err != nil {
			return err
		}
	}
	return nil
}

// tell adds a finding: what was found, and what to do about it, if anything.
func (p *patient) tell(check, state, found, do string) {
	p.report = append(p.report, finding{check, state, found, do})
}

// path returns where a file of the node is for us.
func (p *patient) path(name string) string { return filepath.Join(p.cfg.doctor.root, name) }

// elsewhere reports whether the files are not those of the node that the doctor runs on. Such
// files may be anybody's: nothing of them is executed.
func (p *patient) elsewhere() bool { return filepath.Clean("/"+p.cfg.doctor.root) != "/" }
