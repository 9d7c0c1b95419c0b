package outlier

import (
	"context"
	"net/netip"
	"testing"
	"time"
)

// refuse lets a backend refuse three clients between two polls.
func (w *world) refuse(ids ...uint32) {
	for _, id := range ids {
		w.refused(id, 3)
	}
	w.poll()
}

func TestEjectionsGetLongerAndAreForgotten(t *testing.T) {
	w := newWorld(t)
	w.judge.SetService("web", targets(2))
	w.refuse(1)
	for _, d := range []time.Duration{5, 10, 20, 40, 80, 160, 300, 300} {
		w.polls(d*time.Second-Every, nil)
		w.expect("1", "")
		w.poll()
		w.expect("", "1")
		w.refused(1, 1)
		w.poll()
		w.expect("1", "")
	}
	prove := func(lasts time.Duration) {
		w.polls(lasts-Every, nil)
		w.expect("1", "")
		w.poll()
		w.expect("", "1")
		w.answered(1, enough)
		w.poll()
		w.expect("", "")
	}
	prove(300 * time.Second)

	// It fails again before it has served as long as it was out.
	w.polls(299*time.Second, nil)
	w.refuse(1)
	prove(300 * time.Second)

	w.polls(301*time.Second, nil)
	w.refuse(1)
	prove(5 * time.Second)

	// After a short ejection it must have served for a minute.
	w.polls(59*time.Second, nil)
	w.refuse(1)
	prove(10 * time.Second)
	w.polls(61*time.Second, nil)
	w.refuse(1)
	prove(5 * time.Second)
}

// trial returns a world of four backends, the first of which is on trial for what an id counted.
func trial(t *testing.T, id uint32) *world {
	w := newWorld(t)
	w.judge.SetService("web", targets(4))
	w.add(id, Counts{Rejected: 3})
	w.poll()
	w.expect("1", "")
	w.polls(5*time.Second, nil)
	w.expect("", "1")
	return w
}

func TestTrialEndsByWhatTheFlowsMeet(t *testing.T) {
	for _, tt := range []struct {
		name           string
		id             uint32
		traffic        func(w *world)
		within         time.Duration
		ejected, trial string
		reason         string
	}{
		{"no traffic", 1, func(*world) {}, time.Hour, "", "1", "port 8080/tcp: 3 of 3 connections refused in 1s"},
		{"three answers", 1, func(w *world) { w.answered(1, 3) }, Every, "", "", ""},
		{"two answers", 1, func(w *world) { w.answered(1, 2) }, time.Minute, "", "1", ""},
		{"one is refused", 1, func(w *world) { w.answered(1, 2); w.refused(1, 1) }, Every, "1", "", "port 8080/tcp: refused on trial"},
		{"one is unanswered", 1, func(w *world) { w.ignored(1, 1) }, 400 * time.Millisecond, "1", "", "port 8080/tcp: unanswered on trial"},
		{"another port answers", 101, func(w *world) { w.answered(1, 50) }, time.Minute, "", "1", ""},
		{"another port refuses", 101, func(w *world) { w.refused(1, 1) }, Every, "1", "", "port 8080/tcp: refused on trial"},
		{"UDP flows", 101, func(w *world) { w.add(101, Counts{Flows: 3}) }, time.Second + Every, "", "", ""},
		{"too few UDP flows", 101, func(w *world) { w.add(101, Counts{Flows: 2}) }, time.Minute, "", "1", ""},
		{"UDP flows one of which is refused", 101, func(w *world) { w.add(101, Counts{Flows: 30, Rejected: 1}) }, Every, "1", "", "port 53/udp: refused on trial"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := trial(t, tt.id)
			tt.traffic(w)
			w.polls(tt.within, nil)
			w.expect(tt.ejected, tt.trial)
			if tt.reason != "" && w.reason("198.51.100.1") != tt.reason {
				t.Errorf("reason %q, want %q", w.reason("198.51.100.1"), tt.reason)
			}
		})
	}
}

func TestRefusedDatagramAfterThreeFlowsEndsTheTrial(t *testing.T) {
	w := trial(t, 101)
	w.add(101, Counts{Flows: 3})
	w.polls(900*time.Millisecond, nil)
	w.expect("", "1")
	w.add(101, Counts{Rejected: 1})
	w.poll()
	w.expect("1", "")
}

func TestPortThatFailsOnTrialMustProveItselfToo(t *testing.T) {
	w := trial(t, 101)
	w.refused(1, 1)
	w.poll()
	w.polls(10*time.Second, nil)
	w.expect("", "1")
	w.polls(5*time.Second, func() { w.add(101, Counts{Flows: 3}) })
	w.expect("", "1")
	w.answered(1, 3)
	w.poll()
	w.expect("", "")
}

func TestWhatHappenedDuringTheEjectionDoesNotCountOnTrial(t *testing.T) {
	w := newWorld(t)
	w.judge.SetService("web", targets(2))
	w.refuse(1)
	w.polls(5*time.Second-Every, nil)
	w.ignored(1, 5)
	w.add(1, Counts{Rejected: 5, Answered: 5})
	w.poll()
	w.expect("", "1")
	w.polls(10*time.Second, nil)
	w.expect("", "1")
}

func TestAtMostHalfAreOut(t *testing.T) {
	for n, want := range map[int]string{1: "", 2: "1", 3: "1", 4: "1 2", 5: "1 2", 10: "1 2 3 4 5"} {
		w := newWorld(t)
		w.judge.SetService("web", targets(n))
		ids := make([]uint32, n)
		for i := range ids {
			ids[i] = uint32(i + 1)
		}
		for range 20 {
			w.refuse(ids...)
			w.expect(want, "")
		}
	}
}

func TestWorstAreEjectedFirst(t *testing.T) {
	w := newWorld(t)
	w.judge.SetService("web", targets(4))
	for id := range uint32(4) {
		w.refused(id+1, 3+id)
	}
	w.poll()
	w.expect("3 4", "")
}

func TestFamiliesAreCappedByThemselves(t *testing.T) {
	w := newWorld(t)
	all := targets(4)
	all[2].Address, all[3].Address = netip.MustParseAddr("2001:db8::3"), netip.MustParseAddr("2001:db8::4")
	w.judge.SetService("web", all)
	w.refuse(1, 2, 3, 4)
	w.expect("1 3", "")
}

func TestWhoWouldNotServeIsNoReserve(t *testing.T) {
	w := newWorld(t)
	all := targets(4)
	all[0].Able, all[2].Able = false, false
	w.judge.SetService("web", all)
	w.refuse(1, 2, 3, 4)
	w.expect("2", "") // of 2 and 4; the others get no new flows anyway
}

func TestCapThatShrinksLetsTheFirstReturn(t *testing.T) {
	w := newWorld(t)
	all := targets(4)
	w.judge.SetService("web", all)
	w.refuse(2)
	w.refuse(1)
	w.expect("1 2", "")
	all[2].Able = false // by its health check
	w.judge.SetService("web", all)
	w.poll()
	w.expect("1", "2")
	w.refuse(2) // it cannot be helped: of three one may be out
	w.expect("1", "2")
	all[3].Able = false
	w.judge.SetService("web", all)
	w.poll()
	w.expect("1", "2")
	all[1].Able = false
	w.judge.SetService("web", all)
	w.poll()
	w.expect("", "1 2")
}

// A backend on trial can carry no load, so nobody else goes meanwhile.
func TestTrialCountsAsOut(t *testing.T) {
	w := newWorld(t)
	w.judge.SetService("web", targets(2))
	w.refuse(1)
	w.polls(5*time.Second, nil)
	w.expect("", "1")
	w.refuse(2)
	w.expect("", "1")
	w.answered(1, 3)
	w.poll()
	w.expect("2", "")
}

func TestRemovedServiceLetsEverybodyReturn(t *testing.T) {
	w := newWorld(t)
	w.judge.SetService("web", targets(4))
	w.judge.SetService("dns", targets(4))
	w.refuse(1)
	w.expect("1 1", "") // the ids are the same
	<-w.judge.Changed()
	w.judge.RemoveService("web")
	<-w.judge.Changed()
	if r := w.judge.Outliers(); len(r) != 1 || r[0].Service != "dns" || r[0].Since != w.now {
		t.Errorf("%+v", r)
	}
	if got := w.judge.Tally("web"); got != (Tally{}) {
		t.Errorf("tally of a service that is not watched: %+v", got)
	}
}

func TestTallyCountsEjectionsByReason(t *testing.T) {
	w := newWorld(t)
	w.judge.SetService("web", targets(4))
	w.ignored(1, 3)
	w.refuse(2)
	w.polls(time.Second, nil)
	if got := w.judge.Tally("web"); got != (Tally{Refused: 1, Unanswered: 1, Ejected: 2}) {
		t.Errorf("tally %+v", got)
	}
	w.polls(4*time.Second, nil)
	w.expect("1", "2")
	w.refused(2, 1)
	w.poll()
	w.judge.SetService("web", targets(3))
	if got := w.judge.Tally("web"); got != (Tally{Refused: 2, Unanswered: 1, Ejected: 2}) {
		t.Errorf("tally %+v", got)
	}
}

func TestRunPollsWhileSomebodyIsWatched(t *testing.T) {
	read := make(chan uint32)
	j := New(func(id uint32) Counts { read <- id; return Counts{} }, noLog)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- j.Run(ctx) }()
	go j.SetService("web", targets(1))
	for range 6 { // two of them by SetService
		<-read
	}
	cancel()
	for {
		select {
		case <-read:
			continue
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		}
		return
	}
}

func BenchmarkPollIdle(b *testing.B) {
	j := New(func(uint32) Counts { return Counts{} }, noLog)
	all := make([]Target, 10000)
	for i := range all {
		all[i] = targets(1)[0]
		all[i].Address = netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		all[i].Ports[0].ID = uint32(i)
	}
	j.SetService("web", all)
	now := time.Unix(1000, 0)
	for b.Loop() {
		now = now.Add(Every)
		j.Poll(now)
	}
}
