// The command mutants breaks the code on purpose, one small mistake at a time, and checks that a test
// notices each. What survives shows a test that is missing.
//
// It works in copies of the tree and never in the checkout. The mistakes are in list/, and README.md
// says how one is written.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("mutants", flag.ContinueOnError)
	root := flags.String("root", ".", "top of the source tree")
	sample := flags.Int("sample", 0, "how many to take at random; 0 takes all")
	seed := flags.Uint64("seed", 0, "of the sample; 0 takes another one each time")
	only := flags.String("only", "", "names or items to take, a regular expression")
	jobs := flags.Int("jobs", runtime.NumCPU(), "copies of the tree to work in at once")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("run it as root, as the tests are")
	}
	pattern, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	all, err := readLists(filepath.Join(*root, "test", "mutants", "list"))
	if err != nil {
		return err
	}
	var chosen []mutant
	for _, m := range all {
		if pattern.MatchString(m.name) || pattern.MatchString(m.item) {
			chosen = append(chosen, m)
		}
	}
	if *sample > 0 && *sample < len(chosen) {
		if *seed == 0 {
			*seed = uint64(time.Now().UnixNano())
		}
		fmt.Fprintf(out, "%d of %d mutants: SAMPLE=%d SEED=%d\n", *sample, len(chosen), *sample, *seed)
		rand.New(rand.NewPCG(*seed, 0)).Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
		chosen = chosen[:*sample]
	}
	return tryAll(ctx, runner{root: *root, jobs: max(*jobs, 1)}, chosen, out)
}

// tryAll tries the mutants and reports each; an error says that not all were killed.
func tryAll(ctx context.Context, r runner, mutants []mutant, out io.Writer) error {
	if len(mutants) == 0 {
		return errors.New("no mutant is chosen")
	}
	began := time.Now()
	count := make(map[verdict]int)
	r.done = func(o outcome) {
		count[o.verdict]++
		fmt.Fprintf(out, "%-8s %5.1f s  %-28s %-12s %s\n", o.verdict, o.took.Seconds(), o.name, o.item, o.by)
		switch o.verdict {
		case survived:
			fmt.Fprintf(out, "%s\n  no test of %s fails: %s\n", o.diff(), o.pkg, strings.Join(o.test, " "))
		case broken:
			fmt.Fprintf(out, "  %s\n", strings.ReplaceAll(strings.TrimSpace(o.why), "\n", "\n  "))
		}
	}
	if err := r.run(ctx, mutants); err != nil {
		return err
	}
	fmt.Fprintf(out, "%d killed, %d survived, %d errors in %.0f s\n", count[killed], count[survived], count[broken], time.Since(began).Seconds())
	if n := len(mutants) - count[killed]; n > 0 {
		return fmt.Errorf("%d of %d mutants were not killed", n, len(mutants))
	}
	return nil
}

// diff shows the mistake as its list does.
func (m mutant) diff() string {
	lines := []string{"  " + m.file + " (" + m.at + ")"}
	for _, l := range strings.Split(m.old, "\n") {
		lines = append(lines, "  - "+l)
	}
	for _, l := range strings.Split(m.new, "\n") {
		lines = append(lines, "  + "+l)
	}
	return strings.Join(lines, "\n")
}
