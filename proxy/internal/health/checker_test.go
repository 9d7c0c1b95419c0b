package health

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestBackendFallsAndRises(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		c := start(t, w, 0)
		c.SetService("web", check, targets(0, 3))
		time.Sleep(5 * every)
		wantUnhealthy(t, c)

		w.set(backend(1), Outcome{Failure, "connection refused"})
		began := time.Now()
		<-c.Changed()
		if took := time.Since(began); took > latest(check.Fall) || took < time.Duration(float64((check.Fall-1))*float64(every)*(1-jitter)) {
			t.Errorf("fell after %s, want about %d intervals of %s", took, check.Fall, every)
		}
		wantUnhealthy(t, c, backend(1))
		r := c.Unhealthy()[0]
		if r.Reason != "connection refused" || !r.Since.Equal(time.Now()) {
			t.Errorf("report %+v", r)
		}

		w.set(backend(1), Outcome{})
		began = time.Now()
		<-c.Changed()
		if took := time.Since(began); took > latest(check.Rise) {
			t.Errorf("rose after %s", took)
		}
		wantUnhealthy(t, c)
		if n := c.Counts("web"); n.Success == 0 || n.Failure < uint64(check.Fall) || n.Timeout != 0 {
			t.Errorf("counts %+v", n)
		}
	})
}

func TestVerdict(t *testing.T) {
	var v verdict
	bad := Outcome{Failure, "refused"}
	steps := []struct {
		o       Outcome
		changed bool
		bad     bool
	}{
		{bad, false, false},
		{bad, false, false},
		{Outcome{}, false, false}, // begins the count anew
		{bad, false, false},
		{Outcome{Timeout, "slow"}, false, false}, // counts like a failure
		{bad, true, true},
		{Outcome{}, false, true},
		{bad, false, true}, // begins the count anew
		{Outcome{}, false, true},
		{Outcome{}, true, false},
	}
	for i, s := range steps {
		if changed := v.take(s.o, 2, 3, time.Unix(int64(i), 0)); changed != s.changed || v.bad != s.bad {
			t.Errorf("step %d: changed %t, bad %t, want %t, %t", i, changed, v.bad, s.changed, s.bad)
		}
	}
	v = verdict{bad: true, reason: "old"}
	if v.take(bad, 2, 3, time.Time{}); v.reason != "refused" {
		t.Errorf("reason %q is not that of the last probe", v.reason)
	}
}

func TestFirstProbesAreSpreadAndLaterOnesJittered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 400
		w := newWorld()
		c := start(t, w, 0)
		began := time.Now()
		c.SetService("web", check, targets(0, n))
		time.Sleep(20 * every)
		var quarters [4]int
		for i := range n {
			times := w.times(backend(i))
			quarters[min(3, int(4*times[0].Sub(began)/every))]++
			for k := 1; k < len(times); k++ {
				low, high := time.Duration(float64(every)*(1-jitter)), time.Duration(float64(every)*(1+jitter))+2*grain
				if d := times[k].Sub(times[k-1]); d < low || d > high {
					t.Fatalf("backend %d was asked %s after the last time, want %s to %s", i, d, low, high)
				}
			}
		}
		for q, got := range quarters {
			if got < n/8 || got > n/2 {
				t.Errorf("quarter %d of the first interval has %d of %d first probes", q, got, n)
			}
		}
	})
}

func TestNewBackendIsHealthyAndProbedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		c := start(t, w, 0)
		c.SetService("web", check, targets(0, 2))
		time.Sleep(3 * every)
		w.set(backend(2), Outcome{Failure, "refused"})
		joined := time.Now()
		c.SetService("web", check, targets(0, 3))
		time.Sleep(10 * time.Millisecond)
		wantUnhealthy(t, c)
		if times := w.times(backend(2)); len(times) != 1 || times[0].Sub(joined) > 2*grain {
			t.Errorf("joined at %s, asked at %v", joined, times)
		}
		time.Sleep(latest(check.Fall))
		wantUnhealthy(t, c, backend(2))
	})
}

func TestReloadKeepsTheStateOfWhoStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		c := start(t, w, 0)
		for i := range 2 {
			w.set(backend(i), Outcome{Failure, "refused"})
		}
		c.SetService("web", check, targets(0, 4))
		time.Sleep(latest(check.Fall))
		wantUnhealthy(t, c, backend(0), backend(1))

		faster := check
		faster.Interval, faster.Timeout = every/4, every/4
		c.SetService("web", faster, targets(1, 3)) // without the first one
		wantUnhealthy(t, c, backend(1))
		before := len(w.times(backend(3)))
		time.Sleep(2 * every)
		if n := len(w.times(backend(3))) - before; n < 6 {
			t.Errorf("asked %d times in 4 of the new intervals and more", n)
		}
		wantUnhealthy(t, c, backend(1))

		gone := len(w.times(backend(0)))
		c.SetService("web", faster, targets(0, 4)) // and back: as new
		wantUnhealthy(t, c, backend(1))
		if time.Sleep(every); len(w.times(backend(0))) <= gone {
			t.Error("who came back is not probed")
		}
		c.RemoveService("web")
		wantUnhealthy(t, c)
		asked := len(w.times(backend(2)))
		time.Sleep(5 * every)
		if n := len(w.times(backend(2))) - asked; n > 0 {
			t.Errorf("asked %d times after the service went", n)
		}
	})
}

func TestProbeUnderWayOfARemovedBackendEndsUnheard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		c := start(t, w, 0)
		w.silence(backend(0))
		atOnce := check
		atOnce.Fall = 1
		c.SetService("web", atOnce, nil)
		c.SetService("web", atOnce, targets(0, 1))
		time.Sleep(check.Timeout / 2)
		if len(w.times(backend(0))) != 1 {
			t.Fatal("no probe is under way")
		}
		c.SetService("web", atOnce, nil)
		time.Sleep(5 * every)
		wantUnhealthy(t, c)
		if n := len(w.times(backend(0))); n != 1 {
			t.Errorf("asked %d times, although it went during the first", n)
		}
		if n := c.Counts("web"); n != (Counts{}) {
			t.Errorf("counts %+v", n)
		}
	})
}

func TestAnotherContainerAtTheAddressBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		c := start(t, w, 0)
		one := targets(0, 1)
		one[0].Endpoint = "old"
		w.set(one[0].Backend, Outcome{Failure, "refused"})
		c.SetService("web", check, one)
		time.Sleep(latest(check.Fall))
		wantUnhealthy(t, c, one[0].Backend)
		<-c.Changed()
		next := targets(0, 1)
		next[0].Endpoint = "new"
		w.set(next[0].Backend, Outcome{})
		c.SetService("web", check, next)
		wantUnhealthy(t, c)
		<-c.Changed()
	})
}

func TestWhatWasUnhealthyBeforeARestartStaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		c := start(t, w, 0)
		was := targets(0, 2)
		since := time.Now().Add(-time.Hour)
		was[1].Reason, was[1].Since = "refused", since
		c.SetService("web", check, was)
		wantUnhealthy(t, c, backend(1))
		if r := c.Unhealthy()[0]; !r.Since.Equal(since) {
			t.Errorf("unhealthy since %s, want %s", r.Since, since)
		}
		time.Sleep(latest(check.Rise))
		wantUnhealthy(t, c) // it answers now
	})
}

// Backends that swallow packets take a probe's whole timeout each. They must not hold up the others,
// nor let goroutines grow without limit.
func TestSilentBackendsDelayNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit, silent, well = 40, 200, 50
		w := newWorld()
		c := start(t, w, limit)
		for i := range silent {
			w.silence(backend(i))
		}
		c.SetService("web", check, targets(0, silent+well))
		time.Sleep(20 * every) // the silent ones are known by now
		for i := silent; i < silent+well; i++ {
			times := w.times(backend(i))
			if len(times) < 15 {
				t.Fatalf("backend %d was asked %d times in 20 intervals", i, len(times))
			}
			recent := times[len(times)-4:]
			for k := 1; k < len(recent); k++ {
				if d := recent[k].Sub(recent[k-1]); d > latest(1) {
					t.Errorf("backend %d was asked %s after the last time", i, d)
				}
			}
		}
		if got := len(c.Unhealthy()); got != silent {
			t.Errorf("%d are unhealthy, want the %d silent ones", got, silent)
		}
		if w.most > limit {
			t.Errorf("%d probes at once, want at most %d", w.most, limit)
		}
	})
}

func TestNodeThatCannotProbeBlamesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		c := start(t, w, 0)
		w.set(backend(0), Outcome{Unknown, "too many open files"})
		c.SetService("web", check, targets(0, 1))
		time.Sleep(10 * every)
		wantUnhealthy(t, c)
		if n := c.Counts("web"); n != (Counts{}) {
			t.Errorf("counts %+v", n)
		}
		if len(w.times(backend(0))) < 5 {
			t.Error("it is not tried again")
		}
	})
}

func TestOneLinePerChangeOfState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text strings.Builder
		w := newWorld()
		c := New(Options{Probe: w.probe, Log: slog.New(slog.NewTextHandler(&text, nil))})
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() { _ = c.Run(ctx) })
		w.set(backend(0), Outcome{Failure, "status 503"})
		c.SetService("web", check, targets(0, 2))
		time.Sleep(10 * every)
		w.set(backend(0), Outcome{})
		time.Sleep(10 * every)
		cancel()
		done.Wait()
		lines := strings.Split(strings.TrimSpace(text.String()), "\n")
		if len(lines) != 2 || !strings.Contains(lines[0], `msg="backend is unhealthy" service=web backend=198.51.100.0:80 reason="status 503"`) ||
			!strings.Contains(lines[1], `msg="backend is healthy again" service=web backend=198.51.100.0:80`) {
			t.Errorf("log:\n%s", text.String())
		}
	})
}
