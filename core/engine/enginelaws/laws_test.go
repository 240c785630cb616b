package enginelaws_test

import (
	"context"
	"flag"
	"log/slog"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/docker/docker/api/types/versions"
	"github.com/docker/docker/client"

	"berth/core/engine"
	"berth/core/engine/enginelaws"
	"berth/core/engine/enginetest"
)

var (
	host  = flag.String("docker", "", "`endpoint` of a Docker Engine to run the laws on")
	image = flag.String("image", "berth-test:1", "an `image` of that Engine, with a busybox")
)

func TestLawsOnFakeEngine(t *testing.T) {
	if enginelaws.FakeName != enginetest.Name {
		t.Fatalf("FakeName is %q, want %q", enginelaws.FakeName, enginetest.Name)
	}
	for _, api := range []string{"1.41", "1.42", "1.43", "1.44", "1.47", "1.51"} {
		t.Run(api, func(t *testing.T) {
			e := enginetest.New(t, enginetest.API(api))
			e.AddImage(enginetest.Image{}, "berth-test:1")
			enginelaws.Run(t, e.Client(t), "berth-test:1")
		})
	}
}

func TestLawsOnDocker(t *testing.T) {
	if *host == "" {
		t.Skip("needs a Docker Engine: -docker unix:///...")
	}
	docker, err := client.NewClientWithOpts(client.WithHost(*host), client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = docker.Close() })
	enginelaws.Run(t, docker, *image)
}

// notVersionGates has the fields set that are of type bool and do not depend on the Engine's
// version alone, but on its configuration or the kernel. HostsTOML needs files of the Engine and a
// registry: live.TestHostsTOML checks it on Engines that have it and on those that do not.
var notVersionGates = engine.Features{
	Snapshotter: true, LiveRestore: true, AppArmor: true, SELinux: true, Rootless: true, UserNSRemap: true, Premounts: true, LayerQuota: true,
	HostsTOML: true,
}

// Every feature that depends on the Engine's version must be tried on real Engines.
func TestEveryVersionFeatureHasAGate(t *testing.T) {
	var gates []string
	for _, g := range enginelaws.Gates() {
		gates = append(gates, g.Field)
	}
	for _, v := range []reflect.Value{reflect.ValueOf(notVersionGates), reflect.ValueOf(engine.Runtime{RuncShim: true})} {
		for i, f := range reflect.VisibleFields(v.Type()) {
			if f.Type.Kind() == reflect.Bool && slices.Contains(gates, f.Name) == v.Field(i).Bool() {
				t.Errorf("%s.%s: want it either among the gates or in notVersionGates", v.Type(), f.Name)
			}
		}
	}
}

func TestGatesOnFakeEngine(t *testing.T) {
	for _, api := range []string{"1.41", "1.42", "1.43", "1.44", "1.45", "1.47", "1.48", "1.50", "1.51"} {
		t.Run(api, func(t *testing.T) {
			e := enginetest.New(t, enginetest.API(api))
			e.AddImage(enginetest.Image{Files: map[string]string{"/etc/passwd": ""}}, "berth-test:1")
			checkGates(t, e.Host, "berth-test:1")
		})
	}
}

func TestGatesOnDocker(t *testing.T) {
	if *host == "" {
		t.Skip("needs a Docker Engine: -docker unix:///...")
	}
	checkGates(t, *host, *image)
}

// checkGates checks that the features of the Engine at host are those that work there.
func checkGates(t *testing.T, host, ref string) {
	t.Helper()
	e, err := engine.New(engine.Config{Host: host}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	go func() { _ = e.Run(ctx) }()
	conn, err := e.WaitConn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	features := reflect.ValueOf(conn.Features)
	for _, g := range enginelaws.Gates() {
		t.Run(g.Field, func(t *testing.T) {
			var reported bool
			if g.Field == "RecursiveReadOnly" {
				reported = conn.Features.Runtimes[conn.Features.DefaultRuntime].RecursiveReadOnly
			} else {
				reported = features.FieldByName(g.Field).Bool()
			}
			if expected := versions.GreaterThanOrEqualTo(conn.Features.API, g.Since); reported != expected {
				t.Errorf("API %s: reported %v, want %v: it exists since %s", conn.Features.API, reported, expected, g.Since)
			}
			if works := g.Works(t, conn.Client, ref); works != reported {
				t.Errorf("API %s: reported %v, but when used it is %v", conn.Features.API, reported, works)
			} else {
				t.Logf("Docker %s, API %s: %v", conn.Features.Version, conn.Features.API, works)
			}
		})
	}
}
