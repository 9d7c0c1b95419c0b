package userspace

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

var schedulers = []lb.Scheduler{lb.Maglev, lb.Random, lb.RoundRobin, lb.LeastConn, lb.BoundedLoad, lb.Latency}

func TestWhyAFlowDoesNotBegin(t *testing.T) {
	for _, c := range []struct {
		name   string
		front  lb.Frontend
		with   func(w *world)
		want   error
		reason datapath.DropReason
	}{
		{"a VIP's other port", lb.Frontend{VIP: vip, Port: 81, Protocol: lb.TCP}, nil, ErrNoFrontend, datapath.DropNoFrontend},
		{"a VIP as such", lb.Frontend{VIP: vip}, nil, ErrNoFrontend, datapath.DropNoFrontend},
		{"nobody serves", tcpFront, func(w *world) { w.change(0, func(b *datapath.Backend) { b.New = false }) }, ErrNoBackend, datapath.DropNoBackend},
		{"no table", tcpFront, func(w *world) {
			w.check(w.m.PutFrontends(map[lb.Frontend]datapath.Frontend{tcpFront: {Service: serviceID}}))
		}, ErrNoBackend, datapath.DropNoBackend},
		{"a stranger", tcpFront, func(w *world) {
			w.service(plan{backends: 1, allow: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
		}, ErrNotAllowed, datapath.DropNotAllowed},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, plan{backends: 1})
			if c.with != nil {
				c.with(w)
			}
			f, err := w.m.Begin(c.front, clientAt(40000), nil)
			if f != nil || !errors.Is(err, c.want) {
				t.Errorf("%v, %v; want %v", f, err, c.want)
			}
			if n := w.drops(c.reason); n != 1 {
				t.Errorf("%d counted as %s, want 1", n, c.reason)
			}
			w.settled()
		})
	}
}

func TestOnlyAllowedSourcesAreServed(t *testing.T) {
	prefix := netip.MustParsePrefix
	for _, c := range []struct {
		allow  []netip.Prefix
		client string
		want   bool
	}{
		{[]netip.Prefix{prefix("203.0.113.0/24")}, "203.0.113.7", true},
		{[]netip.Prefix{prefix("203.0.113.0/24")}, "203.0.114.7", false},
		{[]netip.Prefix{prefix("203.0.113.0/24")}, "::ffff:203.0.113.7", true},
		{[]netip.Prefix{prefix("10.0.0.0/8"), prefix("203.0.113.7/32")}, "203.0.113.7", true},
		{[]netip.Prefix{prefix("0.0.0.0/0")}, "2001:db8::1", false},
		{[]netip.Prefix{prefix("2001:db8::/32")}, "2001:db8::1", true},
		{[]netip.Prefix{prefix("::/0")}, "203.0.113.7", true}, // as in the kernel, where addresses are mapped
	} {
		w := newWorld(t, plan{backends: 1, allow: c.allow})
		_, err := w.m.Begin(tcpFront, netip.AddrPortFrom(netip.MustParseAddr(c.client), 40000), nil)
		if (err == nil) != c.want {
			t.Errorf("%s with %v: %v", c.client, c.allow, err)
		}
		for _, p := range c.allow {
			w.check(w.m.DeleteAllow(datapath.AllowKey{Service: serviceID, Prefix: p}))
		}
		if _, err = w.m.Begin(tcpFront, netip.AddrPortFrom(netip.MustParseAddr(c.client), 40001), nil); !errors.Is(err, ErrNotAllowed) {
			t.Errorf("%s without any: %v", c.client, err)
		}
	}
}

func TestTurnsAreExactInEachRound(t *testing.T) {
	w := newWorld(t, plan{scheduler: lb.RoundRobin, backends: 3, weights: []uint32{100, 200, 700}})
	for round := range 5 {
		if got := w.spread(10, 40000+round*10); !slices.Equal(got, []int{1, 2, 7}) {
			t.Errorf("round %d: %v, want [1 2 7]", round, got)
		}
	}
}

func TestLeastConnIsExact(t *testing.T) {
	w := newWorld(t, plan{scheduler: lb.LeastConn, backends: 3, weights: []uint32{100, 200, 700}})
	if got := w.spread(20, 40000); !slices.Equal(got, []int{2, 4, 14}) {
		t.Errorf("%v, want [2 4 14]", got)
	}
}

func TestBoundedLoadHasNobodyAboveItsShare(t *testing.T) {
	w := newWorld(t, plan{scheduler: lb.BoundedLoad, factor: 1.25, backends: 4, weights: []uint32{100, 100, 200, 100}, affinity: time.Hour})
	for n := range 100 {
		at := w.at(w.begin(tcpFront, 40000+n))
		share := []float64{1, 1, 2, 1}[at] / 5
		if load, most := float64(w.stat(at).Load), 1.25*float64(n+1)*share+1; load >= most {
			t.Fatalf("flow %d: backend %d has %v, must be below %v", n, at, load, most)
		}
	}
}

func TestTheLastOneIsFound(t *testing.T) {
	for _, s := range schedulers {
		w := newWorld(t, plan{scheduler: s, factor: 1.25, backends: 40})
		for i := range w.ids {
			if i != 37 {
				w.change(i, func(b *datapath.Backend) { b.New = false })
			}
		}
		if got := w.spread(20, 40000); got[37] != 20 {
			t.Errorf("%s: %v", s, got)
		}
	}
}

func TestABackendOnTrialGetsOneFlowAtATime(t *testing.T) {
	for _, s := range schedulers {
		w := newWorld(t, plan{scheduler: s, factor: 1.25, backends: 3})
		w.change(1, func(b *datapath.Backend) { b.Trial = true })
		if got := w.spread(60, 40000); got[1] != 1 {
			t.Errorf("%s: %v, want 1 at the second", s, got)
		}
	}
}

func TestTheFasterBackendHasMore(t *testing.T) {
	w := newWorld(t, plan{scheduler: lb.Latency, backends: 2})
	counts := [2]int{}
	for n := range 400 {
		f := w.begin(tcpFront, 30000+n)
		at := w.at(f)
		counts[at]++
		w.pass([]time.Duration{time.Millisecond, 20 * time.Millisecond}[at])
		f.Connected()
		f.End()
	}
	if counts[0] < 300 {
		t.Errorf("the one that is 20 times faster had %d of 400", counts[0])
	}
}

func TestAffinityBindsAClient(t *testing.T) {
	for _, s := range schedulers {
		w := newWorld(t, plan{scheduler: s, factor: 10, backends: 8, affinity: time.Minute})
		home := w.at(w.begin(tcpFront, 40000))
		for n := range 20 {
			w.pass(50 * time.Second) // each new flow binds for longer
			front := []lb.Frontend{tcpFront, udpFront}[n%2]
			if at := w.at(w.begin(front, 40001+n)); at != home {
				t.Fatalf("%s: flow %d went to %d, before to %d", s, n, at, home)
			}
		}
		w.change(home, func(b *datapath.Backend) { b.New = false })
		next := w.at(w.begin(tcpFront, 50000))
		w.change(home, func(b *datapath.Backend) { b.New = true })
		if at := w.at(w.begin(tcpFront, 50001)); next == home || at != next {
			t.Errorf("%s: home %d, then %d, then %d", s, home, next, at)
		}
	}
}

func TestAffinityEnds(t *testing.T) {
	for name, end := range map[string]func(w *world){
		"by its timeout": func(w *world) { w.pass(61 * time.Second) },
		"when it is flushed": func(w *world) {
			if n, err := w.m.FlushAffinity(serviceID); n != 1 || err != nil {
				w.t.Errorf("flushed %d, %v", n, err)
			}
		},
		"with the base": func(w *world) {
			s, err := w.m.Service(serviceID)
			w.check(err)
			s.BaseGen++
			w.check(w.m.PutService(serviceID, s))
		},
	} {
		w := newWorld(t, plan{scheduler: lb.RoundRobin, backends: 8, affinity: time.Minute})
		home := w.at(w.begin(tcpFront, 40000))
		end(w)
		if at := w.at(w.begin(tcpFront, 40001)); at == home {
			t.Errorf("%s: still bound", name)
		}
	}
}

func TestAffinitiesAreBounded(t *testing.T) {
	w := newWorld(t, plan{backends: 2, affinity: time.Hour})
	for n := range 2 * affinityEntries {
		addr := netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
		f, err := w.m.Begin(tcpFront, netip.AddrPortFrom(addr, 40000), nil)
		w.check(err)
		f.End()
	}
	if n, _ := w.m.FlushAffinity(0); n > affinityEntries || n < affinityEntries*9/10 {
		t.Errorf("%d are kept, want up to %d", n, affinityEntries)
	}
}

// The arena may give a region out again as soon as no frontend names it: who was choosing meanwhile chooses
// again.
func TestNobodyChoosesFromAnotherTable(t *testing.T) {
	w := newWorld(t, plan{backends: 4, affinity: time.Hour})
	const foreign = 200
	w.check(w.m.PutBackend(foreign, datapath.Backend{Address: vip, Gen: 1, Service: 2, Live: true, New: true}))
	before := *w.m.Frontend(tcpFront)
	after := before
	after.Members.Offset += 64
	w.check(w.m.WriteRegion(after.Members, w.ids))
	clock, looks := w.m.now, 0
	w.m.now = func() time.Time {
		if looks++; looks == 2 { // the first is the flow's beginning, the second in the middle of its choice
			w.check(w.m.PutFrontends(map[lb.Frontend]datapath.Frontend{tcpFront: after}))
			w.check(w.m.WriteRegion(before.Members, []uint32{foreign, foreign, foreign, foreign}))
		}
		return clock()
	}
	f := w.begin(tcpFront, 40000)
	if looks < 3 || f.service != serviceID {
		t.Errorf("after %d looks at the clock it is at a backend of service %d", looks, f.service)
	}
}
