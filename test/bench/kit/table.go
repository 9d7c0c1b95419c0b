package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// samples are the values of a results file, by metric and world, both in the order of their first row.
type samples struct {
	metrics, worlds []string
	values          map[[2]string][]float64
	read, dropped   int
	failed          int // rows without a value
}

// options are the flags that table and plot share.
type options struct {
	base    string
	foreign float64
	files   []string
}

func parseOptions(name string, args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.StringVar(&o.base, "base", "direct", "the world that others are compared with")
	flags.Float64Var(&o.foreign, "foreign", 12, "samples during which others used more of the CPUs, in percent, do not count")
	err := flags.Parse(args)
	o.files = flags.Args()
	return o, err
}

// table prints medians, ranges and ratios.
func table(args []string, _ io.Reader, out io.Writer) error {
	o, err := parseOptions("table", args)
	if err != nil {
		return err
	}
	s, err := readSamples(o)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(out)
	fmt.Fprintf(w, "%d samples, %d not counted because other work ran beside them, %d failed.\n", s.read, s.dropped, s.failed)
	for _, metric := range s.metrics {
		fmt.Fprintf(w, "\n## %s\n\n| world | median | least .. most | samples | ratio to %s |\n|---|---|---|---|---|\n", metric, o.base)
		for _, world := range s.worlds {
			values := s.values[[2]string{metric, world}]
			if len(values) == 0 {
				continue
			}
			fmt.Fprintf(w, "| %s | %.4g | %.4g .. %.4g | %d | %s |\n", world, median(values), slices.Min(values), slices.Max(values), len(values), s.ratioText(metric, world, o.base))
		}
	}
	return w.Flush()
}

func (s *samples) ratioText(metric, world, base string) string {
	if r, ok := s.ratio(metric, world, base); ok {
		return fmt.Sprintf("%.2f", r)
	}
	return "-"
}

func (s *samples) ratio(metric, world, base string) (float64, bool) {
	of := median(s.values[[2]string{metric, base}])
	value := s.values[[2]string{metric, world}]
	if of == 0 || len(value) == 0 {
		return 0, false
	}
	return median(value) / of, true
}

func readSamples(o options) (*samples, error) {
	s := &samples{values: map[[2]string][]float64{}}
	for _, name := range o.files {
		if err := s.readFile(name, o.foreign); err != nil {
			return nil, err
		}
	}
	if s.read == 0 {
		return nil, fmt.Errorf("no samples in %q", o.files)
	}
	return s, nil
}

// readFile reads rows of world, metric, value, CPU use, foreign CPU use.
func (s *samples) readFile(name string, foreign float64) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		fields := strings.Split(lines.Text(), "\t")
		if len(fields) < 5 {
			return fmt.Errorf("%s:%d: want five fields", name, n)
		}
		value, err := strconv.ParseFloat(fields[2], 64)
		if err != nil {
			s.failed++ // the tool that was to measure it has said why
			continue
		}
		others, err := strconv.ParseFloat(fields[4], 64)
		if err != nil {
			return fmt.Errorf("%s:%d: %w", name, n, err)
		}
		s.read++
		if others > foreign {
			s.dropped++
			continue
		}
		s.add(fields[0], fields[1], value)
	}
	return lines.Err()
}

func (s *samples) add(world, metric string, value float64) {
	if !slices.Contains(s.worlds, world) {
		s.worlds = append(s.worlds, world)
	}
	if !slices.Contains(s.metrics, metric) {
		s.metrics = append(s.metrics, metric)
	}
	key := [2]string{metric, world}
	s.values[key] = append(s.values[key], value)
}

// median returns 0 for no values.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	switch {
	case n == 0:
		return 0
	case n%2 == 1:
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}
