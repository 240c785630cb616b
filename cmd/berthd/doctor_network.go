package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/network"
)

// checkNetwork looks at the network of pods.
func (p *patient) checkNetwork(ctx context.Context) {
	if p.cfg.NetworkPlugin == noCNI {
		p.tell("network", doubt, "pods are on Docker's own bridge, and cannot reach those of other nodes", "set network-plugin: cni for a cluster")
		return
	}
	var bins []string
	for _, dir := range p.cfg.CNIBinDirs {
		bins = append(bins, p.path(dir))
	}
	conf := p.path(p.cfg.CNIConfDir)
	skipped := new(warnings)
	pods := network.New(network.Config{ConfDir: conf, BinDirs: bins, CacheDir: p.path(p.cfg.CNICacheDir), RunDir: p.path(p.cfg.RunDir)}, slog.New(skipped))
	var err error
	if p.elsewhere() {
		err = pods.Installed() // the programs of another root are not run
	} else {
		err = pods.Status(ctx)
	}
	files, _ := filepath.Glob(filepath.Join(conf, "*"))
	switch {
	case err == nil:
		p.tell("network", fine, "CNI configuration in "+conf+" is valid and its plugins are there", "")
		for _, file := range skipped.files {
			p.tell("network", doubt, file+" is not valid and is skipped", "correct it or remove it")
		}
	case strings.Contains(err.Error(), "is not valid"):
		p.tell("network", wrong, err.Error(), "correct the file, or remove it and install the network of your cluster again")
	case len(files) == 0:
		p.tell("network", wrong, err.Error(), "install the network of your cluster (Calico, Cilium, Flannel, ...), which writes a file there; if it does so elsewhere, set cni-conf-dir")
	default:
		p.tell("network", wrong, err.Error(), "install the plugin (package kubernetes-cni or containernetworking-plugins), or add its directory to cni-bin-dir in "+defaultConfigFile)
	}
}

// warnings is a log that remembers which files it was warned of.
type warnings struct{ files []string }

// Enabled says that warnings are wanted.
func (w *warnings) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }

// Handle remembers the file of r, if there is one.
func (w *warnings) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "file" {
			w.files = append(w.files, a.Value.String())
		}
		return true
	})
	return nil
}

// WithAttrs is not needed.
func (w *warnings) WithAttrs([]slog.Attr) slog.Handler { return w }

// WithGroup is not needed.
func (w *warnings) WithGroup(string) slog.Handler { return w }

// socketPatience is how long an adapter may take to answer the doctor.
const socketPatience = 3 * time.Second

// checkSocket looks at where the kubelet is served.
func (p *patient) checkSocket(ctx context.Context) {
	path := p.path(socketOf(p.endpoint()))
	start := "systemctl enable --now berth.socket berth.service"
	info, err := os.Stat(path)
	switch {
	case err != nil:
		p.tell("socket", wrong, "nothing is at "+path, start)
		return
	case info.Mode()&os.ModeSocket == 0:
		p.tell("socket", wrong, path+" is no socket", "remove it and: "+start)
		return
	case info.Mode().Perm()&0o007 != 0:
		p.tell("socket", wrong, fmt.Sprintf("%s has mode %04o: everybody on this node can be root", path, info.Mode().Perm()),
			"remove SocketMode= from drop-ins of berth.socket and: systemctl restart berth.socket")
		return
	case errors.Is(unix.Access(path, unix.W_OK), fs.ErrPermission):
		p.tell("socket", wrong, path+" is not for this user", "run the doctor as root")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, socketPatience)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		p.tell("socket", wrong, err.Error(), "correct container-runtime-endpoint")
		return
	}
	defer conn.Close()
	desk := runtimeapi.NewRuntimeServiceClient(conn)
	status, err := desk.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		p.tell("socket", wrong, path+" does not answer: "+err.Error(), "look at: systemctl status berth.service, journalctl -u berth.service")
		return
	}
	// What another line tells already is not wrong twice.
	causes := map[string]string{runtimeapi.RuntimeReady: "docker", runtimeapi.NetworkReady: "network"}
	known := false
	for _, c := range status.GetStatus().GetConditions() {
		switch {
		case c.GetStatus():
		case p.toldWrong(causes[c.GetType()]):
			known = true
		default:
			p.tell("socket", wrong, fmt.Sprintf("%s answers, but %s: %s", path, c.GetReason(), c.GetMessage()), "do as the other lines say")
			return
		}
	}
	if known {
		p.tell("socket", fine, path+" answers, and will be ready once the rest is well", "")
		return
	}
	p.tell("socket", fine, path+" answers, and is ready", "")
}

// toldWrong says whether something was found wrong by that check.
func (p *patient) toldWrong(check string) bool {
	return slices.ContainsFunc(p.report, func(f finding) bool { return f.Check == check && f.State == wrong })
}
