// Command berthd lets a kubelet run its pods on Docker Engine: it serves the Kubernetes
// Container Runtime Interface (CRI) on a Unix socket and calls the Docker Engine API.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"berth/cmd/berthd/internal/config"
)

// Exit codes.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2 // error in the command line or in a configuration file
)

// gcPercent makes the garbage collector run twice as often as by default: memory of the
// node is for pods, and berthd makes little garbage. GOGC overrides it.
const gcPercent = 50

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	p := program{name: programName(os.Args[0]), args: os.Args[1:], configFile: config.DefaultFile, stdout: os.Stdout, stderr: os.Stderr}
	os.Exit(p.main(context.Background()))
}

// A program is one call of berthd.
type program struct {
	name       string // berthd or cri-dockerd
	args       []string
	configFile string // default of --config
	stdout     io.Writer
	stderr     io.Writer // the log, and the error at the end

	hangups <-chan os.Signal // SIGHUP: reload the configuration
}

// programName returns the name that the program was called by: berthd, or cri-dockerd through a link that
// replaces it.
func programName(arg0 string) string {
	if base := filepath.Base(arg0); base == "cri-dockerd" {
		return base
	}
	return "berthd"
}

// main runs the command that the arguments name and returns the exit code. An error is one line
// on stderr.
func (p *program) main(ctx context.Context) int {
	// Registered first: units send SIGHUP for a reload, which would end the process before that.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP)
	defer signal.Stop(hangups)
	p.hangups = hangups

	version, commit = built()
	err := p.execute(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(p.stderr, "%s: %v\n", p.name, err)
	var usage *config.UsageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitError
}

// execute runs the command that the arguments name.
func (p *program) execute(ctx context.Context) error {
	options, err := config.New(p.configFile)
	if err != nil {
		return err
	}
	root, err := p.newCommand(options)
	if err != nil {
		return err
	}
	root.SetArgs(p.args)
	return root.ExecuteContext(ctx)
}
