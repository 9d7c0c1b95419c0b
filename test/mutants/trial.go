package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// verdict says what became of a mutant.
type verdict string

const (
	killed   verdict = "killed"
	survived verdict = "survived"
	broken   verdict = "error" // it says nothing about the tests: the list has to be mended
)

// outcome is a mutant's end.
type outcome struct {
	mutant
	verdict
	by   string // the test that noticed it
	why  string // with broken
	took time.Duration
}

// One test that hangs must not take the rest of the run with it.
const testTimeout = "3m"

var (
	testResult = regexp.MustCompile(`(?m)^--- (PASS|FAIL|SKIP): (\S+)`)
	notBuilt   = regexp.MustCompile(`(?m)^FAIL\t.*\[(build|setup) failed\]`)
	// What the kernel refuses to load fails every test and is noticed by none.
	refused = regexp.MustCompile(`load program: .*`)
)

// runTests runs tests of a package of the tree and returns their results by name, what they wrote, and
// whether they failed.
func (t *tree) runTests(ctx context.Context, pkg string, tests []string) (results map[string]string, out string, failed bool, err error) {
	pattern := "^(" + strings.Join(tests, "|") + ")$"
	out, err = t.command(ctx, ".", "go", "test", "-vet=off", "-count=1", "-v", "-timeout", testTimeout, "-run", pattern, pkg)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		failed = true
	case err != nil:
		return nil, out, false, fmt.Errorf("go test: %w", err)
	}
	if notBuilt.MatchString(out) {
		return nil, out, true, fmt.Errorf("does not build:\n%s", out)
	}
	if m := refused.FindString(out); m != "" {
		return nil, out, true, fmt.Errorf("the kernel does not take it: %s", m)
	}
	results = make(map[string]string)
	for _, m := range testResult.FindAllStringSubmatch(out, -1) {
		results[m[2]] = m[1]
	}
	return results, out, failed, nil
}

// try puts one mutant into the tree, runs its tests and takes it out.
func (t *tree) try(ctx context.Context, m mutant) (o outcome) {
	began := time.Now()
	o = outcome{mutant: m, verdict: broken}
	defer func() { o.took = time.Since(began) }()
	restore, err := t.mutate(ctx, m)
	if err != nil {
		o.why = err.Error()
		return o
	}
	results, _, failed, err := t.runTests(ctx, m.pkg, m.test)
	if restored := restore(); err != nil || restored != nil {
		o.why = errors.Join(err, restored).Error()
		return o
	}
	o.verdict = survived
	if failed {
		o.verdict, o.by = killed, "a crash"
		for _, name := range m.test {
			if results[name] == "FAIL" {
				o.by = name
			}
		}
	}
	return o
}

// sane runs the mutants' tests on the unbroken tree. What fails, is skipped or does not exist there
// proves nothing; it returns why, by package and test.
func (t *tree) sane(ctx context.Context, mutants []mutant) (map[string]string, error) {
	tests := make(map[string]map[string]bool)
	for _, m := range mutants {
		if tests[m.pkg] == nil {
			tests[m.pkg] = make(map[string]bool)
		}
		for _, name := range m.test {
			tests[m.pkg][name] = true
		}
	}
	bad := make(map[string]string)
	for pkg, names := range tests {
		results, out, _, err := t.runTests(ctx, pkg, slices.Sorted(maps.Keys(names)))
		if err != nil {
			return nil, fmt.Errorf("%s without a mutant: %w", pkg, err)
		}
		for name := range names {
			switch results[name] {
			case "PASS":
			case "FAIL":
				bad[pkg+" "+name] = "fails without the mutant:\n" + outputOf(name, out)
			case "SKIP":
				bad[pkg+" "+name] = "is skipped"
			default:
				bad[pkg+" "+name] = "does not exist, or did not run to its end"
			}
		}
	}
	return bad, nil
}

// outputOf returns what one test wrote, its subtests included.
func outputOf(test, out string) string {
	var own []string
	inside := false
	for _, line := range strings.Split(out, "\n") {
		if running, found := strings.CutPrefix(line, "=== RUN   "); found {
			inside = running == test || strings.HasPrefix(running, test+"/")
		}
		if inside {
			own = append(own, line)
		}
	}
	return strings.Join(own, "\n")
}

// runner tries mutants in copies of the tree below root, several at a time.
type runner struct {
	root string
	jobs int
	done func(outcome) // called for each, one at a time
}

// trials is one run: mutants are handed out once their tests are known to be sane.
type trials struct {
	runner
	mutants []mutant
	queue   chan mutant
	sane    chan struct{}     // closed when bad is known
	bad     map[string]string // by package and test: why it proves nothing
	lock    sync.Mutex        // of done
}

// run tries all mutants.
func (r runner) run(ctx context.Context, mutants []mutant) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	all := &trials{runner: r, mutants: mutants, queue: make(chan mutant), sane: make(chan struct{})}
	var group sync.WaitGroup
	for worker := range min(r.jobs, len(mutants)) {
		group.Go(func() {
			if err := all.work(ctx, worker == 0); err != nil {
				cancel(err)
			}
		})
	}
	group.Go(func() { all.handOut(ctx) })
	group.Wait()
	return context.Cause(ctx)
}

// handOut fills the queue.
func (a *trials) handOut(ctx context.Context) {
	defer close(a.queue)
	select {
	case <-a.sane:
	case <-ctx.Done():
		return
	}
	for _, m := range a.mutants {
		select {
		case a.queue <- m:
		case <-ctx.Done():
			return
		}
	}
}

// work tries mutants of the queue in a copy of the tree. The first worker looks at the tests before.
func (a *trials) work(ctx context.Context, first bool) (err error) {
	t, err := a.prepare(ctx, a.mutants)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.remove()) }()
	if first {
		if a.bad, err = t.sane(ctx, a.mutants); err != nil {
			return err
		}
		close(a.sane)
	}
	for m := range a.queue {
		o := t.tryIfSane(ctx, m, a.bad)
		if ctx.Err() != nil {
			return nil
		}
		a.lock.Lock()
		a.done(o)
		a.lock.Unlock()
	}
	return nil
}

func (r runner) prepare(ctx context.Context, mutants []mutant) (*tree, error) {
	t, err := newTree(r.root)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(mutants, mutant.generates) {
		if err := t.prepare(ctx); err != nil {
			return nil, errors.Join(err, t.remove())
		}
	}
	return t, nil
}

func (t *tree) tryIfSane(ctx context.Context, m mutant, bad map[string]string) outcome {
	for _, name := range m.test {
		if why := bad[m.pkg+" "+name]; why != "" {
			return outcome{mutant: m, verdict: broken, why: name + " " + why}
		}
	}
	return t.try(ctx, m)
}
