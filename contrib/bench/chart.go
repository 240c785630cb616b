package main

import (
	_ "embed"
	"fmt"
	"html"
	"io"
	"text/template"
)

// chart is the template of the chart.
//
//go:embed chart.svg
var chart string

// Dimensions of the chart, in pixels.
const (
	chartWidth   = 1000
	barsX        = 320
	barsWidth    = 400
	barHeight    = 13
	rowGap       = 14
	legendY      = 56
	legendHeight = 15
)

// sideColors are the colors of the sides, in the order of the table.
var sideColors = []string{"#b8bec6", "#1f6feb", "#e3a008", "#8250df", "#1a7f37", "#bf3989"}

// A legend is a line that says what a side is.
type legend struct {
	Side, Name, Color string
	Y, Text           int
}

// A group is the bars of one row, scaled to the longest.
type group struct {
	Title, Unit string
	Y, Middle   int
	Bars        []bar
	Target      int // x position of the target mark, 0 for none
	Bottom      int
}

type bar struct {
	Color, Value string
	Y, Text      int
	Width        int
	ValueX       int
}

// draw draws the chart.
func (r *Report) draw(out io.Writer) error {
	t, err := template.New("chart").Funcs(template.FuncMap{"text": html.EscapeString}).Parse(chart)
	if err != nil {
		return err
	}
	var legends []legend
	y := legendY
	for i, side := range r.columns() {
		legends = append(legends, legend{side, r.Sides[side], color(i), y - 9, y})
		y += legendHeight
	}
	pods := ""
	if r.mode() == "bench" {
		pods = fmt.Sprintf("; %d pods in rows that depend on the number of pods", r.Pods)
	}
	groups, bottom := r.groups(y + rowGap)
	return t.Execute(out, map[string]any{
		"Width": chartWidth, "Height": bottom + 10, "Left": barsX, "BarHeight": barHeight,
		"Machine": r.Machine + "; " + r.Engine, "Date": r.Date, "Pods": pods, "Legends": legends, "TargetY": y - 9, "TargetText": y, "Groups": groups,
	})
}

func color(side int) string { return sideColors[side%len(sideColors)] }

// groups returns the bars of all rows, from y on.
func (r *Report) groups(y int) (groups []group, bottom int) {
	for _, row := range r.Rows {
		if _, p := part(row.Name); p != "" || row.Unit == "" || len(row.Samples) == 0 {
			continue
		}
		g := group{Title: r.title(row), Unit: row.Unit, Y: y}
		if higherIsBetter(row.Unit) {
			g.Unit += ", longer is better"
		}
		most := 0.0
		for _, side := range r.columns() {
			m, _ := row.median(side)
			most = max(most, m)
		}
		v, hasTarget := r.evaluate(row)
		if hasTarget && v.known {
			most = max(most, v.scaled)
			g.Target = barsX + width(v.scaled, most)
		}
		for i, side := range r.columns() {
			m, ok := row.median(side)
			if !ok {
				continue
			}
			w := width(m, most)
			value := number(m)
			if c, ok := row.compare(side); ok && side != "berth" {
				value += " (berth: " + c.text() + " x)"
			}
			g.Bars = append(g.Bars, bar{Color: color(i), Value: value, Y: y, Text: y + barHeight - 3, Width: w, ValueX: barsX + w + 5})
			y += barHeight + 1
		}
		g.Bottom, g.Middle = y, (g.Y+y)/2+4
		groups = append(groups, g)
		y += rowGap
	}
	return groups, y
}

func width(v, most float64) int {
	if most <= 0 {
		return 1
	}
	return max(1, int(v/most*barsWidth))
}
