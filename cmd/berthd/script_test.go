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

// The scripts call us as the program that we are.
func TestMain(m *testing.M) {
	testscript.Main(testmain.M{M: m}, map[string]func(){
		"berthd":      enter,
		"cri-dockerd": enter,
		"activate":    activate,
		"as-nobody":   asNobody,
	})
}

// enter is main, but for where it looks for a configuration.
func enter() {
	file := filepath.Join(os.Getenv("WORK"), "etc", "config.yaml")
	os.Exit(start(context.Background(), call{name: program(os.Args[0]), args: os.Args[1:], file: file, out: os.Stdout}, os.Stderr))
}

// asNobody is berthd as a user who may do nothing. The user is changed here, for
// others may not even reach the program.
func asNobody() {
	if err := errors.Join(unix.Setgroups(nil), unix.Setresgid(65534, 65534, 65534), unix.Setresuid(65534, 65534, 65534)); err != nil {
		fmt.Fprintln(os.Stderr, "as-nobody:", err)
		os.Exit(exitMisused)
	}
	enter()
}

// The limits are generous: the machine may be busy.
const patience = 20 * time.Second

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			// With the race detector each call would end a second late.
			e.Setenv("GORACE", "atexit_sleep_ms=0")
			// Paths of a daemon that disturbs nobody and finds no Docker.
			own := fmt.Sprintf("docker-endpoint: unix://%[1]s/no-docker.sock\ncri-dockerd-root-directory: %[1]s/root\n"+
				"run-dir: %[1]s/run\ncni-conf-dir: %[1]s/net.d\ncni-cache-dir: %[1]s/cni-cache\n", e.WorkDir)
			if err := os.Mkdir(filepath.Join(e.WorkDir, "own"), 0o755); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(e.WorkDir, "own", "config.yaml"), []byte(own), 0o644)
		},
		Condition: func(what string) (bool, error) {
			if what != "root" {
				return false, fmt.Errorf("no condition %q", what)
			}
			return os.Geteuid() == 0, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ends":           ends,
			"docker-engine":  dockerEngine,
			"await-healthy":  awaitHealthy,
			"await":          await,
			"await-text":     awaitText,
			"signal":         sendSignal,
			"leave-socket":   leaveSocket,
			"notify-socket":  notifySocket,
			"await-notified": awaitNotified,
			"mode":           mode,
			"free-port":      freePort,
			"http":           askHTTP,
		},
	})
}

// ends CODE PROGRAM [ARG...] wants that exit code. With a code other than 0
// nothing may be on stdout and one line on stderr, that names the program.
func ends(ts *testscript.TestScript, neg bool, args []string) {
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
		ts.Fatalf("ended with %s, want %s\n%s", got, args[0], stderr)
	}
	if code == 0 {
		return
	}
	if stdout != "" {
		ts.Fatalf("wrote to stdout: %q", stdout)
	}
	if !strings.HasPrefix(stderr, args[1]+": ") || strings.Count(stderr, "\n") != 1 {
		ts.Fatalf("stderr is not one line of %s's: %q", args[1], stderr)
	}
}

// await SOCKET waits until somebody serves there, which a gRPC server shows by
// speaking first.
func await(ts *testscript.TestScript, neg bool, args []string) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if serves(ts.MkAbs(args[0])) {
			return
		}
	}
	ts.Fatalf("nobody serves %s after %v", args[0], patience)
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

// await-text FILE TEXT waits until that is in the file.
func awaitText(ts *testscript.TestScript, neg bool, args []string) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if text, err := os.ReadFile(ts.MkAbs(args[0])); err == nil && strings.Contains(string(text), args[1]) {
			return
		}
	}
	ts.Fatalf("not in %s after %v: %s\n%s", args[0], patience, args[1], ts.ReadFile(args[0]))
}

// signal NAME sends it to all that runs in the background.
func sendSignal(ts *testscript.TestScript, neg bool, args []string) {
	sig := unix.SignalNum("SIG" + args[0])
	if sig == 0 {
		ts.Fatalf("no signal %s", args[0])
	}
	for _, cmd := range ts.BackgroundCmds() {
		ts.Check(cmd.Process.Signal(sig))
	}
}

// leave-socket PATH makes a socket that nobody serves, as a killed daemon does.
func leaveSocket(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: ts.MkAbs(args[0])})
	ts.Check(err)
	l.SetUnlinkOnClose(false)
	ts.Check(l.Close())
}

// mode FILE BITS wants those permissions, in octal.
func mode(ts *testscript.TestScript, neg bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[1] {
		ts.Fatalf("mode of %s is %s, want %s", args[0], got, args[1])
	}
}

// free-port NAME puts a port that nobody listens on into the environment.
func freePort(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(errors.Join(err, l.Close()))
	ts.Setenv(args[0], port)
}

// http CODE URL [TEXT...] waits until that is answered, with the texts in it.
func askHTTP(ts *testscript.TestScript, neg bool, args []string) {
	last := ""
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
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

// notify-socket stands in for the service manager that a Type=notify unit tells of
// itself.
func notifySocket(ts *testscript.TestScript, neg bool, args []string) {
	path := ts.MkAbs("notify.sock")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path})
	ts.Check(err)
	ts.Defer(func() { conn.Close() })
	heard := make(chan string, 100)
	go func() {
		defer close(heard)
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			for line := range strings.Lines(string(buf[:n])) {
				heard <- strings.TrimSpace(line)
			}
		}
	}()
	told[ts.MkAbs(".")] = heard
	ts.Setenv("NOTIFY_SOCKET", path)
}

// told is what the daemon of each script, known by its directory, has told.
// Only notify.txtar uses it, so nothing guards it.
var told = map[string]<-chan string{}

// await-notified STATE waits until the daemon has told that.
func awaitNotified(ts *testscript.TestScript, neg bool, args []string) {
	limit := time.After(patience)
	for {
		select {
		case got := <-told[ts.MkAbs(".")]:
			if got == args[0] {
				return
			}
			ts.Logf("told %s", got)
		case <-limit:
			ts.Fatalf("not told %s", args[0])
		}
	}
}

// activate does as systemd does with a socket unit: activate [NAME=ADDRESS...] -- PROGRAM
// [ARG...] runs the program with those sockets open. An address with a slash is
// a path.
func activate() {
	code, err := activated(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "activate:", err)
	}
	os.Exit(code)
}

func activated(args []string) (int, error) {
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
	// A program is told by number that the sockets are its own.
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
