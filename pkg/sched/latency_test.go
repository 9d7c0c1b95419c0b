package sched

import "testing"

func TestLatencyRisesAtOnceAndFallsSlowly(t *testing.T) {
	var l Latency
	learn := func(ns uint64, now, want uint32) {
		t.Helper()
		if l = l.Learn(ns, now); l.NS != want {
			t.Errorf("after %d at %d: %d, want %d", ns, now, l.NS, want)
		}
	}
	learn(1000, 5000, 1000)
	learn(8000, 5001, 8000)
	learn(0, 5001+LatencyTicks/2, 6001)           // 0 counts as 1; three quarters of what was above are left
	learn(2000, 5001+LatencyTicks*3/2, 2000+2000) // half of it
	learn(10, 5001+LatencyTicks*3/2+30, 4000)     // so young: nothing
	learn(1<<40, 5001+LatencyTicks*2, 1<<32-1)    // as much as there is room for
	learn(7, 5001+LatencyTicks*40, 7)             // nothing is left
	learn(0, 5001+LatencyTicks*80, 1)             // 0 stands for never
	learn(5000, 1<<32-10, 5000)
	if got := l.At(990); got != 2500 { // a second later, over the wrap
		t.Errorf("after a second %d are left, want 2500", got)
	}
}

func TestSpared(t *testing.T) {
	for _, c := range []struct {
		refused, now uint32
		trial        bool
		load, active uint32
		want         bool
	}{
		{0, 100000, false, 5, 0, false},
		{99000, 100000, false, 0, 0, true},
		{97001, 100000, false, 0, 0, true},
		{97000, 100000, false, 0, 0, false},
		{1<<32 - 100, 500, false, 0, 0, true}, // over the wrap
		{0, 100000, true, 2, 2, false},
		{0, 100000, true, 3, 2, true},
	} {
		if got := Spared(c.refused, c.now, c.trial, c.load, c.active); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
}
