package config

import (
	"cmp"
	"errors"
	"log/slog"
	"slices"
	"strings"
)

// logLevels are the levels of cri-dockerd, which logs with logrus. slog has none above error;
// fatal and panic show errors.
var logLevels = []string{"trace", "debug", "info", "warn", "error", "fatal", "panic"}

// parseLogLevel reads a level as logrus does: in any case, with warning for warn; empty is info.
func parseLogLevel(s string) (string, error) {
	s = strings.ToLower(cmp.Or(s, "info"))
	if s != "warning" && !slices.Contains(logLevels, s) {
		return "", errors.New("must be trace, debug, info, warn, error, fatal or panic")
	}
	return s, nil
}

// SlogLevel returns the level of LogLevel.
func (c *Config) SlogLevel() slog.Level {
	switch c.LogLevel {
	case "trace":
		return slog.LevelDebug - 4
	case "debug":
		return slog.LevelDebug
	case "warn", "warning":
		return slog.LevelWarn
	case "error", "fatal", "panic":
		return slog.LevelError
	default:
		return slog.LevelInfo
	}
}
