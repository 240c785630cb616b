package cache_test

import (
	"fmt"
	"testing"

	"berth/core/labels"
	"berth/core/names"
)

// The log directory is derived from what no image can set: the sandbox's config or, without
// one, the container's name. Docker lists containers before their sandbox, which is older.
func TestLogDirectoryIsNotTakenFromTheImage(t *testing.T) {
	t.Parallel()
	want := map[string]string{}
	n := newNode(t, func(n *node) {
		name := func(c string) names.Name { return names.Name{Container: c, Pod: "web", Namespace: "ns", UID: "u"} }
		byBerth := n.make(name(names.Pod), labels.Set{Kind: labels.Sandbox, Config: `{"metadata":{"name":"web","namespace":"ns","uid":"u"},"log_directory":"/logs/web"}`})
		for i := range 20 {
			c := fmt.Sprintf("c%d", i)
			want[n.make(name(c), labels.Set{
				Kind: labels.Container, SandboxID: byBerth, Config: fmt.Sprintf(`{"metadata":{"name":%q}}`, c), LogPath: "/logs/web/0.log",
			})] = "/logs/web"
		}
		byCRIDockerd := names.Name{Container: names.Pod, Pod: "old", Namespace: "ns", UID: "o"}
		old := n.make(byCRIDockerd, labels.Set{Kind: labels.Sandbox})
		byCRIDockerd.Container = "c"
		for path, dir := range map[string]string{
			"/var/log/pods/ns_old_o/c/0.log": "/var/log/pods/ns_old_o",
			"/root/.bashrc":                  "",
			"/var/log/pods/ns_web_u/c/0.log": "", // another pod's
		} {
			byCRIDockerd.Attempt++
			want[n.make(byCRIDockerd, labels.Set{Kind: labels.Container, SandboxID: old, LogPath: path})] = dir
			byCRIDockerd.Attempt++
			want[n.make(byCRIDockerd, labels.Set{Kind: labels.Container, SandboxID: "none", LogPath: path})] = dir
		}
	})
	if err := n.cache.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	for id, dir := range want {
		c, err := n.cache.Container(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if c.LogDirectory != dir {
			t.Errorf("log %s of %s in %s must be below %q, want %q", c.Status.GetLogPath(), c.Name, c.Row.GetPodSandboxId(), c.LogDirectory, dir)
		}
	}
}
