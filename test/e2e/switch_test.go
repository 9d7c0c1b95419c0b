package e2e

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// talk is a connection on which requests are made without pause until it ends. Each must be answered by
// the same server.
type talk struct {
	from     *place
	c        *conn
	server   string
	stopping chan struct{}
	running  sync.WaitGroup
	requests atomic.Int64
	err      error // when it has ended
}

// talkOver begins talks, count of each family and protocol.
func (p *pool) talkOver(t *testing.T, count int) []*talk {
	t.Helper()
	var out []*talk
	for family := range families {
		for _, proto := range []string{"tcp", "udp"} {
			for i := range count {
				c := p.client.mustDial(t, proto, front(poolVIPs[i%2], family), 0)
				k := &talk{from: p.client.place, c: c, server: p.client.mustHear(t, c).Server, stopping: make(chan struct{})}
				k.running.Go(k.run)
				out = append(out, k)
			}
		}
	}
	return out
}

func (k *talk) run() {
	for {
		select {
		case <-k.stopping:
			return
		case <-time.After(2 * time.Millisecond):
		}
		a, err := k.c.ask()
		if errors.Is(err, os.ErrDeadlineExceeded) && k.c.RemoteAddr().Network() == "udp" {
			a, err = k.c.ask() // a busy machine may lose a datagram, but hardly two
		}
		if err == nil && a.Server != k.server {
			err = fmt.Errorf("%s answers, before it was %s", a.Server, k.server)
		}
		if err != nil {
			k.err = fmt.Errorf("request %d from %s to %s: %w", k.requests.Load(), k.c.LocalAddr(), k.c.RemoteAddr(), err)
			return
		}
		k.requests.Add(1)
	}
}

// expectUnbroken ends talks, of which none may have broken or gone elsewhere.
func expectUnbroken(t *testing.T, talks []*talk) {
	t.Helper()
	before := make([]int64, len(talks))
	for i, k := range talks {
		before[i] = k.requests.Load()
	}
	deadline := time.Now().Add(patience)
	for i, k := range talks {
		for k.requests.Load() < before[i]+5 && time.Now().Before(deadline) { // it goes on
			time.Sleep(time.Millisecond)
		}
		close(k.stopping)
		k.running.Wait()
		if n := k.requests.Load() - before[i]; k.err != nil || n < 5 {
			t.Errorf("%d requests at the end: %v", n, k.err)
		}
	}
}

// A service can have another scheduler at any time: connections that are there stay where they are, and
// none that is made meanwhile fails.
func TestSwitchingSchedulersMovesNoConnection(t *testing.T) {
	eachMode(t, testSwitchingSchedulersMovesNoConnection)
}

func testSwitchingSchedulersMovesNoConnection(t *testing.T, mode string) {
	p := newPool(t, 4, mode)
	weights := []int{100, 200, 300, 50}
	p.configure("latency", weights)
	talks := p.talkOver(t, 4)
	l := startLoad([]*container{p.client}, 10)
	for _, affinity := range []string{"none", "client-ip", "none"} {
		for _, scheduler := range schedulers {
			p.configure(scheduler, weights, "affinity: {mode: "+affinity+"}")
			if got := list[[]serviceRow](p.node, "service", "get", "web")[0].Scheduler; got != scheduler {
				t.Errorf("service get shows scheduler %s, want %s", got, scheduler)
			}
			talks = append(talks, p.talkOver(t, 1)...)
		}
	}
	l.end(t)
	expectUnbroken(t, talks)
}

// The share of a canary grows by what its weight says, step by step: nothing else moves, but for the
// 1.5 % that the tables may, and no connection that is there.
func TestCanaryMovesOnlyWhatItMust(t *testing.T) { eachMode(t, testCanaryMovesOnlyWhatItMust) }

func testCanaryMovesOnlyWhatItMust(t *testing.T, mode string) {
	const canary, probes = 3, 4000
	p := newPool(t, 4, mode)
	p.configure("maglev", []int{300, 300, 300, 9})
	talks := p.talkOver(t, 5)
	before := p.client.draw(t, tellFront, 10000, probes)
	for _, step := range []struct {
		weight      int
		least, most float64 // of the canary's share
	}{
		{9, 0.003, 0.02},
		{47, 0.03, 0.07},
		{900, 0.45, 0.55},
	} {
		if step.weight != 9 {
			p.applied(func() { p.weigh(canary, step.weight) })
		}
		after := p.client.draw(t, tellFront, 10000, probes)
		moved, gain, lost := 0, 0, 0
		for i := range after {
			if after[i] == before[i] {
				continue
			}
			moved++
			switch canary {
			case after[i]:
				gain++
			case before[i]:
				lost++
			}
		}
		share := float64(tally(4, after)[canary]) / probes
		if share < step.least || share > step.most {
			t.Errorf("weight %d: the canary has %.2f %% of the connections, want %g to %g", step.weight, 100*share, 100*step.least, 100*step.most)
		}
		if allowed := float64(gain) + 0.015*probes; float64(moved) > allowed || lost > 0 {
			t.Errorf("weight %d: %d of %d connections moved, %d of them to the canary and %d away from it", step.weight, moved, probes, gain, lost)
		}
		t.Logf("weight %d: the canary has %.2f %%; %d moved, %d of them to it", step.weight, 100*share, moved, gain)
		before = after
	}
	expectUnbroken(t, talks)
}
