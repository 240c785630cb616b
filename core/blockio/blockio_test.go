package blockio

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/blkiodev"
	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	got, err := parse([]byte(`
Classes:
  none: []
  light:
  - Weight: 20
  slow:
  - devices: ["/dev/vd[a-z]", /dev/sda]
    throttleReadBps: 50M
    ThrottleWriteIOPS: 1k
    weight: 400
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Classes{"none": {}, "light": {{weight: 20}}, "slow": {{devices: []string{"/dev/vd[a-z]", "/dev/sda"}, readBps: 50e6, writeIOPS: 1000, weight: 400}}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(parameters{})); diff != "" {
		t.Error(diff)
	}
	for text, want := range map[string]string{
		"classes: 1":                              "cannot unmarshal",
		"options: {}":                             "must be classes",
		"classes: {a: [{weight: 5}]}":             "class a: weight \"5\": must be a number from 10 to 1000",
		"classes: {a: [{devices: [vda]}]}":        "must be an absolute path",
		"classes: {a: [{devices: [\"/dev/[\"]}]}": "must be an absolute path",
		"classes: {a: [{throttleReadBps: 1M}]}":   "limits need devices",
		"classes: {a: [{throttleReadBps: fast}]}": "must be a quantity",
		"classes: {a: [{readBps: 1M}]}":           "must be devices, weight",
	} {
		if _, err := parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if c, err := parse(nil); err != nil || len(c) != 0 {
		t.Errorf("empty file: %v, %v", c, err)
	}
}

func TestApply(t *testing.T) {
	var r container.Resources
	parameters{weight: 400, readBps: 7, writeBps: 8}.apply("/dev/a", &r)
	want := container.Resources{
		BlkioWeightDevice: []*blkiodev.WeightDevice{{Path: "/dev/a", Weight: 400}}, BlkioDeviceReadBps: []*blkiodev.ThrottleDevice{{Path: "/dev/a", Rate: 7}},
		BlkioDeviceWriteBps: []*blkiodev.ThrottleDevice{{Path: "/dev/a", Rate: 8}},
	}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Error(diff)
	}
	classes := Classes{"light": {{weight: 20}}, "absent": {{devices: []string{"/dev/none*"}, readBps: 1}}, "file": {{devices: []string{"/dev/null"}, readBps: 1}}}
	if err := classes.Apply("light", &r); err != nil || r.BlkioWeight != 20 {
		t.Errorf("%v, weight %d", err, r.BlkioWeight)
	}
	for class, want := range map[string]string{"absent": "no block device /dev/none*", "file": "no block device /dev/null", "other": "no such class"} {
		if err := classes.Apply(class, &r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", class, err, want)
		}
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "blockio.yaml")
	if c, err := Load(""); c != nil || err != nil {
		t.Errorf("without a file: %v, %v", c, err)
	}
	if err := os.WriteFile(path, []byte("classes: {a: [{weight: 20}]}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(path); err != nil || len(c["a"]) != 1 {
		t.Errorf("%v, %v", c, err)
	}
	if _, err := Load(path + ".none"); err == nil {
		t.Error("a file that does not exist is no error")
	}
}
