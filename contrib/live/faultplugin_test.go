package live

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A pluginFault is what the plugin "misbehave" does instead of its work, or after it.
type pluginFault string

const (
	pluginGarbage      pluginFault = "garbage"       // prints no JSON
	pluginGarbageAfter pluginFault = "garbage after" // the same after the work
	pluginTruncates    pluginFault = "half"          // prints half of its result
	pluginSilent       pluginFault = "silent"        // prints nothing after the work
	pluginNull         pluginFault = "null"          // prints null
	pluginNoIP         pluginFault = "no IP"         // prints a result without addresses
	pluginHuge         pluginFault = "huge"          // prints 200 MB
	pluginHang         pluginFault = "hang"          // waits before the work until the fault is taken back
	pluginHangAfter    pluginFault = "hang after"    // waits after the work
	pluginCrash        pluginFault = "crash"         // kills itself
	pluginCrashAfter   pluginFault = "crash after"   // kills itself after the work
	pluginFail         pluginFault = "fail"          // reports an error
	pluginFailAfter    pluginFault = "fail after"    // reports an error after the work
)

// ipamPlugin is the plugin that allocates addresses, which "misbehave" replaces as well.
const ipamPlugin = "host-local"

// pluginFaults is the file with the faults of the plugin, by command: ADD, DEL, and so on, or "IPAM ADD".
type pluginFaults map[string]pluginFault

// setPluginFaults sets the faults of the plugin, from its next call on.
func (n *node) setPluginFaults(o pluginFaults) {
	n.t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		n.t.Fatal(err)
	}
	temp := n.path("orders.new")
	if err := os.WriteFile(temp, text, 0o600); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(temp, n.path("orders")); err != nil {
		n.t.Fatal(err)
	}
}

// installFaultyPlugin configures the network of pods to use "misbehave", which calls the bridge plugin. It is called before berthd
// starts.
func (n *node) installFaultyPlugin() {
	t := n.t
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(n.path("bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"misbehave", ipamPlugin} {
		if err := os.Symlink(self, n.path("bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	conf := n.path("net.d", "10-live.conflist")
	text, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte(`{"type": "bridge",`), fmt.Appendf(nil, `{"type": "misbehave", "real": %q, "orders": %q,`, *cniBin+"/bridge", n.path("orders")), 1)
	if err := os.WriteFile(conf, text, 0o600); err != nil {
		t.Fatal(err)
	}
	n.flags = append(n.flags, "--cni-bin-dir", n.path("bin")+","+*cniBin)
	n.setPluginFaults(nil)
}

// faultyPlugin is the plugin "misbehave". It returns its exit code.
func faultyPlugin(command string) int {
	stdin, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 5
	}
	var conf struct{ Real, Orders string }
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return 6
	}
	if filepath.Base(os.Args[0]) == ipamPlugin { // called by the bridge plugin, with the same configuration
		command, conf.Real = "IPAM "+command, filepath.Join(filepath.Dir(conf.Real), ipamPlugin)
	}
	read := func() pluginFault {
		var o pluginFaults
		text, err := os.ReadFile(conf.Orders)
		if err == nil {
			err = json.Unmarshal(text, &o)
		}
		if err != nil {
			return ""
		}
		return o[command]
	}
	do := read()
	work := func() ([]byte, int) {
		cmd := exec.Command(conf.Real)
		cmd.Stdin = bytes.NewReader(bytes.Replace(stdin, []byte(`"misbehave"`), []byte(`"bridge"`), 1))
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return out, 1
		}
		return out, 0
	}
	die := func() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL); select {} }
	hang := func() {
		for read() == do {
			time.Sleep(50 * time.Millisecond)
		}
	}
	say := func(text string) { _, _ = os.Stdout.WriteString(text) }
	const failure = `{"code": 999, "msg": "a fault on purpose"}`
	switch do {
	case pluginHang:
		hang()
	case pluginCrash:
		die()
	case pluginFail:
		say(failure)
		return 1
	case pluginGarbage:
		say("address: 10.87.0.1\n")
		return 0
	case pluginNull:
		say("null")
		return 0
	case pluginNoIP:
		say(`{"cniVersion": "1.0.0"}`)
		return 0
	case pluginHuge:
		for range 200 {
			say(strings.Repeat("x", 1<<20))
		}
		return 0
	default: // a fault after the work
	}
	out, code := work()
	switch do {
	case pluginHangAfter:
		hang()
	case pluginCrashAfter:
		die()
	case pluginFailAfter:
		out, code = []byte(failure), 1
	case pluginGarbageAfter:
		out = []byte("done!\n")
	case pluginTruncates:
		out = out[:len(out)/2]
	case pluginSilent:
		out = nil
	default:
	}
	say(string(out))
	return code
}
