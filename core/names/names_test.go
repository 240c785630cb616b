package names_test

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"berth/core/names"
)

func FuzzRoundTrip(f *testing.F) {
	f.Add("POD", "web-0", "default", "6d6b2d24-1a6f", uint32(0), "")
	f.Add("nginx", "web-0", "kube-system", "u", uint32(4294967295), "3f2a90bc")
	f.Fuzz(func(t *testing.T, container, pod, namespace, uid string, attempt uint32, suffix string) {
		if strings.Contains(container+pod+namespace+uid+suffix, "_") {
			t.Skip("Kubernetes has no underscores")
		}
		want := names.Name{Container: container, Pod: pod, Namespace: namespace, UID: uid, Attempt: attempt, Suffix: suffix}
		for _, slash := range []string{"", "/"} {
			if got, err := names.Parse(slash + want.String()); err != nil || got != want {
				t.Errorf("Parse(%q) = %+v, %v", slash+want.String(), got, err)
			}
		}
	})
}

func TestParseRefusesOtherSchemes(t *testing.T) {
	for _, s := range []string{"", "/redis", "k8s_a_b_c_d", "k8s_a_b_c_d_x", "k8s_a_b_c_d_-1", "k8s_a_b_c_d_1_e_f", "x_a_b_c_d_1"} {
		if n, err := names.Parse(s); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Parse(%q) = %+v, %v; want an invalid argument", s, n, err)
		}
	}
}

func TestPlainRemovesSuffix(t *testing.T) {
	for name, want := range map[string]string{
		"k8s_POD_web_ns_u_0":          "k8s_POD_web_ns_u_0",
		"k8s_POD_web_ns_u_0_0123abcd": "k8s_POD_web_ns_u_0",
		"compose_web_1":               "compose_web_1",
	} {
		if got := names.WithoutSuffix(name); got != want {
			t.Errorf("Plain(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestParseStageRefusesPaths(t *testing.T) {
	name := names.NewPremount()
	if got, err := names.ParsePremount(name.String()); err != nil || got != name || got.IsZero() {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := names.ParsePremount(""); err != nil || !got.IsZero() {
		t.Errorf("empty text: %v, %v", got, err)
	}
	for _, s := range []string{
		".", "..", "/", "../../../etc", "/etc", "x", "ABCDEFGHIJKLMNOP/..", "../ABCDEFGHIJKLMNOP", "ABCDEFGHIJKLMNO", "ABCDEFGHIJKLMNOPQ",
		"abcdefghijklmnop", "ABCDEFGHIJKLMNO1", "ABCDEFGHIJKLMNO\x00", "ABCDEFGHIJKLMNOP\n", " ABCDEFGHIJKLMNOP", "ABCDEFGHIJKLMNO.",
	} {
		if got, err := names.ParsePremount(s); !errdefs.IsInvalidArgument(err) || !got.IsZero() {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
}

func TestIsAcceptsAnySuffix(t *testing.T) {
	n := names.Name{Container: "c", Pod: "p", Namespace: "n", UID: "u", Attempt: 1}
	for s, want := range map[string]bool{
		"/k8s_c_p_n_u_1": true, "k8s_c_p_n_u_1": true, "/k8s_c_p_n_u_1_deadbeef": true,
		"/k8s_c_p_n_u_11": false, "/k8s_c_p_n_u_1_": false, "/k8s_c_p_n_u_1_a_b": false, "/k8s_c_p_n_u": false, "": false, "/x/k8s_c_p_n_u_1": false,
	} {
		if got := n.Is(s); got != want {
			t.Errorf("%q is %v: %v", s, n, got)
		}
		if got := names.IsContainer(s, "c", 1); got != want && s != "/k8s_c_p_n_u_1_a_b" {
			t.Errorf("%q is a container c, attempt 1: %v", s, got)
		}
	}
}

// The kubelet names the log directory of a pod this way since Kubernetes 1.14. An image
// cannot choose that name.
func TestLogDirectoryIsFoundByNameOfPod(t *testing.T) {
	n := names.Name{Container: "web", Pod: "pod", Namespace: "ns", UID: "uid", Attempt: 2}
	for path, want := range map[string]string{
		"/var/log/pods/ns_pod_uid/web/2.log":     "/var/log/pods/ns_pod_uid",
		"/data/ns_pod_uid/web/2.log":             "/data/ns_pod_uid",
		"/ns_pod_uid/0.log":                      "/ns_pod_uid",
		"/a/ns_pod_uid/b/ns_pod_uid/web/2.log":   "/a/ns_pod_uid/b/ns_pod_uid",
		"/var/log/pods/ns_pod_other/web/2.log":   "",
		"/var/log/pods/ns_pod_uid.old/web/2.log": "",
		"/var/log/pods/x-ns_pod_uid/web/2.log":   "",
		"/var/log/pods/ns_pod_uid":               "",
		"/root/.bashrc":                          "",
		"ns_pod_uid/web/2.log":                   "",
		"":                                       "",
	} {
		if got := n.LogDirectory(path); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
	if got := (names.Name{}).LogDirectory("/var/log/__/0.log"); got != "" {
		t.Errorf("zero name: %q", got)
	}
}
