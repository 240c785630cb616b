package main

import (
	"io"
	"log/slog"

	"k8s.io/klog/v2"

	"berth/cmd/berthd/internal/config"
)

// newLog returns the log of the daemon and its level, which may be changed. klog, which the libraries of
// Kubernetes use, writes to it too.
func newLog(w io.Writer, cfg config.Config) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	level.Set(cfg.SlogLevel())
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewTextHandler(w, options)
	if cfg.LogFormat == "json" {
		handler = slog.NewJSONHandler(w, options)
	}
	log := slog.New(handler)
	klog.SetSlogLogger(log)
	return log, level
}
