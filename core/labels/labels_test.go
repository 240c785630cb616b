package labels_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"berth/core/labels"
	"berth/core/names"
)

// inspected returns a container as Docker describes one that was created with set,
// labels, which override those of its image.
func inspected(name string, set, image map[string]string, host *container.HostConfig) container.InspectResponse {
	all := maps.Clone(image)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, set)
	return container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{ID: "c1", Name: name, HostConfig: host},
		Config:            &container.Config{Labels: all},
	}
}

// byBerth returns what berth sets in the HostConfig of each container.
func byBerth() *container.HostConfig { return &container.HostConfig{Init: new(bool), Runtime: "runc"} }

func config(t testing.TB, m any) string {
	t.Helper()
	text, err := json.Marshal(map[string]any{"metadata": m})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// hostile returns the labels of an image that sets all keys which have a meaning.
func hostile(kind, value string) map[string]string {
	set := map[string]string{
		"io.kubernetes.docker.type":       kind,
		"io.kubernetes.sandbox.id":        value,
		"io.kubernetes.container.logpath": value,
		"io.kubernetes.container.name":    value,
		"io.kubernetes.pod.uid":           value,
		"annotation." + value:             value,
		"annotation.note":                 value,
		"app":                             value,
	}
	for _, k := range []string{"config", "handler", "image", "image-ref", "labels", "annotations", "user", "stage", "look", "hold", "label.app"} {
		set["berth."+k] = value
	}
	return set
}

var compare = cmp.Options{cmpopts.EquateComparable(names.Premount{}), cmpopts.EquateEmpty()}

// FuzzRoundTrip holds a promise that the whole daemon depends on: Read returns what was
// encoded, for all labels that the image of the container can have.
func FuzzRoundTrip(f *testing.F) {
	for _, kind := range []string{"podsandbox", "container", "idle", ""} {
		f.Add("app", "web", "example.org/note", "hello", kind, "../../../etc")
		f.Add("annotation.x", "a label, not an annotation", "annotation.x", "", kind, "ABCDEFGHIJKLMNOP")
		f.Add("io.kubernetes.docker.type", "a liar", "", "", kind, `["a"]`)
		f.Add("io.kubernetes.container.name", "mine", "berth.config", "mine too", kind, `{"metadata":{"name":"x"}}`)
		f.Add("berth.label.annotation.x", "deeper", "berth.labels", "", kind, "note")
		f.Add("berth.stage", "../x", "berth.look", "", kind, "runc")
	}
	f.Fuzz(func(t *testing.T, key, value, note, text, imageKind, imageValue string) {
		if !validUTF8(key, note) {
			t.Skip("not UTF-8: JSON cannot contain it, and protobuf strings cannot either")
		}
		for _, want := range []labels.Set{
			{
				Kind: labels.Container, SandboxID: "5fa3", LogPath: "/var/log/pods/p/c/0.log", Config: config(t, map[string]any{"name": "c"}),
				Image: "busybox", ImageRef: "busybox@sha256:12", User: `{"uid":"1"}`, Premount: names.NewPremount(),
				Labels: map[string]string{key: value}, Annotations: map[string]string{note: text},
			},
			{Kind: labels.Container, Config: config(t, map[string]any{"name": "c"})}, // an empty value overrides the image's too
			{
				Kind: labels.Sandbox, Config: config(t, map[string]any{"name": "p", "namespace": "n", "uid": "u"}), Handler: "runc",
				Labels: map[string]string{key: value}, Annotations: map[string]string{note: text},
			},
			{Kind: labels.Sandbox, Config: config(t, map[string]any{"name": "p", "namespace": "n", "uid": "u"})},
		} {
			name := "/k8s_c_p_n_u_0"
			if want.Kind == labels.Sandbox {
				name = "/k8s_POD_p_n_u_0"
			}
			c := inspected(name, want.Encode(), hostile(imageKind, imageValue), byBerth())
			if want.User != "" {
				c.Config.User = "1:0"
			}
			got, err := labels.Read(c)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, compare); diff != "" {
				t.Errorf("round trip (-want +got):\n%s", diff)
			}
		}
	})
}

func validUTF8(words ...string) bool {
	for _, w := range words {
		if string([]rune(w)) != w {
			return false
		}
	}
	return true
}

func TestReadRefusesLabelsOfAPodUnderAnotherName(t *testing.T) {
	pod := labels.Set{Kind: labels.Sandbox, Config: config(t, map[string]any{"name": "p", "namespace": "n", "uid": "u", "attempt": 1})}
	ctr := labels.Set{Kind: labels.Container, SandboxID: "s", LogPath: "/etc/cron.d/x", Config: config(t, map[string]any{"name": "c", "attempt": 1})}
	for name, tt := range map[string]struct {
		name string
		set  labels.Set
		host *container.HostConfig
	}{
		"docker run of an image with a pod's labels":      {"/nervous_bell", pod, &container.HostConfig{}},
		"docker run of a committed container":             {"/nervous_bell", ctr, &container.HostConfig{}},
		"docker run --init=false":                         {"/nervous_bell", ctr, byBerth()},
		"no name":                                         {"", ctr, byBerth()},
		"compose v1":                                      {"/k8s_web_1", ctr, byBerth()},
		"a sandbox's labels under a container's name":     {"/k8s_c_p_n_u_1", pod, byBerth()},
		"the same, unmarked":                              {"/k8s_c_p_n_u_1", pod, &container.HostConfig{}},
		"a container's labels under a sandbox's name":     {"/k8s_POD_p_n_u_1", ctr, byBerth()},
		"the same, unmarked ":                             {"/k8s_POD_p_n_u_1", ctr, &container.HostConfig{}},
		"a sandbox's labels under another pod's name":     {"/k8s_POD_q_n_u_1", pod, byBerth()},
		"a sandbox's labels under another attempt's name": {"/k8s_POD_p_n_u_2", pod, byBerth()},
		"a container's labels under another's name":       {"/k8s_d_p_n_u_1", ctr, byBerth()},
		"a container's labels under another attempt":      {"/k8s_c_p_n_u_11", ctr, byBerth()},
		"a container's labels, another attempt's, suffix": {"/k8s_c_p_n_u_11_deadbeef", ctr, byBerth()},
		"config that is no JSON":                          {"/k8s_c_p_n_u_1", labels.Set{Kind: labels.Container, Config: "{"}, byBerth()},
		"config without metadata":                         {"/k8s_c_p_n_u_0", labels.Set{Kind: labels.Container, Config: "{}"}, byBerth()},
		"a name with only the first parts of a pod's":     {"/k8s_c", ctr, byBerth()},
		"a name with only the first parts, cri-dockerd":   {"/k8s_c_p", labels.Set{Kind: labels.Container}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := labels.Read(inspected(tt.name, nil, tt.set.Encode(), tt.host))
			if got.Kind != "" || err == nil {
				t.Errorf("kind %q, err %v; want none and an error", got.Kind, err)
			}
		})
	}
	for _, kind := range []string{"", "idle", "pod", "Container", "podsandbox "} {
		got, err := labels.Read(inspected("/k8s_c_p_n_u_1", nil, hostile(kind, "x"), byBerth()))
		if got.Kind != "" || err != nil {
			t.Errorf("kind %q: read as %q, %v; want none and no error", kind, got.Kind, err)
		}
	}
}

// Clients other than the kubelet can use underscores in names.
func TestReadAcceptsNamesWithSuffixesAndUnderscores(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  labels.Set
	}{
		{"/k8s_c_p_n_u_1", labels.Set{Kind: labels.Container, Config: config(t, map[string]any{"name": "c", "attempt": 1})}},
		{"/k8s_c_p_n_u_1_deadbeef", labels.Set{Kind: labels.Container, Config: config(t, map[string]any{"name": "c", "attempt": 1})}},
		{"/k8s_my_c_my_p_n_u_1_deadbeef", labels.Set{Kind: labels.Container, Config: config(t, map[string]any{"name": "my_c", "attempt": 1})}},
		{"/k8s_POD_my_p_n_u_0_deadbeef", labels.Set{Kind: labels.Sandbox, Config: config(t, map[string]any{"name": "my_p", "namespace": "n", "uid": "u"})}},
	} {
		if got, err := labels.Read(inspected(tt.name, tt.set.Encode(), nil, byBerth())); err != nil || got.Kind != tt.set.Kind || !got.CreatedByBerth() {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
		}
		row := container.Summary{Names: []string{"/other/alias", tt.name}, Labels: tt.set.Encode()}
		if got, err := labels.ReadSummary(row); err != nil || got.Kind != tt.set.Kind {
			t.Errorf("list entry %s: %+v, %v", tt.name, got, err)
		}
	}
}

// A container of cri-dockerd can have berth's labels from its image, and berth before 1.1
// wrote no label for an empty value.
func TestReadIgnoresImageLabelsOnEarlierContainers(t *testing.T) {
	image := hostile("podsandbox", "/etc/passwd")
	image["berth.config"] = config(t, map[string]any{"name": "c"})
	image["berth.labels"], image["berth.annotations"] = "[]", "[]"
	image["berth.stage"] = "../../../etc"
	written := map[string]string{
		"io.kubernetes.docker.type": "container", "io.kubernetes.sandbox.id": "s", "io.kubernetes.container.logpath": "/var/log/pods/p/c/0.log",
	}
	got, err := labels.Read(inspected("/k8s_c_p_n_u_0", written, image, &container.HostConfig{}))
	if err != nil {
		t.Fatal(err)
	}
	if got.CreatedByBerth() || got.Handler+got.Image+got.ImageRef+got.User != "" || !got.Premount.IsZero() || got.SandboxID != "s" || got.LogPath != "/var/log/pods/p/c/0.log" {
		t.Errorf("container of cri-dockerd: %+v", got)
	}

	maps.Copy(written, map[string]string{
		"berth.config": config(t, map[string]any{"name": "c"}), "berth.labels": "[]", "berth.annotations": "[]", "berth.image": "app", "berth.image-ref": "app@sha256:1",
	})
	got, err = labels.Read(inspected("/k8s_c_p_n_u_0", written, image, byBerth()))
	if err != nil {
		t.Fatal(err)
	}
	if !got.CreatedByBerth() || !got.Premount.IsZero() || got.Handler != "" || got.Image != "app" || len(got.Labels)+len(got.Annotations) > 0 {
		t.Errorf("container of berth before 1.1: %+v", got)
	}

	for user, want := range map[string]string{
		"": "", "app": "", "app:0": "", "1000": `{"uid":"1000","gid":"6"}`, "1000:6": `{"uid":"1000","gid":"6"}`, "1000:7": "", "1001": "", "1000:": "", "01000": "",
	} {
		c := inspected("/k8s_c_p_n_u_0", written, image, byBerth())
		c.Config.User, c.Config.Labels["berth.user"] = user, `{"uid":"1000","gid":"6"}`
		if got, err := labels.Read(c); err != nil || got.User != want {
			t.Errorf("user %q, label 1000:6: read %q, %v; want %q", user, got.User, err, want)
		}
	}

	pod := map[string]string{
		"io.kubernetes.docker.type": "podsandbox", "io.kubernetes.container.name": "POD",
		"berth.config": config(t, map[string]any{"name": "p", "namespace": "n", "uid": "u"}), "berth.labels": "[]", "berth.annotations": "[]",
	}
	got, err = labels.Read(inspected("/k8s_POD_p_n_u_0", pod, image, byBerth()))
	if err != nil {
		t.Fatal(err)
	}
	if got.Handler != "" || got.LogPath != "" || got.SandboxID != "" || !got.Premount.IsZero() {
		t.Errorf("sandbox of berth before 1.1: %+v", got)
	}
}

func TestReadDecodesLabelsOfCriDockerd(t *testing.T) {
	got, err := labels.Read(inspected("/k8s_POD_web_d_u_0", map[string]string{
		"io.kubernetes.docker.type":               "podsandbox",
		"io.kubernetes.container.name":            "POD",
		"io.kubernetes.pod.name":                  "web",
		"annotation.kubernetes.io/config.source":  "api",
		"annotation.io.kubernetes.container.hash": "12",
	}, nil, &container.HostConfig{}))
	want := labels.Set{
		Kind:   labels.Sandbox,
		Labels: map[string]string{"io.kubernetes.pod.name": "web"},
		Annotations: map[string]string{
			"kubernetes.io/config.source":  "api",
			"io.kubernetes.container.hash": "12",
		},
	}
	if diff := cmp.Diff(want, got, compare); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestReadFailsOnIncompleteInspectResult(t *testing.T) {
	for _, c := range []container.InspectResponse{
		{}, {Config: &container.Config{}}, {ContainerJSONBase: &container.ContainerJSONBase{}},
	} {
		if got, err := labels.Read(c); err == nil {
			t.Errorf("read as %+v", got)
		}
	}
}

// Helpers have the label by which users exclude pods from docker container prune.
func TestHelperHasKindLabelButBelongsToNoPod(t *testing.T) {
	set := labels.Helper("berth.hold", "x")
	if _, ok := set[labels.Set{}.Filter()[0]]; !ok || set["berth.hold"] != "x" {
		t.Errorf("labels %v", set)
	}
	if got, err := labels.Read(inspected("/berth_hold_x", set, nil, byBerth())); got.Kind != "" || err != nil {
		t.Errorf("read as %+v, %v", got, err)
	}
}

// The handler of a pod that runs with a containerd shim is not the name of its runtime.
func TestReadKeepsHandlersOfShims(t *testing.T) {
	for runtime, want := range map[string]string{"runc": "", "gvisor": "gvisor", "io.containerd.runsc.v1": "gvisor", "io.containerd.runsc": ""} {
		written := labels.Set{Kind: labels.Sandbox, Config: config(t, map[string]any{"name": "p", "namespace": "n", "uid": "u"}), Handler: "gvisor"}.Encode()
		host := byBerth()
		host.Runtime = runtime
		if got, err := labels.Read(inspected("/k8s_POD_p_n_u_0", written, nil, host)); err != nil || got.Handler != want {
			t.Errorf("runtime %s: handler %q, %v; want %q", runtime, got.Handler, err, want)
		}
	}
}

func TestPluginsFitIntoTheLabel(t *testing.T) {
	label := func(plugins ...string) string {
		return labels.Set{Kind: labels.Container, Plugins: plugins}.Encode()["berth.nri"]
	}
	if got := label("10-a", "20-b"); got != "10-a,20-b" {
		t.Errorf("%q", got)
	}
	if got := label(); got != "" {
		t.Errorf("%q", got)
	}
	var many []string
	for i := range 2000 {
		many = append(many, fmt.Sprintf("%02d-plugin", i))
	}
	if got := label(many...); len(got) > 4096 || !strings.HasSuffix(got, "-plugin,...") {
		t.Errorf("%d bytes, ending in %q", len(got), got[len(got)-20:])
	}
	if got := label(strings.Repeat("x", 5000)); got != "..." {
		t.Errorf("%d bytes", len(got))
	}
}
