package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"berth/cmd/berthd/internal/config"
	"berth/core/containerd"
	"berth/core/engine"
	"berth/core/imagecopy"
)

// copyUse is the usage of the command images copy.
const copyUse = "copy [IMAGE...]"

// Intervals of the progress. On a terminal one line is written again.
const (
	terminalInterval = 200 * time.Millisecond
	linesInterval    = 10 * time.Second
	jsonInterval     = time.Second
)

// copyImages copies images between Docker and containerd. It fails if one was not copied.
func copyImages(cmd *cobra.Command, options *config.Options) error {
	if (options.Copy.To == "") == (options.Copy.From == "") {
		return config.UsageErrorf("images copy needs one of --to containerd and --from containerd")
	}
	if err := options.Load(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	docker, err := engine.New(engine.Config{Host: options.DockerEndpoint, Timeout: options.RequestTimeout}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	conn, err := docker.Dial(ctx)
	if err != nil {
		return fmt.Errorf("docker at %s: %w", cmp.Or(options.DockerEndpoint, os.Getenv("DOCKER_HOST")), err)
	}
	defer conn.Close()
	client, _, err := containerd.Dial(ctx, options.Copy.Address, options.Copy.Namespace)
	if err != nil {
		return fmt.Errorf("%w (--containerd-address names its socket)", err)
	}
	defer client.Close()
	log, _ := newLog(cmd.ErrOrStderr(), options.Config)
	copier := imagecopy.New(imagecopy.Config{Docker: conn, Containerd: client, Address: options.Copy.Address, To: options.Copy.To != "", Log: log})
	var patterns []string
	for _, arg := range cmd.Flags().Args() {
		if arg != "" {
			patterns = append(patterns, arg)
		}
	}
	images, err := copier.Select(ctx, patterns, options.Copy.Used)
	if err != nil {
		return err
	}
	out := newCopyOutput(cmd.OutOrStdout(), options.JSON, options.DryRun)
	ended := copier.Run(ctx, images, options.DryRun, out.report)
	failed := out.summarize(len(images))
	if ended != nil && failed != nil {
		return fmt.Errorf("%w; %w", failed, ended) // one line
	}
	return cmp.Or(failed, ended)
}

// A copyOutput prints the progress and the results of copies.
type copyOutput struct {
	w        io.Writer
	json     bool
	dryRun   bool
	terminal bool
	interval time.Duration

	begin   time.Time
	printed time.Time // when the progress was printed
	counts  map[imagecopy.Result]int
	bytes   int64
	lost    int
	failed  []string
	err     error // of the first write that failed
}

func newCopyOutput(w io.Writer, asJSON, dryRun bool) *copyOutput {
	o := &copyOutput{w: w, json: asJSON, dryRun: dryRun, interval: linesInterval, begin: time.Now(), counts: map[imagecopy.Result]int{}}
	if file, ok := w.(*os.File); ok && !asJSON {
		_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
		o.terminal = err == nil
	}
	switch {
	case o.terminal:
		o.interval = terminalInterval
	case asJSON:
		o.interval = jsonInterval
	}
	return o
}

// A copyEvent is a line of the output as JSON.
type copyEvent struct {
	Event       string           `json:"event"` // progress, image or summary
	Image       string           `json:"image,omitempty"`
	Names       []string         `json:"names,omitempty"`
	ID          string           `json:"id,omitempty"`
	Result      imagecopy.Result `json:"result,omitempty"`
	DryRun      bool             `json:"dryRun,omitempty"`
	Bytes       int64            `json:"bytes"`
	Total       int64            `json:"total,omitempty"`
	Seconds     float64          `json:"seconds"`
	LostDigests []string         `json:"lostDigests,omitempty"`
	Replaced    []string         `json:"replaced,omitempty"`
	Error       string           `json:"error,omitempty"`

	Images  int                      `json:"images,omitempty"`
	Results map[imagecopy.Result]int `json:"results,omitempty"`
	Failed  []string                 `json:"failed,omitempty"`
}

// report prints a report, or nothing if it is too early for the progress.
func (o *copyOutput) report(r imagecopy.Report) {
	name := r.Names[0]
	if r.Result == "" {
		if time.Since(o.printed) < o.interval {
			return
		}
		o.printed = time.Now()
	} else {
		o.printed = time.Time{} // the next image prints its first progress at once
		o.counts[r.Result]++
		o.bytes += r.Bytes
		if r.Result == imagecopy.Failed {
			o.failed = append(o.failed, name)
		} else if len(r.Lost) > 0 {
			o.lost++
		}
	}
	if o.json {
		e := copyEvent{Event: "progress", Image: name, Bytes: r.Bytes, Total: r.Total, Seconds: r.Elapsed.Seconds()}
		if r.Result != "" {
			e.Event, e.Names, e.ID, e.Result, e.DryRun, e.LostDigests, e.Replaced = "image", r.Names, r.ID, r.Result, o.dryRun, r.Lost, r.Replaced
			if r.Err != nil {
				e.Error = r.Err.Error()
			}
		}
		o.encode(e)
		return
	}
	line := name + ": " + o.describe(r)
	switch {
	case r.Result == "" && o.terminal:
		o.print("\r\x1b[K" + shorten(line, o.width()))
	case o.terminal:
		o.print("\r\x1b[K" + line + "\n")
	default:
		o.print(line + "\n")
	}
}

// describe returns the text of a report.
func (o *copyOutput) describe(r imagecopy.Report) string {
	text := ""
	switch {
	case r.Result == "" && r.Bytes == 0:
		return "copying about " + units.HumanSize(float64(r.Total))
	case r.Result == "":
		return fmt.Sprintf("%s of about %s, %s", units.HumanSize(float64(r.Bytes)), units.HumanSize(float64(max(r.Total, r.Bytes))), rate(r.Bytes, r.Elapsed))
	case r.Err != nil:
		prefix := "failed: "
		if r.Result == imagecopy.Skipped {
			prefix = ""
		}
		return prefix + strings.ReplaceAll(r.Err.Error(), "\n", "; ")
	case r.Result == imagecopy.Copied && o.dryRun:
		text = "would be copied, about " + units.HumanSize(float64(r.Total))
	case r.Result == imagecopy.Copied:
		text = fmt.Sprintf("copied %s in %.1f s, %s", units.HumanSize(float64(r.Bytes)), r.Elapsed.Seconds(), rate(r.Bytes, r.Elapsed))
	case r.Result == imagecopy.Shared:
		text = "copied without transfer, its content is in the same containerd"
	case r.Result == imagecopy.Named && o.dryRun:
		text = "content already there, names would be added"
	case r.Result == imagecopy.Named:
		text = "content already there, names added"
	default:
		text = "already there"
	}
	if len(r.Names) > 1 {
		text += fmt.Sprintf(" (%d names)", len(r.Names)-len(r.Lost))
	}
	if len(r.Lost) > 0 {
		text += ", without its digest in the registry"
	}
	if len(r.Replaced) > 0 {
		text += ", another image had the name before: " + strings.Join(r.Replaced, ", ")
	}
	return text
}

// rate returns the bytes per second.
func rate(bytes int64, elapsed time.Duration) string {
	return units.HumanSize(float64(bytes)/max(elapsed.Seconds(), 0.001)) + "/s"
}

// summarize prints the end, and returns an error that names the images that failed.
func (o *copyOutput) summarize(images int) error {
	if o.json {
		o.encode(copyEvent{Event: "summary", DryRun: o.dryRun, Bytes: o.bytes, Seconds: time.Since(o.begin).Seconds(), Images: images, Results: o.counts, Failed: o.failed})
	} else {
		var parts []string
		for _, part := range []struct {
			result imagecopy.Result
			text   string
		}{
			{imagecopy.Copied, "copied"}, {imagecopy.Shared, "copied without transfer"}, {imagecopy.Named, "named"},
			{imagecopy.Present, "already there"}, {imagecopy.Skipped, "skipped"}, {imagecopy.Failed, "failed"},
		} {
			if n := o.counts[part.result]; n > 0 {
				parts = append(parts, fmt.Sprintf("%d %s", n, part.text))
			}
		}
		title := "images"
		if o.dryRun {
			title = "images in a dry run"
		}
		o.print(fmt.Sprintf("%s: %s; %s in %.1f s\n", title, cmp.Or(strings.Join(parts, ", "), "none"), units.HumanSize(float64(o.bytes)), time.Since(o.begin).Seconds()))
		if o.lost > 0 {
			o.print(fmt.Sprintf("without their digest in the registry: %d, because Docker's image store keeps layers only unpacked; pods that name them by digest will pull them\n", o.lost))
		}
	}
	if len(o.failed) > 0 {
		return fmt.Errorf("%d of %d images were not copied: %s", len(o.failed), images, strings.Join(o.failed, ", "))
	}
	return o.err
}

// encode prints an event as JSON.
func (o *copyOutput) encode(e copyEvent) {
	text, err := json.Marshal(e)
	o.print(string(text) + "\n")
	o.err = cmp.Or(o.err, err)
}

func (o *copyOutput) print(text string) {
	if _, err := io.WriteString(o.w, text); o.err == nil {
		o.err = err
	}
}

// width returns the columns of the terminal.
func (o *copyOutput) width() int {
	if file, ok := o.w.(*os.File); ok {
		if size, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
			return int(size.Col) - 1
		}
	}
	return 79
}

// shorten returns the end of text that fits into the columns: the progress is there.
func shorten(text string, columns int) string {
	if len(text) <= columns {
		return text
	}
	return text[len(text)-columns:]
}
