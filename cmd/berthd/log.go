package main

import (
	"cmp"
	"errors"
	"io"
	"log/slog"
	"strings"

	"k8s.io/klog/v2"
)

// levels are those of cri-dockerd, which logs with other words. We have none
// above error: whoever asks for fatal or panic gets errors, which he should see.
var levels = map[string]slog.Level{
	"trace":   slog.LevelDebug - 4,
	"debug":   slog.LevelDebug,
	"info":    slog.LevelInfo,
	"warn":    slog.LevelWarn,
	"warning": slog.LevelWarn,
	"error":   slog.LevelError,
	"fatal":   slog.LevelError,
	"panic":   slog.LevelError,
}

// aLogLevel reads a level as cri-dockerd does: in small or capital letters, and
// nothing for info.
func aLogLevel(s string) (string, error) {
	s = strings.ToLower(cmp.Or(s, "info"))
	if _, ok := levels[s]; !ok {
		return "", errors.New("must be trace, debug, info, warn, error, fatal or panic")
	}
	return s, nil
}

// levelNames returns the levels as one would write them.
func levelNames() []string {
	return []string{"trace", "debug", "info", "warn", "error", "fatal", "panic"}
}

// newLog returns the daemon's log, and its level for who wants to change it.
// What libraries say goes there too.
func newLog(w io.Writer, cfg Config) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	level.Set(levels[cfg.LogLevel])
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewTextHandler(w, options)
	if cfg.LogFormat == "json" {
		handler = slog.NewJSONHandler(w, options)
	}
	log := slog.New(handler)
	klog.SetSlogLogger(log)
	return log, level
}
