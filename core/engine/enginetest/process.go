package enginetest

import (
	"context"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Program is what runs as a process; it returns the exit code. It must return soon after the
// context of its process has ended; its result is ignored then.
type Program func(*Process) int

// A Process is a running Program, as the first process of a container or in an exec session.
type Process struct {
	ID        string // of the container or exec session
	Container string // ID
	Args      []string
	Env       []string
	Tty       bool
	Stdin     io.Reader // empty unless the container has OpenStdin or the exec AttachStdin
	Stdout    io.Writer
	Stderr    io.Writer

	ctx    context.Context
	cancel context.CancelFunc
	isInit bool // first process of its container: signals without a handler are ignored
	stdin  *pipe
	onExit func(code int)
	once   sync.Once

	mu         sync.Mutex // guards following
	handlers   map[int]chan string
	outputKept bool   // of an exec: see KeepOutput
	hangUp     func() // of an exec: closes the output stream
}

// KeepOutput keeps the output stream of an exec open after the process has exited, as a child
// process that inherited it does.
func (p *Process) KeepOutput() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.outputKept = true
}

// CloseOutput closes the output stream of an exec while the process goes on.
func (p *Process) CloseOutput() {
	p.mu.Lock()
	hangUp := p.hangUp
	p.mu.Unlock()
	hangUp()
}

// keepsOutput reports whether KeepOutput was called.
func (p *Process) keepsOutput() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.outputKept
}

// newProcess returns a process that has not been started.
func (e *Engine) newProcess(b *fakeContainer, input *pipe, args, env []string, tty bool) *Process {
	ctx, cancel := context.WithCancel(e.ctx)
	return &Process{
		ID: b.id, Container: b.id, Args: args, Env: env, Tty: tty,
		Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: io.Discard,
		ctx: ctx, cancel: cancel, stdin: input, handlers: map[int]chan string{},
	}
}

// Context ends when the process is killed.
func (p *Process) Context() context.Context { return p.ctx }

// Notify has p handle the named signals, for example "TERM", and returns a channel with the names
// of those that it receives.
func (p *Process) Notify(signals ...string) <-chan string {
	p.mu.Lock()
	defer p.mu.Unlock()
	arrive := make(chan string, 16)
	for _, s := range signals {
		if n, err := signalNumber(s); err == nil {
			p.handlers[n] = arrive
		}
	}
	return arrive
}

// signal delivers a signal other than SIGKILL.
func (p *Process) signal(number int) {
	p.mu.Lock()
	handler := p.handlers[number]
	p.mu.Unlock()
	if handler != nil {
		select {
		case handler <- strings.TrimPrefix(unix.SignalName(unix.Signal(number)), "SIG"):
		default:
		}
		return
	}
	if p.isInit {
		return // the kernel protects the first process of a PID namespace
	}
	switch unix.Signal(number) {
	case unix.SIGCHLD, unix.SIGURG, unix.SIGWINCH, unix.SIGCONT:
	default:
		p.exit(128 + number)
	}
}

// exit ends p with code, unless it has ended. Engine.mu must not be held.
func (p *Process) exit(code int) {
	p.once.Do(func() {
		p.cancel()
		p.stdin.closeWrite()
		p.onExit(code)
	})
}

// sleep waits for d or the end of p.
func (p *Process) sleep(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.ctx.Done():
	}
}

// signalNumber parses a signal as Engines do: TERM, SIGTERM, 15, RTMIN+3.
func signalNumber(name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil {
		if n < 1 || n > 64 {
			return 0, fmt.Errorf("invalid signal: %s", name)
		}
		return n, nil
	}
	name = strings.TrimPrefix(strings.ToUpper(name), "SIG")
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return int(n), nil
	}
	for base, at := range map[string]int{"RTMIN": 34, "RTMAX": 64} {
		rest, ok := strings.CutPrefix(name, base)
		if !ok {
			continue
		}
		if rest == "" {
			return at, nil
		}
		if n, err := strconv.Atoi(rest); err == nil && at+n >= 34 && at+n <= 64 {
			return at + n, nil
		}
	}
	return 0, fmt.Errorf("invalid signal: %s", name)
}

// Program sets the program of all commands whose first word, or its last path element, is name,
// or that are name when their words are joined by spaces.
func (e *Engine) Program(name string, program Program) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.programs[name] = program
	delete(e.startFailures, name)
}

// Prints returns a Program that writes and, after d, exits with code.
func Prints(out, err string, code int, d time.Duration) Program {
	return func(p *Process) int {
		_, _ = io.WriteString(p.Stdout, out)
		_, _ = io.WriteString(p.Stderr, err)
		p.sleep(d)
		return code
	}
}

// A StartFailure is why a command cannot be started.
type StartFailure struct {
	Code   int    // exit code: 127 not found, 126 not executable, 128 other
	Status int    // of the response to a container start; 400 if 0
	Text   string // error of runc, for example `exec: "x": permission denied`; a default if empty
}

// FailStart has starts and execs of the command name, as in Program, fail. Those of "missing" and
// "denied" fail from the beginning.
func (e *Engine) FailStart(name string, failure StartFailure) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.startFailures[name] = failure
}

func startFailures() map[string]StartFailure {
	return map[string]StartFailure{"missing": {Code: exitNotFound}, "denied": {Code: exitNotExecutable}, "/": {Code: exitNotExecutable}}
}

// programLocked returns the program of args, or why there is none. The command of a container may
// be any: without a program of its own, nil, it runs until a signal. An unknown exec is not found.
func (e *Engine) programLocked(args []string, first bool) (Program, *StartFailure) {
	for _, name := range []string{strings.Join(args, " "), args[0], path.Base(args[0])} {
		if failure, ok := e.startFailures[name]; ok {
			return nil, failure.withDefaults(args[0])
		}
		if program, ok := e.programs[name]; ok {
			return program, nil
		}
	}
	if first {
		return nil, nil
	}
	return nil, StartFailure{Code: exitNotFound}.withDefaults(args[0])
}

// withDefaults returns f with defaults for a command.
func (f StartFailure) withDefaults(command string) *StartFailure {
	if f.Text == "" {
		switch {
		case f.Code == exitNotExecutable:
			f.Text = fmt.Sprintf("exec: %q: permission denied", command)
		case strings.Contains(command, "/"):
			f.Text = fmt.Sprintf("exec: %q: stat %s: no such file or directory", command, command)
		default:
			f.Text = fmt.Sprintf("exec: %q: executable file not found in $PATH", command)
		}
	}
	if f.Status == 0 {
		f.Status = 400
	}
	return &f
}

// A pipe is a standard input. Its buffer is not bounded.
type pipe struct {
	mu       sync.Mutex // guards following
	data     []byte
	closed   bool
	readable chan struct{} // has an element if there is new data
}

func newPipe() *pipe { return &pipe{readable: make(chan struct{}, 1)} }

func (p *pipe) notify() {
	select {
	case p.readable <- struct{}{}:
	default:
	}
}

func (p *pipe) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, io.ErrClosedPipe
	}
	p.data = append(p.data, b...)
	p.notify()
	return len(b), nil
}

// closeWrite ends the input; what was written before can still be read.
func (p *pipe) closeWrite() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.notify()
}

func (p *pipe) Read(b []byte) (int, error) {
	for {
		p.mu.Lock()
		n, over := copy(b, p.data), p.closed
		p.data = p.data[n:]
		p.mu.Unlock()
		switch {
		case n > 0 || len(b) == 0:
			return n, nil
		case over:
			p.notify()
			return 0, io.EOF
		}
		<-p.readable
	}
}
