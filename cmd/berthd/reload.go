package main

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"

	"berth/cmd/berthd/internal/config"
	"berth/core/daemon"
)

// live is what a reload changes.
type live struct {
	*daemon.Daemon
	level *slog.LevelVar
}

// appliers has the function that applies an option to a running daemon, for each that is marked reloadable in the
// table of package config. It uses no option that is not reloadable, because those have their new values
// there. It cannot fail: Load has checked the value.
var appliers = map[string]func(live, config.Config){
	"log-level":                 func(l live, cfg config.Config) { l.level.Set(cfg.SlogLevel()) },
	"pod-infra-container-image": func(l live, cfg config.Config) { l.SetPauseImage(cfg.PauseImage) },
	"registry-mirrors":          applyPullPolicy,
	"image-verifier-dir":        applyPullPolicy,
	"image-verifier-timeout":    applyPullPolicy,
	"image-verifier-max":        applyPullPolicy,
	"keep-local-images":         applyPinPolicy,
	"pinned-images":             applyPinPolicy,
	"pin-labels":                applyPinPolicy,
}

// applyPinPolicy applies three options at once. All of them are reloadable.
func applyPinPolicy(l live, cfg config.Config) {
	l.SetPinPolicy(pinPolicy(cfg))
}

// applyPullPolicy applies four options at once. All of them are reloadable.
func applyPullPolicy(l live, cfg config.Config) {
	l.SetPullPolicy(cfg.RegistryMirrors, imageVerifiers(cfg))
}

// A reloader reads the configuration again at each SIGHUP and applies the options that can be changed while the
// daemon runs. The others take a restart, which does not affect running pods.
type reloader struct {
	live
	options  *config.Options
	inForce  map[string]string // values of options, by name
	warnings []config.Warning  // those of the last configuration
	log      *slog.Logger
}

// newReloader returns the reloader of a daemon that was started with options.
func newReloader(options *config.Options, l live, log *slog.Logger) *reloader {
	return &reloader{live: l, options: options, inForce: options.Values(), warnings: options.Warnings(), log: log}
}

// run reloads at each signal until ctx ends.
func (r *reloader) run(ctx context.Context, hangups <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
			r.reload()
		}
	}
}

// reload applies the configuration as it is in the files now. Of one with an error it applies nothing. Each changed
// option is named in the log, with those that take a restart at every reload until then.
func (r *reloader) reload() {
	next, err := r.options.Reload()
	if err != nil {
		r.log.Error("configuration not reloaded, nothing is changed", slog.Any("err", err))
		return
	}
	var applied, needRestart []string
	values := next.Values()
	for _, name := range slices.Sorted(maps.Keys(values)) {
		apply, reloadable := appliers[name]
		switch {
		case values[name] == r.inForce[name]:
		case reloadable:
			apply(r.live, next.Config)
			r.inForce[name] = values[name]
			applied = append(applied, name)
		default:
			needRestart = append(needRestart, name)
		}
	}
	r.log.Info("configuration reloaded", slog.String("applied", strings.Join(applied, ",")), slog.String("unchanged-until-restart", strings.Join(needRestart, ",")))
	for _, name := range needRestart {
		r.log.Warn("changed option needs a restart of berthd", slog.String("option", name))
	}
	warnOfIgnored(slices.DeleteFunc(next.Warnings(), func(w config.Warning) bool { return slices.Contains(r.warnings, w) }), r.log)
	r.warnings = next.Warnings()
}

// warnOfIgnored warns of options that were given and have no effect.
func warnOfIgnored(warnings []config.Warning, log *slog.Logger) {
	for _, w := range warnings {
		log.Warn("option without effect", slog.String("option", w.Option), slog.String("given", w.Source), slog.String("why", w.Reason))
	}
}
