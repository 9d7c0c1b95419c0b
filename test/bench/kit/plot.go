package main

import (
	"bufio"
	"fmt"
	"io"
)

// Measures of the plot, in pixels.
const (
	plotWidth   = 900
	labelWidth  = 250
	barHeight   = 16
	groupGap    = 18
	plotTop     = 60
	unit        = 380 // length of a bar of ratio 1
	longestBar  = 1.6
	valueMargin = 6
)

var worldColours = map[string]string{"direct": "#888888", "tclb": "#2563eb", "nftables": "#d97706", "haproxy": "#b91c1c"}

// plot draws every metric's ratio to the base world as bars.
func plot(args []string, _ io.Reader, out io.Writer) error {
	o, err := parseOptions("plot", args)
	if err != nil {
		return err
	}
	s, err := readSamples(o)
	if err != nil {
		return err
	}
	height := plotTop + len(s.metrics)*(len(s.worlds)*barHeight+groupGap) + groupGap
	w := bufio.NewWriter(out)
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, height)
	fmt.Fprintf(w, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	fmt.Fprintf(w, `<text x="10" y="22" font-size="16">Through the VIP, container to container on one node, relative to %s</text>`+"\n", o.base)
	fmt.Fprintf(w, `<text x="10" y="42" fill="#555555">Medians of interleaved rounds. Rates: longer is better. Times (us): shorter is better.</text>`+"\n")
	fmt.Fprintf(w, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="#888888" stroke-dasharray="3 3"/>`+"\n", labelWidth+unit, plotTop-8, labelWidth+unit, height-8)
	y := plotTop
	for _, metric := range s.metrics {
		fmt.Fprintf(w, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", labelWidth-10, y+barHeight-4, metric)
		for _, world := range s.worlds {
			ratio, ok := s.ratio(metric, world, o.base)
			if !ok {
				continue
			}
			drawBar(w, y, world, ratio)
			y += barHeight
		}
		y += groupGap
	}
	fmt.Fprintln(w, "</svg>")
	return w.Flush()
}

// drawBar draws one world's bar; one that is too long ends early and says its value.
func drawBar(w io.Writer, y int, world string, ratio float64) {
	colour, ok := worldColours[world]
	if !ok {
		colour = "#4b5563"
	}
	length := int(min(ratio, longestBar) * unit)
	fmt.Fprintf(w, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"/>`+"\n", labelWidth, y, length, barHeight-3, colour)
	fmt.Fprintf(w, `<text x="%d" y="%d" font-size="11">%s %.2f</text>`+"\n", labelWidth+min(length, plotWidth-labelWidth-110)+valueMargin, y+barHeight-5, world, ratio)
}
