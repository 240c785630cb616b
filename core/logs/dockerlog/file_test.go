package dockerlog

import (
	"testing"

	"github.com/docker/docker/api/types/container"
)

func TestFileOfInspected(t *testing.T) {
	config := func(driver, compress string) container.LogConfig {
		c := container.LogConfig{Type: driver, Config: map[string]string{"max-size": "32m"}}
		if compress != "" {
			c.Config["compress"] = compress
		}
		return c
	}
	local := File{Local, "/docker/containers/c1/local-logs/container.log"}
	for name, tt := range map[string]struct {
		config container.LogConfig
		path   string // LogPath
		want   File
	}{
		"json-file":                    {config("json-file", "false"), "/docker/containers/c1/c1-json.log", File{JSONFile, "/docker/containers/c1/c1-json.log"}},
		"json-file, not started":       {config("json-file", "false"), "", File{}},
		"local":                        {config("local", "false"), "", local},
		"local, false in another form": {config("local", "0"), "", local},
		"local, compressed by default": {config("local", ""), "", File{}},
		"local, compressed":            {config("local", "true"), "", File{}},
		"local, not a boolean":         {config("local", "no"), "", File{}},
		"another driver":               {config("journald", "false"), "", File{}},
		"none":                         {container.LogConfig{}, "", File{}},
	} {
		result := container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{
			ID: "c1", LogPath: tt.path, HostConfig: &container.HostConfig{LogConfig: tt.config},
		}}
		if got := FileOfInspected("/docker", result); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", name, got, tt.want)
		}
	}
	if got := FileOfInspected("/docker", container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{ID: "c1"}}); got != (File{}) {
		t.Errorf("of a list entry: got %+v", got)
	}
	if got, want := FileOf("/docker", "c1", config("json-file", "")), (File{JSONFile, "/docker/containers/c1/c1-json.log"}); got != want {
		t.Errorf("of a new container: got %+v, want %+v", got, want)
	}
}
