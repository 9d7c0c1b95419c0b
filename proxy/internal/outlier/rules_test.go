package outlier

import (
	"math"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

func TestWhoFailsIsEjected(t *testing.T) {
	for _, tt := range []struct {
		name     string
		traffic  func(w *world, tick int) // of a tick; those below 0 are a second before
		min, max time.Duration            // when it is out; 0 = never
		reason   string
	}{
		{"refuses all", func(w *world, tick int) {
			if tick < 0 {
				w.answered(1, 10)
			} else {
				w.refused(1, 10)
			}
		}, 400 * time.Millisecond, 500 * time.Millisecond, "port 8080/tcp: 40 of 40 connections refused in 400ms"},
		{"ignores all", func(w *world, tick int) {
			if tick < 0 {
				w.answered(1, 10)
			} else {
				w.ignored(1, 10)
			}
		}, 400 * time.Millisecond, 500 * time.Millisecond, "port 8080/tcp: 10 of 10 connections unanswered in 400ms"},
		{"refuses three after silence", func(w *world, tick int) {
			if tick == 0 {
				w.refused(1, 3)
			}
		}, Every, Every, "port 8080/tcp: 3 of 3 connections refused in 1s"},
		{"ignores three after silence", func(w *world, tick int) {
			if tick == 0 {
				w.ignored(1, 3)
			}
		}, 400 * time.Millisecond, 400 * time.Millisecond, "port 8080/tcp: 3 of 3 connections unanswered in 1s"},
		{"ignores two", func(w *world, tick int) {
			if tick == 0 {
				w.ignored(1, 2)
			}
		}, 0, 0, ""},
		{"refuses one, and is passed over", func(w *world, tick int) {
			if tick <= 0 {
				w.answered(1, 50)
			}
			if tick == 0 {
				w.refused(1, 1)
			}
		}, 400 * time.Millisecond, 400 * time.Millisecond, "port 8080/tcp: refused, and answered nobody since"},
		{"refuses one, and then answers", func(w *world, tick int) {
			if tick == 0 {
				w.refused(1, 1)
			}
			if tick == 2 {
				w.answered(1, 1)
			}
		}, 0, 0, ""},
		{"ignores three, too slowly", func(w *world, tick int) {
			if tick%5 == 0 {
				w.ignored(1, 1)
			}
		}, 0, 0, ""},
		{"refuses half", func(w *world, tick int) {
			w.answered(1, 1)
			if tick >= 0 {
				w.refused(1, 1)
			}
		}, time.Second, time.Second, "port 8080/tcp: 10 of 20 connections refused in 1s"},
		{"refuses a third", func(w *world, _ int) { w.answered(1, 2); w.refused(1, 1) }, 0, 0, ""},
		{"ignores two of three", func(w *world, tick int) {
			w.answered(1, 10)
			if tick >= 0 {
				w.ignored(1, 20)
			}
		}, 500 * time.Millisecond, 1200 * time.Millisecond, ""},
		{"ignores one in a hundred, for ever", func(w *world, _ int) { w.answered(1, 99); w.ignored(1, 1) }, 0, 0, ""},
		{"refuses some and ignores others", func(w *world, tick int) {
			if tick == 0 {
				w.refused(1, 2)
				w.ignored(1, 2)
			}
		}, 400 * time.Millisecond, 400 * time.Millisecond, "port 8080/tcp: 4 of 4 connections unanswered or refused in 1s"},
		{"UDP refused", func(w *world, tick int) {
			w.add(101, Counts{Flows: 100})
			if tick == 0 {
				w.add(101, Counts{Rejected: 3})
			}
		}, Every, Every, "port 53/udp: 3 datagrams refused in 1s"},
		{"UDP unanswered", func(w *world, _ int) { w.add(101, Counts{Flows: 100}) }, 0, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.judge.SetService("web", targets(2))
			tick := -10
			traffic := func() { tt.traffic(w, tick); tick++ }
			w.polls(time.Second, traffic)
			w.expect("", "")
			if tt.max == 0 {
				w.polls(3*time.Minute, traffic)
				w.expect("", "")
				return
			}
			if took := w.out(traffic); took < tt.min || took > tt.max {
				t.Errorf("ejected after %v, want %v to %v", took, tt.min, tt.max)
			}
			w.expect("1", "")
			if got := w.reason("198.51.100.1"); tt.reason != "" && got != tt.reason {
				t.Errorf("reason %q, want %q", got, tt.reason)
			}
		})
	}
}

// A SYN-ACK that takes two readings is none that is missing, whatever comes and goes meanwhile.
func TestSlowAnswersAreAnswers(t *testing.T) {
	w := newWorld(t)
	w.judge.SetService("web", targets(2))
	var sent []uint32
	for i := range 600 {
		n := uint32(50)
		if i/20%2 == 1 {
			n = 0 // bursts
		}
		sent = append(sent, n)
		w.add(1, Counts{SYNs: n})
		if i >= 2 {
			w.add(1, Counts{Answered: sent[i-2]})
		}
		w.poll()
		w.expect("", "")
	}
}

// Counters are read one after the other: an answer may be there a reading before its SYN.
func TestAnswerSeenBeforeItsSYNCounts(t *testing.T) {
	w := newWorld(t)
	w.judge.SetService("web", targets(2))
	for range 50 {
		w.add(1, Counts{Answered: 5})
		w.poll()
		w.add(1, Counts{SYNs: 5})
		w.poll()
		w.expect("", "")
	}
	w.polls(2*time.Second, nil)
	w.add(1, Counts{Answered: 5})
	w.poll()
	w.add(1, Counts{SYNs: 5})
	w.polls(2*time.Second, nil)
	w.expect("", "")
	// But it is no credit for later: these were never answered.
	w.add(1, Counts{Answered: 5})
	w.polls(2*time.Second, nil)
	w.ignored(1, 5)
	w.polls(500*time.Millisecond, nil)
	w.expect("1", "")
}

func TestCountersWrap(t *testing.T) {
	w := newWorld(t)
	w.counts[1] = Counts{Flows: math.MaxUint32 - 4, SYNs: math.MaxUint32 - 4, Answered: math.MaxUint32 - 2, Rejected: math.MaxUint32}
	w.judge.SetService("web", targets(2))
	w.polls(5*time.Second, func() { w.answered(1, 3) })
	w.expect("", "")
	w.counts[1] = Counts{Rejected: math.MaxUint32}
	w.poll() // SYNs and answers are far from where they were: they began anew
	w.refused(1, 3)
	w.poll()
	w.expect("1", "")
}

func TestCountersThatBeginAnewBlameNobody(t *testing.T) {
	w := newWorld(t)
	w.judge.SetService("web", targets(2))
	w.answered(1, 1000)
	w.refused(1, 500)
	w.poll()
	w.ignored(1, 100) // nobody will know of them
	w.poll()
	w.counts[1] = Counts{}
	w.polls(2*time.Second, nil)
	w.expect("", "")
	w.refused(1, 2)
	w.poll()
	w.expect("", "")
	w.refused(1, 1)
	w.poll()
	w.expect("1", "")
}

func TestReasonIsThatOfTheWorstPort(t *testing.T) {
	w := newWorld(t)
	all := targets(2)
	all[0].Ports = append(all[0].Ports, Port{9, 9090, lb.TCP})
	w.judge.SetService("web", all)
	w.refused(1, 4)
	w.refused(101, 7)
	w.add(101, Counts{Rejected: 7})
	w.refused(9, 5)
	w.poll()
	if got, want := w.reason("198.51.100.1"), "port 53/udp: 14 datagrams refused in 1s"; got != want {
		t.Errorf("reason %q, want %q", got, want)
	}
}

// Who failed while too many others were out goes when there is room, if it has not answered since.
func TestRefusalWaitsForRoom(t *testing.T) {
	w := newWorld(t)
	w.judge.SetService("web", targets(2))
	w.refuse(1)
	w.refused(2, 1)
	w.polls(5*time.Second, nil)
	w.expect("", "1")
	w.answered(1, 3)
	w.poll()
	w.expect("2", "")
}

// The counters of a new backend begin with what the id's owner before left.
func TestWhatWasBeforeDoesNotCount(t *testing.T) {
	w := newWorld(t)
	w.ignored(1, 1000)
	w.refused(1, 1000)
	w.judge.SetService("web", targets(2))
	w.polls(2*time.Second, nil)
	w.expect("", "")

	next := targets(2)
	next[0].Ports[0].ID = 9 // the same port under another id
	w.ignored(9, 1000)
	w.judge.SetService("web", next)
	w.polls(2*time.Second, nil)
	w.expect("", "")
	w.refused(9, 3)
	w.poll()
	w.expect("1", "")
}

// A node whose processes all stood still sees its own SYNs unanswered.
func TestNodeThatStoodStillBlamesNobody(t *testing.T) {
	w := newWorld(t)
	w.judge.SetService("web", targets(2))
	w.poll()
	for range 5 {
		w.ignored(1, 10)
		w.poll()
		w.now = w.now.Add(2 * time.Second)
		w.judge.Poll(w.now)
		w.add(1, Counts{Answered: 10})
		w.poll()
		w.expect("", "")
	}
}

func TestAnotherContainerAtTheAddressBeginsAnew(t *testing.T) {
	w := newWorld(t)
	all := targets(2)
	all[0].Endpoint = "c1"
	w.judge.SetService("web", all)
	w.refused(1, 3)
	w.poll()
	w.expect("1", "")
	<-w.judge.Changed()
	next := targets(2)
	next[0].Endpoint = "c2"
	w.judge.SetService("web", next)
	w.expect("", "")
	select {
	case <-w.judge.Changed():
	default:
		t.Error("nobody was told")
	}
}
