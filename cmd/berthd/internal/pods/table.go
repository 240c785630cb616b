package pods

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	shortID   = 12 // digits of an ID, as docker ps prints them
	maxDetail = 72 // characters of a message in the table; JSON has all
)

// WriteJSON writes the report as a JSON object.
func (r *Report) WriteJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(r)
}

// WriteTable writes a line for each pod and, below it, one for each of its containers. wide adds Docker's names,
// network namespaces and log files.
func (r *Report) WriteTable(w io.Writer, now time.Time, wide bool) error {
	head := fmt.Sprintf("# from %s at %s", r.Source, r.Endpoint)
	if r.Note != "" {
		head += "; " + r.Note
	}
	if _, err := fmt.Fprintln(w, printable(head)); err != nil {
		return err
	}
	if len(r.Pods) == 0 {
		_, err := fmt.Fprintln(w, "no pods")
		return err
	}
	lines := [][]string{{"POD", "STATE", "TRY", "AGE", "PID", "ID", "ADDRESS OR REASON"}}
	for _, pod := range r.Pods {
		lines = append(lines, pod.row(now))
		if wide {
			lines = append(lines, more("  ", "docker", pod.DockerName, "netns", pod.NetNS, "logs", pod.LogDir)...)
		}
		for _, c := range pod.Containers {
			lines = append(lines, c.row(now))
			if wide {
				lines = append(lines, more("    ", "docker", c.DockerName, "log", c.logFile(pod))...)
			}
		}
	}
	return writeColumns(w, lines)
}

// writeColumns writes the cells of each line in columns. A line of one cell has none: text/tabwriter would begin
// new columns after it.
func writeColumns(w io.Writer, lines [][]string) error {
	var widths [7]int
	for _, line := range lines {
		for i, cell := range line {
			if len(line) > 1 {
				widths[i] = max(widths[i], utf8.RuneCountInString(cell))
			}
		}
	}
	var out strings.Builder
	for _, line := range lines {
		for i, cell := range line {
			out.WriteString(cell)
			if i < len(line)-1 {
				out.WriteString(strings.Repeat(" ", widths[i]+2-utf8.RuneCountInString(cell)))
			}
		}
		out.WriteByte('\n')
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func (p Pod) row(now time.Time) []string {
	state := "NotReady"
	if p.Ready {
		state = "Ready"
	}
	detail := cmp.Or(p.NotReady, strings.Join(p.Addresses, " "))
	if detail == "" && p.HostNetwork {
		detail = "network of the node"
	}
	return cells(p.Namespace+"/"+p.Name, state, p.Attempt, age(now, p.CreatedAt), p.Pid, p.ID, detail)
}

func (c Container) row(now time.Time) []string {
	return cells("  "+c.Name, c.State, c.Attempt, age(now, c.CreatedAt), c.Pid, c.ID, c.detail())
}

// cells returns one line of the table.
func cells(name, state string, attempt uint32, age string, pid int, id, detail string) []string {
	process := "-"
	if pid > 0 {
		process = strconv.Itoa(pid)
	}
	return []string{
		printable(name), state, strconv.FormatUint(uint64(attempt), 10), age, process, printable(id[:min(len(id), shortID)]), shorten(printable(cmp.Or(detail, "-"))),
	}
}

// more returns lines with a name and a value each.
func more(indent string, pairs ...string) (lines [][]string) {
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			lines = append(lines, []string{indent + pairs[i] + ": " + printable(pairs[i+1])})
		}
	}
	return lines
}

// detail says why a container is not running.
func (c Container) detail() string {
	if c.ExitCode == nil {
		return c.Message
	}
	text := fmt.Sprintf("%s, exit code %d", cmp.Or(c.Reason, "exited"), *c.ExitCode)
	if c.Message != "" {
		text += ": " + c.Message
	}
	return text
}

// logFile returns the path of the container's log.
func (c Container) logFile(pod Pod) string {
	if c.LogPath == "" || strings.HasPrefix(c.LogPath, "/") || pod.LogDir == "" {
		return c.LogPath
	}
	return strings.TrimRight(pod.LogDir, "/") + "/" + c.LogPath
}

// age returns how long ago t was, in one unit.
func age(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	const day = 24 * time.Hour
	d := max(now.Sub(t), 0)
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	default:
		return fmt.Sprintf("%dd", d/day)
	}
}

// printable replaces what a terminal would interpret, or a table: messages and names may be from an image.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(text, "?"))
}

// shorten cuts a text for the table.
func shorten(text string) string {
	if utf8.RuneCountInString(text) <= maxDetail {
		return text
	}
	return string([]rune(text)[:maxDetail-3]) + "..."
}
