package enginetest

import (
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// programs returns the commands that every Engine has: as much of a busybox as enginelaws needs.
func programs() map[string]Program {
	simple := func(p *Process) int { return command(p, p.Args) }
	return map[string]Program{
		"sh": shell, "sleep": simple, "echo": simple, "cat": simple, "true": simple, "false": simple,
	}
}

// untilSignal returns a program that runs until SIGTERM, SIGINT or SIGQUIT. It handles them already before it runs: a first process
// ignores a signal without a handler, and a test may stop the container as soon as it has started.
func untilSignal(p *Process) func() int {
	signalled := p.Notify("TERM", "INT", "QUIT")
	return func() int {
		select {
		case <-signalled:
		case <-p.ctx.Done():
		}
		return 0
	}
}

// command runs one of the simple commands.
func command(p *Process, words []string) int {
	out := p.Stdout
	if last := words[len(words)-1]; last == ">&2" {
		words, out = words[:len(words)-1], p.Stderr
	}
	switch path.Base(words[0]) {
	case "echo":
		if _, err := io.WriteString(out, strings.Join(words[1:], " ")+"\n"); err != nil {
			return 1
		}
	case "printf":
		if _, err := io.WriteString(out, words[1]); err != nil {
			return 1
		}
	case "cat":
		if _, err := io.Copy(out, p.Stdin); err != nil {
			return 1
		}
	case "sleep":
		seconds, err := strconv.ParseFloat(words[len(words)-1], 64)
		if err != nil {
			return 1
		}
		p.sleep(time.Duration(seconds * float64(time.Second)))
	case "true", ":":
	case "false":
		return 1
	default:
		_, _ = fmt.Fprintf(p.Stderr, "sh: %s: not found\n", words[0])
		return exitNotFound
	}
	return 0
}

// shell implements as much of a shell as enginelaws needs: simple commands in sequence, exit, a
// trap that exits, a loop that never ends, and without -c commands from standard input.
func shell(p *Process) int {
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	trapped := make(chan int, 1)
	trap := func(arrive <-chan string, code int) {
		select {
		case <-arrive:
			trapped <- code
			cancel()
		case <-ctx.Done():
		}
	}
	run := func(script string) (code int, over bool) {
		for _, words := range parseScript(script) {
			switch words[0] {
			case "exit":
				if len(words) > 1 {
					code, _ = strconv.Atoi(words[1])
				}
				return code, true
			case "trap":
				_, text, _ := strings.Cut(words[1], "exit ")
				code, _ := strconv.Atoi(strings.TrimSpace(text))
				go trap(p.Notify(words[2:]...), code)
			case "while", "wait":
				<-ctx.Done()
				return 0, true
			default:
				done := make(chan int, 1)
				go func() { done <- command(p, words) }()
				select {
				case code = <-done:
				case <-ctx.Done():
					return 0, true
				}
			}
		}
		return code, false
	}
	code := 0
	if i := slices.Index(p.Args, "-c"); i >= 0 && i+1 < len(p.Args) {
		code, _ = run(p.Args[i+1])
	} else {
		var line []byte
		for one, over := make([]byte, 1), false; !over; {
			n, err := p.Stdin.Read(one)
			if line = append(line, one[:n]...); n == 1 && one[0] == '\n' || err != nil {
				code, over = run(string(line))
				line, over = line[:0], over || err != nil
			}
		}
	}
	select {
	case code := <-trapped:
		return code
	default:
		return code
	}
}

// parseScript splits a script at semicolons and newlines, and each statement into words. It
// understands quotes.
func parseScript(script string) (all [][]string) {
	var words []string
	var word strings.Builder
	var quote rune
	open := false // a word has begun, which may be empty
	for _, r := range script + ";" {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, open = r, true
		case strings.ContainsRune(" \t;\n", r):
			if open {
				words = append(words, word.String())
			}
			word.Reset()
			open = false
			if (r == ';' || r == '\n') && len(words) > 0 {
				all = append(all, words)
				words = nil
			}
		default:
			word.WriteRune(r)
			open = true
		}
	}
	return all
}
