package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"berth/core/testmain"
)

// The scripts run this test binary under the names of the programs.
func TestMain(m *testing.M) {
	testscript.Main(testmain.M{M: m}, map[string]func(){
		"berthd":      berthdMain,
		"cri-dockerd": berthdMain,
		"activate":    activateMain,
		"as-nobody":   noServerMain,
		"dockerd":     dockerdMain,
	})
}

// berthdMain is main with the default configuration file below $WORK.
func berthdMain() {
	file := filepath.Join(os.Getenv("WORK"), "etc", "config.yaml")
	p := program{name: programName(os.Args[0]), args: os.Args[1:], configFile: file, stdout: os.Stdout, stderr: os.Stderr}
	os.Exit(p.main(context.Background()))
}

// noServerMain is berthd as the user nobody. The process changes its own user: nobody may not be able to
// run the test binary.
func noServerMain() {
	if err := errors.Join(unix.Setgroups(nil), unix.Setresgid(65534, 65534, 65534), unix.Setresuid(65534, 65534, 65534)); err != nil {
		fmt.Fprintln(os.Stderr, "as-nobody:", err)
		os.Exit(exitUsage)
	}
	berthdMain()
}

// waitTimeout is generous: the machine may be busy.
const waitTimeout = 20 * time.Second

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			// The race detector sleeps a second at exit.
			e.Setenv("GORACE", "atexit_sleep_ms=0")
			// Paths of a daemon of this script only, which finds no Docker.
			text := fmt.Sprintf("docker-endpoint: unix://%[1]s/no-docker.sock\ncri-dockerd-root-directory: %[1]s/root\n"+
				"run-dir: %[1]s/run\ncni-conf-dir: %[1]s/net.d\ncni-cache-dir: %[1]s/cni-cache\n", e.WorkDir)
			if err := os.Mkdir(filepath.Join(e.WorkDir, "own"), 0o755); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(e.WorkDir, "own", "config.yaml"), []byte(text), 0o644)
		},
		Condition: func(name string) (bool, error) {
			if name != "root" {
				return false, fmt.Errorf("unknown condition %q", name)
			}
			return os.Geteuid() == 0, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ends":           wantExit,
			"docker-engine":  serveDocker,
			"await-docker":   awaitDocker,
			"await-healthy":  awaitHealthy,
			"await":          awaitSocket,
			"await-text":     awaitText,
			"signal":         sendSignal,
			"leave-socket":   leaveSocket,
			"notify-socket":  makeNotifySocket,
			"await-notified": awaitNotified,
			"mode":           wantMode,
			"free-port":      freePort,
			"http":           awaitHTTP,
		},
	})
}

// ends CODE PROGRAM [ARG...] wants that exit code. With a code other than 0, stdout must be
// empty and stderr one line that begins with the name of the program.
func wantExit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: ends CODE PROGRAM [ARG...]")
	}
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		code = exit.ExitCode()
	}
	stdout, stderr := ts.ReadFile("stdout"), ts.ReadFile("stderr")
	if got := fmt.Sprint(code); got != args[0] {
		ts.Fatalf("exit code %s, want %s\n%s", got, args[0], stderr)
	}
	if code == 0 {
		return
	}
	if stdout != "" {
		ts.Fatalf("stdout: %q", stdout)
	}
	if !strings.HasPrefix(stderr, args[1]+": ") || strings.Count(stderr, "\n") != 1 {
		ts.Fatalf("stderr is not one line that begins with %s: %q", args[1], stderr)
	}
}

// await SOCKET waits until a gRPC server serves there: it is the server that sends the first bytes.
func awaitSocket(ts *testscript.TestScript, neg bool, args []string) {
	for deadline := time.Now().Add(waitTimeout); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if serves(ts.MkAbs(args[0])) {
			return
		}
	}
	ts.Fatalf("no server at %s after %v", args[0], waitTimeout)
}

func serves(path string) bool {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return false
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return false
	}
	_, err = conn.Read(make([]byte, 1))
	return err == nil
}

// await-text FILE TEXT waits until the file contains the text.
func awaitText(ts *testscript.TestScript, neg bool, args []string) {
	for deadline := time.Now().Add(waitTimeout); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if text, err := os.ReadFile(ts.MkAbs(args[0])); err == nil && strings.Contains(string(text), args[1]) {
			return
		}
	}
	ts.Fatalf("not in %s after %v: %s\n%s", args[0], waitTimeout, args[1], ts.ReadFile(args[0]))
}

// signal NAME sends the signal to all background commands.
func sendSignal(ts *testscript.TestScript, neg bool, args []string) {
	sig := unix.SignalNum("SIG" + args[0])
	if sig == 0 {
		ts.Fatalf("no signal %s", args[0])
	}
	for _, cmd := range ts.BackgroundCmds() {
		ts.Check(cmd.Process.Signal(sig))
	}
}

// leave-socket PATH leaves a socket that no process serves, as a killed daemon does.
func leaveSocket(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: ts.MkAbs(args[0])})
	ts.Check(err)
	l.SetUnlinkOnClose(false)
	ts.Check(l.Close())
}

// mode FILE BITS wants those permissions, in octal.
func wantMode(ts *testscript.TestScript, neg bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[1] {
		ts.Fatalf("mode of %s is %s, want %s", args[0], got, args[1])
	}
}

// free-port NAME sets the environment variable to a free port of the loopback.
func freePort(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(errors.Join(err, l.Close()))
	ts.Setenv(args[0], port)
}

// http CODE URL [TEXT...] waits until the response has that code and contains the texts.
func awaitHTTP(ts *testscript.TestScript, neg bool, args []string) {
	last := ""
	for deadline := time.Now().Add(waitTimeout); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		resp, err := http.Get(args[1])
		if err != nil {
			last = err.Error()
			continue
		}
		body, err := io.ReadAll(resp.Body)
		ts.Check(errors.Join(err, resp.Body.Close()))
		last = fmt.Sprintf("%d %s", resp.StatusCode, body)
		if fmt.Sprint(resp.StatusCode) == args[0] && !slices.ContainsFunc(args[2:], func(text string) bool { return !strings.Contains(string(body), text) }) {
			return
		}
	}
	ts.Fatalf("%s: %s", args[1], last)
}

// notify-socket opens a socket for sd_notify(3), as systemd does for a unit of Type=notify, and sets NOTIFY_SOCKET.
func makeNotifySocket(ts *testscript.TestScript, neg bool, args []string) {
	path := ts.MkAbs("notify.sock")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path})
	ts.Check(err)
	ts.Defer(func() { conn.Close() })
	states := make(chan string, 100)
	go func() {
		defer close(states)
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			for line := range strings.Lines(string(buf[:n])) {
				states <- strings.TrimSpace(line)
			}
		}
	}()
	notified[ts.MkAbs(".")] = states
	ts.Setenv("NOTIFY_SOCKET", path)
}

// notified has the received states by the directory of the script. Only notify.txtar uses it, so it
// needs no mutex.
var notified = map[string]<-chan string{}

// await-notified STATE waits until the daemon has sent that state.
func awaitNotified(ts *testscript.TestScript, neg bool, args []string) {
	limit := time.After(waitTimeout)
	for {
		select {
		case got := <-notified[ts.MkAbs(".")]:
			if got == args[0] {
				return
			}
			ts.Logf("notified %s", got)
		case <-limit:
			ts.Fatalf("no notification %s after %v", args[0], waitTimeout)
		}
	}
}

// activateMain is activate [NAME=ADDRESS...] -- PROGRAM [ARG...]: it passes sockets to the program as systemd does for a
// socket unit, see sd_listen_fds(3). An address with a slash is a path.
func activateMain() {
	code, err := runActivated(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "activate:", err)
	}
	os.Exit(code)
}

func runActivated(args []string) (int, error) {
	var names []string
	var files []*os.File
	for ; len(args) > 0 && args[0] != "--"; args = args[1:] {
		name, addr, _ := strings.Cut(args[0], "=")
		network := "tcp"
		if strings.Contains(addr, "/") {
			network = "unix"
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			return 1, err
		}
		f, err := l.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			return 1, err
		}
		names, files = append(names, name), append(files, f)
	}
	// LISTEN_PID must be the PID of the program: the shell keeps it over exec.
	cmd := exec.Command("/bin/sh", append([]string{"-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, args[1:]...)...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	cmd.ExtraFiles = files
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	signals := make(chan os.Signal, 10)
	signal.Notify(signals, unix.SIGTERM, unix.SIGHUP, unix.SIGINT)
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	go func() {
		for s := range signals {
			cmd.Process.Signal(s)
		}
	}()
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}
