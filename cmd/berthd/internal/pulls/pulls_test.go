package pulls

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"berth/core/image/pullprogress"
)

// serve serves responses at a socket and returns its path.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "debug.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	server.Start()
	t.Cleanup(server.Close)
	return path
}

var running = pullprogress.List{Pulls: []pullprogress.Status{
	{
		Image: "r.test/a:1", Attempt: 1, Pods: []pullprogress.Pod{{Namespace: "ns", Name: "web"}, {Namespace: "ns", Name: "db"}}, Callers: 2, State: pullprogress.Downloading,
		Bytes: 120 << 20, TotalBytes: 800 << 20, LayersDone: 3, Layers: 7, BytesPerSecond: 12 << 20, ElapsedSeconds: 120.7,
	},
	{Image: "r.test/\x1b[2Jb:1", Source: "mirror.test/b:1", Attempt: 1, State: pullprogress.Waiting},
}, Omitted: 4}

func TestTable(t *testing.T) {
	socket := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/pulls" {
			http.NotFound(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(running)
	})
	var out bytes.Buffer
	if err := Show(t.Context(), Config{Socket: socket, Out: &out}); err != nil {
		t.Fatal(err)
	}
	want := `IMAGE                                 PROGRESS                     STATE        LAYERS  SIZE            RATE       ELAPSED  POD
r.test/a:1                            [###-----------------]  15%  downloading  3/7     120 of 800 MiB  12 MiB/s   2m0s     ns/web and 1 more
r.test/?[2Jb:1 from mirror.test/b:1   [--------------------]   0%  waiting      0/0     size unknown      0 KiB/s    0s       -
and 4 more
`
	if got := out.String(); strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(want), " ") {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	out.Reset()
	if err := Show(t.Context(), Config{Socket: socket, JSON: true, Out: &out}); err != nil {
		t.Fatal(err)
	}
	var list []pullprogress.Status
	if err := json.Unmarshal(out.Bytes(), &list); err != nil || len(list) != 2 || list[0].LayersDone != 3 {
		t.Errorf("%v, %s", err, &out)
	}
}

func TestErrors(t *testing.T) {
	for name, tt := range map[string]struct{ socket, want string }{
		"no socket":       {filepath.Join(t.TempDir(), "none.sock"), "berthd is not running"},
		"another server":  {serve(t, http.NotFound), "responds with 404 Not Found: is it an older berthd?"},
		"not JSON":        {serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("x")) }), "response of berthd at"},
		"a broken server": {serve(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), "does not respond at"},
	} {
		err := Show(t.Context(), Config{Socket: tt.socket, Out: &bytes.Buffer{}})
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q in one line", name, err, tt.want)
		}
	}
}

func TestLinesFitTheTerminal(t *testing.T) {
	got := fit([]string{"first line", "second", "third", "fourth"}, 3, 6)
	if text := strings.Join(got, "|"); text != "first |second|and 2 " {
		t.Errorf("%q", text)
	}
}
