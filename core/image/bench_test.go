package image_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"

	"berth/core/engine/enginetest"
	"berth/core/image"
)

// sources are where images are answered from, and whether that is memory.
var sources = map[string]bool{"docker": false, "memory": true}

// newBenchmarkService returns a Service on an Engine with 50 images.
func newBenchmarkService(b *testing.B, fromMemory bool) *image.Service {
	e := enginetest.New(b)
	for i := range 50 {
		name := fmt.Sprintf("registry.example.com/team/app%d", i)
		e.AddImage(enginetest.Image{Config: container.Config{User: "1000"}}, name+":1", fmt.Sprintf("%s@sha256:%s%02d", name, strings.Repeat("a", 62), i))
	}
	images := newService(b, e, image.Config{Pin: keep, PauseImage: func() string { return "registry.k8s.io/pause:3.10" }})
	if fromMemory {
		enginetest.Background(b, images.RunCache)
		untilFromMemory(b, images, e)
	}
	return images
}

func BenchmarkList(b *testing.B) {
	for name, fromMemory := range sources {
		b.Run(name, func(b *testing.B) {
			images := newBenchmarkService(b, fromMemory)
			b.ReportAllocs()
			for b.Loop() {
				if list, err := images.List(b.Context(), nil); err != nil || len(list) != 50 {
					b.Fatal(len(list), err)
				}
			}
		})
	}
}

func BenchmarkStatus(b *testing.B) {
	for name, fromMemory := range sources {
		b.Run(name, func(b *testing.B) {
			images := newBenchmarkService(b, fromMemory)
			b.ReportAllocs()
			for b.Loop() {
				if found, _, err := images.Status(b.Context(), "registry.example.com/team/app7:1", false); err != nil || found == nil {
					b.Fatal(found, err)
				}
			}
		})
	}
}

func BenchmarkResolve(b *testing.B) {
	for name, fromMemory := range sources {
		b.Run(name, func(b *testing.B) {
			images := newBenchmarkService(b, fromMemory)
			b.ReportAllocs()
			for b.Loop() {
				if found, err := images.Resolve(b.Context(), "registry.example.com/team/app7:1", "registry.example.com/team/app7:1"); err != nil || found.User != "1000" {
					b.Fatal(found, err)
				}
			}
		})
	}
}
