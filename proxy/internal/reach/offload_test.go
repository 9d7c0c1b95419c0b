package reach

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestOffloads(t *testing.T) {
	const size = 1450 - 28
	lossy := 0
	cases := []struct {
		name     string
		peer     peer
		disable  func(p *peer) error
		want     Offload
		disabled int
		log      string // in one line
	}{
		{name: "work", want: OffloadGood},
		{
			name: "are broken", peer: peer{noSegment: true}, want: OffloadGood, disabled: 1, log: "the tunnel's offloads are disabled",
			disable: func(p *peer) error { p.noSegment = false; return nil },
		},
		{
			name: "stay broken", peer: peer{noSegment: true}, want: OffloadBroken, disabled: 1, log: "plain ones do",
			disable: func(*peer) error { return nil },
		},
		{
			name: "cannot be disabled", peer: peer{noSegment: true}, want: OffloadBroken, disabled: 1, log: "could not be disabled",
			disable: func(*peer) error { return errors.New("refused") },
		},
		{
			name: "are not blamed for losses of all large packets", want: OffloadUntested,
			peer: peer{lose: func(n int) bool { return n == size }},
		},
		{
			name: "are not blamed for a loss", want: OffloadGood,
			peer: peer{lose: func(n int) bool {
				if n == size {
					lossy++
				}
				return n == size && lossy == 5
			}},
		},
	}
	for _, c := range cases {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			peer := c.peer
			peer.delay = time.Millisecond
			w.peers[1] = &peer
			n := target(1)
			n.MTU = 1450
			var log strings.Builder
			disabled := 0
			p, _ := start(t, w, Options{Log: textLog(&log), DisableOffloads: func() error {
				disabled++
				w.mu.Lock()
				defer w.mu.Unlock()
				return c.disable(&peer)
			}}, n)
			settle(5 * time.Minute)
			if s := p.States()["node-1"]; s.Offload != c.want || !s.Reachable || disabled != c.disabled {
				t.Errorf("offloads that %s: %+v, disabled %d times", c.name, s, disabled)
			}
			if c.log != "" && strings.Count(log.String(), c.log) != 1 {
				t.Errorf("offloads that %s: want %q once in\n%s", c.name, c.log, &log)
			}
			if p.tested != nil {
				t.Errorf("offloads that %s: the test goes on", c.name)
			}
		})
	}
}

// One node after the other, and each once.
func TestOffloadTestsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		var targets []Target
		for i := range 20 {
			n := target(i + 1)
			n.MTU = 1450
			targets = append(targets, n)
		}
		w.peers[7] = &peer{delay: time.Millisecond, noSegment: true}
		p, _ := start(t, w, Options{}, targets...)
		settle(9 * time.Second)
		for name, s := range p.States() {
			want := OffloadGood
			if name == "node-7" {
				want = OffloadBroken
			}
			if s.Offload != want {
				t.Errorf("%s: %+v", name, s)
			}
		}
		bursts := 0
		for _, size := range w.peers[1].sizes {
			if size == 1450-28 {
				bursts++
			}
		}
		if bursts < segments || bursts > segments+2 {
			t.Errorf("%d large datagrams, want one burst of %d and a test of the MTU", bursts, segments)
		}
	})
}
