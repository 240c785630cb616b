package main

import (
	"context"
	"io"
	"os/signal"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"berth/cmd/berthd/internal/config"
	"berth/core/engine"
	"berth/core/ociinstall"
)

// installConfig returns where the OCI runtime is on this node.
func installConfig(options *config.Options) ociinstall.Config {
	return ociinstall.Config{
		Docker:     engine.Config{Host: options.DockerEndpoint, Timeout: options.RequestTimeout},
		ConfigFile: options.Runtime.ConfigFile, Program: options.Runtime.Program, Dir: options.Runtime.Dir,
		Instructions: filepath.Join(options.RunDir, ociinstall.InstructionsName), Version: version,
	}
}

// changeRuntime returns the action of a command that changes the node.
func changeRuntime(change func(ctx context.Context, cfg ociinstall.Config, dryRun bool, out io.Writer) error) action {
	return func(cmd *cobra.Command, options *config.Options) error {
		if err := options.Load(); err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
		defer stop()
		return change(ctx, installConfig(options), options.DryRun, cmd.OutOrStdout())
	}
}

// showRuntime prints the state of the OCI runtime. It fails if containers that need it fail.
func showRuntime(cmd *cobra.Command, options *config.Options) error {
	if options.Output == "wide" {
		return config.UsageErrorf(`--output "wide": of runtime status it must be table or json`)
	}
	if err := options.Load(); err != nil {
		return err
	}
	report := ociinstall.Inspect(cmd.Context(), installConfig(options))
	write := report.WriteTable
	if options.JSON || options.Output == "json" {
		write = report.WriteJSON
	}
	if err := write(cmd.OutOrStdout()); err != nil {
		return err
	}
	return report.Err()
}
