package main

import (
	"fmt"
	"io"
	"strings"
)

const (
	barHeight = 9
	rowHeight = 26
	labels    = 330
	barWidth  = 420
)

// draw plots what moves needlessly: two bars for each event, tclb's above.
func draw(w io.Writer, results []result) {
	var rows []result
	most := 0.0
	for _, r := range results {
		if strings.Contains(r.what, "needlessly") || strings.Contains(r.what, "undone") {
			rows = append(rows, r)
			most = max(most, r.ours, r.maglv)
		}
	}
	height := (len(rows) + 2) * rowHeight
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", labels+barWidth+80, height)
	fmt.Fprintf(w, `<text x="10" y="18" font-weight="bold">Flows that move needlessly: tclb (dark), textbook Maglev (light)</text>`+"\n")
	for i, r := range rows {
		y := (i + 1) * rowHeight
		fmt.Fprintf(w, `<text x="%d" y="%d" text-anchor="end">%d backends, %s</text>`+"\n", labels-8, y+13, r.backends, r.what)
		bar(w, y, r.ours, most, "#1f4e79")
		bar(w, y+barHeight+1, r.maglv, most, "#b8cfe5")
	}
	fmt.Fprintln(w, "</svg>")
}

func bar(w io.Writer, y int, v, most float64, colour string) {
	width := 0.0
	if most > 0 {
		width = v / most * barWidth
	}
	fmt.Fprintf(w, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d" font-size="9">%.2f %%</text>`+"\n",
		labels, y, width, barHeight, colour, labels+width+4, y+barHeight-1, 100*v)
}
