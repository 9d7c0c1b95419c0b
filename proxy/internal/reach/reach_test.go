package reach

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var errNoDevice = errors.New("no such device")

func TestVerdicts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		p, r := start(t, w, Options{}, target(1), target(2))
		if s := p.States()["node-1"]; !s.Reachable || s.Known {
			t.Errorf("before any probe: %+v, want reachable, not known", s)
		}
		settle(5 * time.Second)
		if s, _ := r.latest("node-1"); !s.Reachable || !s.Known {
			t.Errorf("a node that answers was published as %+v", s)
		}
		s := p.States()["node-1"]
		if s.Latency < time.Millisecond || s.Latency > 2*time.Millisecond || s.LossRatio != 0 || s.Counts.Lost != 0 || time.Since(s.LastSeen) > 2*every {
			t.Errorf("a node that answers in 1 ms: %+v", s)
		}

		w.change(1, func(p *peer) { p.silent = true })
		died := time.Now()
		settle(3 * time.Second)
		s, at := r.latest("node-1")
		if s.Reachable || !s.Known || at.Sub(died) > 1300*time.Millisecond || !s.Since.Equal(at) {
			t.Errorf("a node that is silent was published %v later as %+v", at.Sub(died), s)
		}
		if other := p.States()["node-2"]; !other.Reachable {
			t.Error("the other node is unreachable as well")
		}
		if s := p.States()["node-1"]; s.LossRatio == 0 || s.Counts.Sent-s.Counts.Answered-s.Counts.Lost > 2 {
			t.Errorf("loss is not counted: %+v", s)
		}

		w.change(1, func(p *peer) { p.silent = false })
		back := time.Now()
		settle(2 * time.Second)
		if s, at = r.latest("node-1"); !s.Reachable || at.Sub(back) < every*8/10 || at.Sub(back) > 4*every {
			t.Errorf("a node that answers again was published %v later as %+v, want after its second answer", at.Sub(back), s)
		}
	})
}

// One answer between losses is no return, and two losses between answers no end.
func TestVerdictsDoNotFlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, i := newWorld(), 0
		p, r := start(t, w, Options{}, target(1))
		settle(3 * time.Second)
		published := len(r.all)
		w.change(1, func(p *peer) { p.lose = func(int) bool { i++; return i%3 != 0 } })
		settle(20 * time.Second)
		if len(r.all) != published {
			t.Errorf("two losses in a row led to %+v", r.all[published:])
		}
		if s := p.States()["node-1"]; s.LossRatio < 0.6 || s.LossRatio > 0.7 {
			t.Errorf("loss ratio %v, want 2/3", s.LossRatio)
		}
		w.change(1, func(p *peer) { p.lose = func(int) bool { i++; return i%4 != 0 } })
		settle(20 * time.Second)
		if len(r.all) != published+1 || p.States()["node-1"].Reachable {
			t.Errorf("three losses and an answer in turns led to %+v", r.all[published:])
		}
	})
}

// Far nodes and slow ones are no lost ones: the time to wait follows what is usual.
func TestLateAnswersAreAnswers(t *testing.T) {
	for _, delay := range []time.Duration{300 * time.Millisecond, 900 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.peers[1] = &peer{delay: delay}
			p, r := start(t, w, Options{}, target(1))
			settle(10 * time.Second)
			if s := p.States()["node-1"]; !s.Reachable || s.Counts.Lost > 0 || len(r.all) != 2 {
				t.Errorf("answers after %v: %+v, published %d times", delay, s, len(r.all))
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		p, _ := start(t, w, Options{}, target(1))
		settle(3 * time.Second)
		w.change(1, func(p *peer) { p.delay = 400 * time.Millisecond })
		settle(10 * time.Second)
		s := p.States()["node-1"]
		if !s.Reachable || s.Counts.Late == 0 || s.Counts.Late != s.Counts.Lost {
			t.Errorf("a way that became longer: %+v", s)
		}
	})
}

func TestStrayAnswersDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.peers[1] = &peer{delay: time.Millisecond, twice: true}
		p, _ := start(t, w, Options{}, target(1), target(2))
		settle(5 * time.Second)
		s := p.States()["node-1"]
		if s.Counts.Answered > s.Counts.Sent || s.Counts.Late != 0 {
			t.Errorf("answers that came twice count twice: %+v", s.Counts)
		}
		w.change(1, func(p *peer) { p.silent = true })
		settle(3 * time.Second)
		p.mu.Lock()
		var forged []Answer
		for token, x := range p.waiting {
			right := Answer{Node: uint32(x.node.ID), Token: token, Size: x.size}
			if x.node.ID != 1 {
				continue
			}
			for _, change := range []func(a *Answer){
				func(a *Answer) { a.Node = 2 },
				func(a *Answer) { a.Token++ },
				func(a *Answer) { a.Index = 1 },
				func(a *Answer) { a.Size-- },
			} {
				a := right
				change(&a)
				forged = append(forged, a)
			}
		}
		p.mu.Unlock()
		if len(forged) == 0 {
			t.Fatal("no probe waits")
		}
		for _, a := range forged {
			a.At = time.Now()
			w.answers <- a
		}
		settle(time.Second)
		if after := p.States()["node-1"]; after.Reachable || after.Counts.Late != s.Counts.Late {
			t.Errorf("forged answers count: %+v", after)
		}
	})
}

func TestManyNodesAreAskedAtABoundedRate(t *testing.T) {
	for _, n := range []int{50, 1000} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			var targets []Target
			for i := range n {
				targets = append(targets, target(i+1))
			}
			p, _ := start(t, w, Options{}, targets...)
			settle(20 * time.Second)
			want := 20 * min(4*n, int(time.Second/spacing))
			if got := len(w.sent); got < want*9/10 || got > want*11/10 {
				t.Errorf("%d nodes: %d probes in 20 s, want about %d", n, got, want)
			}
			for i, at := range w.sent { // none of them in bursts
				if i >= 100 && at.Sub(w.sent[i-100]) < 50*time.Millisecond {
					t.Fatalf("%d nodes: 100 probes within %v", n, at.Sub(w.sent[i-100]))
				}
			}
			for name, s := range p.States() {
				if !s.Reachable || !s.Known {
					t.Fatalf("%s: %+v", name, s)
				}
			}
		})
	}
}

func TestWhatCannotBeSentBlamesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		var log strings.Builder
		p, _ := start(t, w, Options{Log: textLog(&log)}, target(1), target(2))
		settle(3 * time.Second)
		w.mu.Lock()
		w.broken = true
		w.mu.Unlock()
		settle(10 * time.Second)
		if s := p.States()["node-1"]; !s.Reachable || s.Known {
			t.Errorf("%+v, want reachable, not known", s)
		}
		w.mu.Lock()
		w.broken = false
		w.mu.Unlock()
		settle(3 * time.Second)
		if s := p.States()["node-1"]; !s.Reachable || !s.Known {
			t.Errorf("%+v, want reachable and known again", s)
		}
		if strings.Count(log.String(), errNoDevice.Error()) != 1 || strings.Count(log.String(), "can be probed again") != 1 {
			t.Errorf("log:\n%s", &log)
		}
	})
}

// A process that stood still finds its probes unanswered, and their answers unread.
func TestStandingStillBlamesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.peers[2] = &peer{delay: time.Millisecond}
		p, r := start(t, w, Options{}, target(1))
		settle(3 * time.Second)
		r.mu.Lock()
		r.pause = 5 * time.Second
		r.mu.Unlock()
		p.SetTargets([]Target{target(1), target(2)})
		settle(10 * time.Second)
		for _, published := range r.all {
			if s := published["node-1"]; !s.Reachable || s.Counts.Lost > 0 {
				t.Errorf("%+v", s)
			}
		}
		if s := p.States()["node-1"]; !s.Reachable || s.Counts.Lost > 0 || r.pause != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestTargetsChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		plain := target(3)
		plain.Plain = true
		w.peers[3] = &peer{silent: true}
		p, r := start(t, w, Options{}, target(1), target(2), plain)
		settle(3 * time.Second)
		if s := p.States()["node-3"]; !s.Reachable || s.Counts.Sent > 0 || len(w.peers[3].sizes) > 0 {
			t.Errorf("a plain peer was probed: %+v", s)
		}
		before := p.States()
		p.SetTargets([]Target{target(1), target(2), plain})
		if diff := cmp.Diff(before, p.States(), cmp.Comparer(func(a, b Target) bool { return a == b })); diff != "" {
			t.Errorf("the same targets again (-before +after):\n%s", diff)
		}
		other := target(1)
		other.ID = 9
		p.SetTargets([]Target{other})
		settle(2 * time.Second)
		s := p.States()
		if len(s) != 1 || s["node-1"].Reachable || len(p.waiting) == 0 {
			t.Errorf("a node under another id, which does not answer: %+v", s)
		}
		if published, _ := r.latest("node-2"); published.Name != "" {
			t.Error("the node that went is still published")
		}
		p.SetTargets(nil)
		settle(time.Second)
		sent := len(w.sent)
		settle(time.Minute)
		if len(w.sent) != sent || len(p.waiting) != 0 {
			t.Errorf("without targets %d probes were sent, %d wait", len(w.sent)-sent, len(p.waiting))
		}
	})
}

func TestBlackHoleOfLargePackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mtu = 1450
		w := newWorld()
		n := target(1)
		n.MTU = mtu
		var log strings.Builder
		p, _ := start(t, w, Options{Log: textLog(&log)}, n)
		settle(30 * time.Second)
		if s := p.States()["node-1"]; s.BlackHole || !slices.Contains(w.peers[1].sizes, mtu-28) {
			t.Errorf("%+v, sizes %v", s, w.peers[1].sizes)
		}
		w.change(1, func(p *peer) { p.lose = func(size int) bool { return size > 1372 } })
		settle(20 * time.Second)
		if s := p.States()["node-1"]; !s.BlackHole || !s.Reachable || s.LossRatio != 0 {
			t.Errorf("%+v, want a reachable black hole", s)
		}
		n.MTU = 1400
		p.SetTargets([]Target{n})
		settle(20 * time.Second)
		if s := p.States()["node-1"]; s.BlackHole {
			t.Errorf("with an MTU that fits: %+v", s)
		}
		if strings.Count(log.String(), "packets of the node's MTU") != 1 {
			t.Errorf("log:\n%s", &log)
		}
		// Loss of everything is no black hole.
		i := 0
		w.change(1, func(p *peer) { p.lose = func(size int) bool { i++; return size > 1000 || i%2 == 0 } })
		settle(time.Minute)
		if s := p.States()["node-1"]; s.BlackHole {
			t.Errorf("of a way that loses half of all: %+v", s)
		}
	})
}

func TestPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		plain := target(3)
		plain.Plain = true
		w.peers[2] = &peer{silent: true}
		w.peers[1] = &peer{delay: 7 * time.Millisecond}
		p, _ := start(t, w, Options{}, target(1), target(2), plain)
		if pong, err := p.Ping(t.Context(), "node-1"); err != nil || pong != (Pong{target(1).Address, 92, true, 7 * time.Millisecond}) {
			t.Errorf("%+v, %v", pong, err)
		}
		began := time.Now()
		if pong, err := p.Ping(t.Context(), "node-2"); err != nil || pong.Answered || time.Since(began) != pingTimeout {
			t.Errorf("%+v, %v after %v", pong, err, time.Since(began))
		}
		if _, err := p.Ping(t.Context(), "node-3"); !errors.Is(err, ErrPlain) {
			t.Errorf("a plain peer: %v", err)
		}
		if _, err := p.Ping(t.Context(), "node-4"); !errors.Is(err, ErrUnknown) {
			t.Errorf("no node: %v", err)
		}
		w.mu.Lock()
		w.broken = true
		w.mu.Unlock()
		if _, err := p.Ping(t.Context(), "node-1"); !errors.Is(err, errNoDevice) {
			t.Errorf("no device: %v", err)
		}
	})
}
