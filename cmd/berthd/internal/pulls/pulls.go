// Package pulls shows how far the pulls of images are. It reads that from the debug socket of the berthd that runs on
// this node.
//
// On a terminal the table is drawn again until no image is being pulled, otherwise there is one. Texts from the daemon
// are printed without control characters: the creator of a pod chooses the name of its image.
package pulls

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"berth/core/image/pullprogress"
)

const (
	// drawInterval is how often a terminal is drawn, and printInterval how often Watch prints to something else.
	drawInterval, printInterval = 500 * time.Millisecond, time.Second
	// responseTimeout is how long berthd may take to respond; it does so from memory.
	responseTimeout = 5 * time.Second
)

// Config says what to show, and where.
type Config struct {
	Socket string // of the daemon
	JSON   bool
	Watch  bool // go on until ctx ends
	Out    io.Writer
}

// Show prints the pulls. It returns nil when ctx ends.
func Show(ctx context.Context, cfg Config) error {
	terminal, isTerminal := terminalOf(cfg.Out)
	live := isTerminal && !cfg.JSON
	interval := printInterval
	if live {
		interval = drawInterval
	}
	client := newClient(cfg.Socket)
	defer client.CloseIdleConnections()
	for drawn := 0; ; {
		list, err := load(ctx, client, cfg.Socket)
		if err == nil {
			switch {
			case cfg.JSON:
				err = writeJSON(cfg.Out, list, cfg.Watch)
			case live:
				drawn, err = draw(cfg.Out, terminal, list, drawn)
			default:
				err = writeTable(cfg.Out, list)
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case !cfg.Watch && (!live || len(list.Pulls) == 0):
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(interval):
		}
	}
}

// newClient returns an HTTP client of the socket.
func newClient(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
}

// load gets the pulls from the daemon.
func load(ctx context.Context, client *http.Client, socket string) (list pullprogress.List, err error) {
	ctx, cancel := context.WithTimeout(ctx, responseTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://berthd"+pullprogress.Path, nil)
	if err != nil {
		return list, err
	}
	response, err := client.Do(r)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return list, fmt.Errorf("berthd is not running, or has another run-dir or debug-socket: nothing serves %s (systemctl status berth.service)", socket)
	case errors.Is(err, fs.ErrPermission):
		return list, fmt.Errorf("%s is for root only: run this command as root", socket)
	case err != nil:
		return list, fmt.Errorf("berthd does not respond at %s: %w", socket, errors.Unwrap(err))
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return list, fmt.Errorf("the server at %s responds with %s: is it an older berthd?", socket, response.Status)
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, pullprogress.MaxResponse)).Decode(&list); err != nil {
		return list, fmt.Errorf("response of berthd at %s: %w", socket, err)
	}
	return list, nil
}

// writeJSON writes the pulls as an array, on one line if others follow.
func writeJSON(w io.Writer, list pullprogress.List, watch bool) error {
	encoder := json.NewEncoder(w)
	if !watch {
		encoder.SetIndent("", "  ")
	}
	if list.Pulls == nil {
		list.Pulls = []pullprogress.Status{}
	}
	return encoder.Encode(list.Pulls)
}

// writeTable writes one line for each pull.
func writeTable(w io.Writer, list pullprogress.List) error {
	if len(list.Pulls) == 0 {
		_, err := fmt.Fprintln(w, "no image is being pulled")
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "IMAGE\tPROGRESS\tSTATE\tLAYERS\tSIZE\tRATE\tELAPSED\tPOD")
	for _, s := range list.Pulls {
		fmt.Fprintf(table, "%s\t%s\t%s\t%d/%d\t%s\t%s\t%v\t%s\n", printable(imageOf(s)), bar(s), s.State, s.LayersDone, s.Layers, s.Amount(), s.Rate(), s.Elapsed(), printable(podOf(s)))
	}
	if list.Omitted > 0 {
		fmt.Fprintf(table, "and %d more\n", list.Omitted)
	}
	return table.Flush() // with the error of an earlier write
}

// imageOf returns the image, and the mirror that it is pulled from.
func imageOf(s pullprogress.Status) string {
	if s.Source == "" {
		return s.Image
	}
	return s.Image + " from " + s.Source
}

// podOf returns the first pod that waits for the pull.
func podOf(s pullprogress.Status) string {
	switch len(s.Pods) {
	case 0:
		return "-"
	case 1:
		return s.Pods[0].Namespace + "/" + s.Pods[0].Name
	default:
		return fmt.Sprintf("%s/%s and %d more", s.Pods[0].Namespace, s.Pods[0].Name, len(s.Pods)-1)
	}
}

// barWidth is the length of a bar in characters.
const barWidth = 20

// bar returns the bar of a pull with its percentage: the part of the known bytes that has arrived.
func bar(s pullprogress.Status) string {
	part := 0.0
	switch {
	case s.State == pullprogress.Finishing:
		part = 1
	case s.TotalBytes > 0:
		part = min(max(float64(s.Bytes)/float64(s.TotalBytes), 0), 1)
	}
	full := int(part * barWidth)
	return fmt.Sprintf("[%s%s] %3.0f%%", strings.Repeat("#", full), strings.Repeat("-", barWidth-full), part*100)
}

// printable returns text without characters that control a terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}

// terminalOf returns the file of w if that is a terminal.
func terminalOf(w io.Writer) (*os.File, bool) {
	f, ok := w.(*os.File)
	if !ok {
		return nil, false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return f, err == nil
}

// draw writes the table in place of one with that many lines, and returns its number of lines.
func draw(w io.Writer, terminal *os.File, list pullprogress.List, drawn int) (int, error) {
	rows, columns := 24, 80
	if size, err := unix.IoctlGetWinsize(int(terminal.Fd()), unix.TIOCGWINSZ); err == nil && size.Row > 2 && size.Col > 0 {
		rows, columns = int(size.Row), int(size.Col)
	}
	var table strings.Builder
	if err := writeTable(&table, list); err != nil {
		return 0, err
	}
	lines := fit(strings.Split(strings.TrimSuffix(table.String(), "\n"), "\n"), rows-1, columns)
	up := ""
	if drawn > 0 {
		up = fmt.Sprintf("\x1b[%dA\r", min(drawn, rows-1))
	}
	_, err := io.WriteString(w, up+"\x1b[J"+strings.Join(lines, "\n")+"\n")
	return len(lines), err
}

// fit cuts lines to a terminal of that size: a line that wraps could not be replaced.
func fit(lines []string, rows, columns int) []string {
	if len(lines) > rows {
		more := len(lines) - rows + 1
		lines = append(lines[:rows-1:rows-1], fmt.Sprintf("and %d more", more))
	}
	fitted := make([]string, len(lines))
	for i, line := range lines {
		characters := []rune(line)
		fitted[i] = string(characters[:min(len(characters), columns)])
	}
	return fitted
}
