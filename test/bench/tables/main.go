// Command tables compares tclb's lookup tables with textbook Maglev: how many slots an event moves that
// it need not, how even a fresh table is, how long it takes to build.
package main

import (
	"cmp"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/sched"
)

type member struct {
	name   string
	weight int
}

// event is what happens to a service of a few backends.
type event struct {
	name   string
	change func(list []member) []member
}

var events = []event{
	{"one backend goes", func(l []member) []member { return append(slices.Clone(l[:3]), l[4:]...) }},
	{"a tenth goes", func(l []member) []member { return l[max(1, len(l)/10):] }},
	{"one backend comes", func(l []member) []member { return append(slices.Clone(l), member{"newcomer", 100}) }},
	{"one weight halves", func(l []member) []member { l = slices.Clone(l); l[3].weight = 50; return l }},
	{"one in maintenance", func(l []member) []member { l = slices.Clone(l); l[3].weight = 0; return l }},
}

// builder makes tables of one kind, each from the one before.
type builder interface{ table(members []member) []string }

// ours is a service's table as the proxy keeps it.
type ours struct{ base sched.Base }

func (o *ours) table(members []member) []string {
	list := make([]sched.Member, len(members))
	for i, m := range members {
		list[i] = sched.Member{Key: m.name, Weight: uint32(m.weight)}
	}
	if _, err := o.base.Update(list); err != nil {
		panic(err) // no list here is too long or has a name twice
	}
	seats, err := o.base.Table(o.base.Excluded(list))
	if err != nil {
		panic(err)
	}
	out := make([]string, len(seats))
	for slot, seat := range seats {
		out[slot] = o.base.Seats[seat].Key
	}
	return out
}

// needless returns the share of flows that moved although their backend stayed and neither it nor the
// one that they went to changed. Tables of two sizes are compared at the same hashes.
func needless(before, after []string, was, is []member) float64 {
	old, now := byName(was), byName(is)
	n, moved := max(len(before), len(after)), 0
	for i := range n {
		a, b := before[i*len(before)/n], after[i*len(after)/n]
		if a != b && old[a] == now[a] && old[b] == now[b] {
			moved++
		}
	}
	return float64(moved) / float64(n)
}

func byName(list []member) map[string]int {
	out := make(map[string]int, len(list))
	for _, m := range list {
		out[m.name] = m.weight
	}
	return out
}

// uneven returns the largest share of a table, by what its backend's weight entitles it to.
func uneven(table []string, list []member) float64 {
	count := make(map[string]int)
	for _, name := range table {
		count[name]++
	}
	sum, most := 0, 0.0
	for _, m := range list {
		sum += m.weight
	}
	for _, m := range list {
		if m.weight > 0 {
			most = max(most, float64(count[m.name])*float64(sum)/float64(m.weight)/float64(len(table)))
		}
	}
	return most
}

// result is one line of the comparison: ours and the textbook's.
type result struct {
	backends    int
	what        string
	ours, maglv float64
}

func main() {
	plot := flag.String("plot", "", "file for the plot")
	flag.Parse()
	results := compare([]int{5, 50, 1000})
	print(os.Stdout, results)
	if *plot == "" {
		return
	}
	f, err := os.Create(*plot)
	if err == nil {
		draw(f, results)
		err = f.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tables:", err)
		os.Exit(1)
	}
}

// rounds is how often chance has its turn: the median counts.
const rounds = 5

func compare(counts []int) []result {
	var out []result
	for _, n := range counts {
		list := make([]member, n)
		for i := range list {
			list[i] = member{fmt.Sprintf("198.51.%d.%d", i>>8, i&255), 100}
		}
		both := func(f func(b builder) float64) (float64, float64) {
			return f(new(ours)), median(func() float64 { return f(newTextbook(n)) })
		}
		a, b := both(func(b builder) float64 { return uneven(b.table(list), list) })
		out = append(out, result{n, "largest share of ideal", a, b})
		for _, e := range events {
			changed := e.change(list)
			a, b := both(func(b builder) float64 { return needless(b.table(list), b.table(changed), list, changed) })
			out = append(out, result{n, e.name + ": moved needlessly", a, b})
			a, b = both(func(b builder) float64 {
				before := b.table(list)
				b.table(changed)
				return needless(before, b.table(list), list, list)
			})
			out = append(out, result{n, e.name + " and is undone", a, b})
		}
		a, b = both(func(b builder) float64 {
			began := time.Now()
			b.table(list)
			return time.Since(began).Seconds() * 1000
		})
		out = append(out, result{n, "build, ms", a, b})
	}
	return out
}

func median(f func() float64) float64 {
	samples := make([]float64, rounds)
	for i := range samples {
		samples[i] = f()
	}
	slices.SortFunc(samples, cmp.Compare[float64])
	return samples[rounds/2]
}

func print(w io.Writer, results []result) {
	fmt.Fprintf(w, "\n## Lookup tables: tclb and textbook Maglev of a like size\n\n| backends | | tclb | Maglev |\n|---|---|---|---|\n")
	for _, r := range results {
		fmt.Fprintf(w, "| %d | %s | %s | %s |\n", r.backends, r.what, show(r, r.ours), show(r, r.maglv))
	}
}

func show(r result, v float64) string {
	switch r.what {
	case "largest share of ideal":
		return fmt.Sprintf("%.3f", v)
	case "build, ms":
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.2f %%", 100*v)
}
