package main

import (
	_ "embed"
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
	chartWidth = 860
	barsX      = 300
	barsWidth  = 400
	barHeight  = 13
	rowGap     = 14
	chartTop   = 66
)

// A group is the bars of one row, scaled to the longest.
type group struct {
	Title, Unit string
	Y, Middle   int
	Bars        []bar
	Target      int // x position of the target mark, 0 for none
	Bottom      int
}

type bar struct {
	Side, Value string
	Y, Text     int
	Width       int
	ValueX      int
}

// draw draws the chart.
func (r *Report) draw(out io.Writer) error {
	t, err := template.New("chart").Funcs(template.FuncMap{"text": html.EscapeString}).Parse(chart)
	if err != nil {
		return err
	}
	groups, bottom := r.groups()
	return t.Execute(out, map[string]any{
		"Width": chartWidth, "Height": bottom + 10, "Left": barsX, "BarHeight": barHeight,
		"Machine": r.Machine + "; " + r.Engine, "Pods": r.Pods, "Sides": r.columns(), "Names": r.Sides, "Groups": groups,
	})
}

func (r *Report) groups() (groups []group, y int) {
	y = chartTop
	for _, row := range r.Rows {
		if _, p := part(row.Name); p != "" || row.Unit == "" || len(row.Samples) == 0 {
			continue
		}
		g := group{Title: r.title(row), Unit: row.Unit, Y: y}
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
		for _, side := range r.columns() {
			m, ok := row.median(side)
			if !ok {
				continue
			}
			w := width(m, most)
			g.Bars = append(g.Bars, bar{Side: side, Value: number(m), Y: y, Text: y + barHeight - 3, Width: w, ValueX: barsX + w + 5})
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
