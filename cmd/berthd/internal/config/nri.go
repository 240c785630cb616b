package config

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	validator "github.com/containerd/nri/plugins/default-validator/builtin"

	"berth/core/nri"
)

// NRI has the options of the Node Resource Interface.
type NRI struct {
	Enable              bool
	SocketPath          string
	PluginPath          string
	PluginConfigPath    string
	RegistrationTimeout time.Duration
	RequestTimeout      time.Duration
	BlockIOFile         string   // of block I/O classes, or empty for none
	Reject              []string // what plugins may not change, of nriValidations
	RequiredPlugins     []string
	ToleranceAnnotation string // of pods that do without RequiredPlugins
}

// NRIOptions returns the options of the Node Resource Interface.
func (c Config) NRIOptions() nri.Options {
	o := nri.Options{
		Enable: c.NRI.Enable, SocketPath: c.NRI.SocketPath, PluginPath: c.NRI.PluginPath, PluginConfigPath: c.NRI.PluginConfigPath,
		RegistrationTimeout: c.NRI.RegistrationTimeout, RequestTimeout: c.NRI.RequestTimeout, BlockIOFile: c.NRI.BlockIOFile,
	}
	o.Validator.Enable = len(c.NRI.Reject)+len(c.NRI.RequiredPlugins) > 0
	o.Validator.RequiredPlugins, o.Validator.TolerateMissingAnnotation = c.NRI.RequiredPlugins, c.NRI.ToleranceAnnotation
	for _, name := range c.NRI.Reject {
		nriValidations[name](&o.Validator)
	}
	return o
}

// defaultNRISocket sets the default of nri-socket-path: a second berthd of a node, with another run-dir, leaves the usual one to the first.
func (o *Options) defaultNRISocket() {
	if o.RunDir != DefaultRunDir && o.option("nri-socket-path").source == "" {
		o.NRI.SocketPath = filepath.Join(o.RunDir, "nri", "nri.sock")
	}
}

// nriValidations are the changes that the validator of the NRI library can refuse. Its own names of them are reject_..._adjustment.
var nriValidations = map[string]func(*validator.DefaultValidatorConfig){
	"oci-hooks":               func(c *validator.DefaultValidatorConfig) { c.RejectOCIHookAdjustment = true },
	"runtime-default-seccomp": func(c *validator.DefaultValidatorConfig) { c.RejectRuntimeDefaultSeccompAdjustment = true },
	"unconfined-seccomp":      func(c *validator.DefaultValidatorConfig) { c.RejectUnconfinedSeccompAdjustment = true },
	"custom-seccomp":          func(c *validator.DefaultValidatorConfig) { c.RejectCustomSeccompAdjustment = true },
	"namespaces":              func(c *validator.DefaultValidatorConfig) { c.RejectNamespaceAdjustment = true },
	"sysctls":                 func(c *validator.DefaultValidatorConfig) { c.RejectSysctlAdjustment = true },
}

// nriOptions returns the options of the Node Resource Interface. Defaults are those of containerd.
func nriOptions(cfg *Config) []*option {
	o := &cfg.NRI
	return []*option{
		{name: "nri", value: newValue(&o.Enable, parseBool), initial: "true",
			usage: "serve plugins of the Node Resource Interface (NRI)"},
		{name: "nri-socket-path", value: newValue(&o.SocketPath, parseSocket), initial: nri.DefaultSocketPath,
			usage: "`SOCKET`, only for root, that plugins connect to; with a run-dir that is not the default, this default is nri/nri.sock below that"},
		{name: "nri-plugin-path", value: newValue(&o.PluginPath, parseDir), initial: adaptation.DefaultPluginPath,
			usage: "`DIR` of plugins that are started with berthd; only root may be able to write to it"},
		{name: "nri-plugin-config-path", value: newValue(&o.PluginConfigPath, parseDir), initial: adaptation.DefaultPluginConfigPath,
			usage: "`DIR` of their configuration"},
		{name: "nri-registration-timeout", value: newValue(&o.RegistrationTimeout, parsePositiveDuration), initial: adaptation.DefaultPluginRegistrationTimeout.String(),
			usage: "how long a plugin may take to register"},
		{name: "nri-request-timeout", value: newValue(&o.RequestTimeout, parsePositiveDuration), initial: adaptation.DefaultPluginRequestTimeout.String(),
			usage: "how long a plugin may take for an event; one that takes longer is disconnected"},
		{name: "blockio-config-file", value: newValue(&o.BlockIOFile, parseOptionalPath), initial: "",
			usage: "`FILE` of the block I/O classes that plugins may put containers in, as blockio_config_file of containerd; empty for none"},
		{name: "nri-reject", value: newValue(&o.Reject, parseNRIValidations), initial: "",
			usage: "`CHANGES` that no plugin may make, separated by commas: " + strings.Join(slices.Sorted(maps.Keys(nriValidations)), ", ")},
		{name: "nri-required-plugins", value: newValue(&o.RequiredPlugins, parseNRIPlugins), initial: "",
			usage: "names of `PLUGINS`, without index, separated by commas: containers are only created while all of them are connected"},
		{name: "nri-tolerate-missing-annotation", value: newValue(&o.ToleranceAnnotation, parseAnnotation), initial: "",
			usage: "`ANNOTATION` of pods whose containers are created without the required plugins; empty for none"},
	}
}

func parseNRIValidations(s string) (names []string, err error) {
	for name := range strings.SplitSeq(s, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		if nriValidations[name] == nil {
			return nil, fmt.Errorf("must be of %s, separated by commas", strings.Join(slices.Sorted(maps.Keys(nriValidations)), ", "))
		}
		names = append(names, name)
	}
	return names, nil
}

// nriPlugin is the name of a plugin without its index, as in the name of its file behind "NN-".
var nriPlugin = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

func parseNRIPlugins(s string) (names []string, err error) {
	for name := range strings.SplitSeq(s, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		if !nriPlugin.MatchString(name) {
			return nil, errors.New("must be names of plugins without index, separated by commas")
		}
		names = append(names, name)
	}
	return names, nil
}

// annotationName is the name of an annotation, with or without a prefix.
var annotationName = regexp.MustCompile(`^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)

func parseAnnotation(s string) (string, error) {
	if s != "" && !annotationName.MatchString(s) {
		return "", errors.New("must be the name of an annotation, like example.com/nri-optional")
	}
	return s, nil
}
