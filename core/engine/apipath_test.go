package engine

import "testing"

func TestAPIPathReplacesNames(t *testing.T) {
	for path, want := range map[string]string{
		"/_ping":                                    "/_ping",
		"/v1.41/containers/json":                    "/containers/json",
		"/v1.41/containers/create":                  "/containers/create",
		"/v1.41/containers/0123/json":               "/containers/{id}/json",
		"/v1.41/containers/0123":                    "/containers/{id}",
		"/v1.52/containers/k8s_POD_json/wait":       "/containers/{id}/wait",
		"/v1.41/exec/0123/start":                    "/exec/{id}/start",
		"/v1.41/images/json":                        "/images/json",
		"/v1.41/images/create":                      "/images/create",
		"/v1.41/images/example.org:5000/a/b:1/json": "/images/{id}/json",
		"/v1.41/images/example.org/a/b":             "/images/{id}",
		"/v1.41/system/df":                          "/system/df",
		"/v1.41/info":                               "/info",
		"/v1.41/containers/a/surprise":              "/containers/{id}",
		"/v1.41/surprise/x":                         "other",
		"/":                                         "other",
		"":                                          "other",
	} {
		if got := apiPath(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}
