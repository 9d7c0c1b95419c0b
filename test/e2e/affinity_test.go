package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// clientIP is a line of a service.
func clientIP(timeout time.Duration) string {
	return fmt.Sprintf("affinity: {mode: client-ip, timeout: %s}", timeout)
}

// visit makes new flows in all ways of one family: over TCP and UDP, two ports and two VIPs. All must be
// answered by one server, which it returns.
func (p *pool) visit(t *testing.T, client *container, family int) int {
	t.Helper()
	home := -1
	for round := range 2 {
		for _, v := range poolVIPs {
			for _, way := range []struct {
				proto string
				port  uint16
			}{{"tcp", servicePort}, {"udp", servicePort}, {"tcp", secondPort}} {
				at := p.index(t, client.mustAsk(t, way.proto, netip.AddrPortFrom(v[family], way.port)))
				if home >= 0 && at != home {
					t.Fatalf("%s, round %d: %s %s port %d is answered by server %d, before it was %d",
						client.name, round, way.proto, v[family], way.port, at, home)
				}
				home = at
			}
		}
	}
	return home
}

// affine is a pool with several clients, and where they are bound, by family.
type affine struct {
	*pool
	clients []*container
	homes   [][2]int
}

func newAffine(t *testing.T, extra ...string) *affine {
	t.Helper()
	p := newPool(t, 4, extra...)
	a := &affine{pool: p, clients: []*container{p.client}}
	for i := range 2 {
		a.clients = append(a.clients, p.container(t, fmt.Sprintf("other%d", i), p.bridged()))
	}
	a.homes = make([][2]int, len(a.clients))
	return a
}

// bind has all clients visit the service, and notes where they come to.
func (a *affine) bind(t *testing.T) {
	t.Helper()
	for i, c := range a.clients {
		for family := range families {
			a.homes[i][family] = a.visit(t, c, family)
		}
	}
}

// stay has all clients visit the service again: who is not at the server named must be where it was, the
// others somewhere else. (-1 names none.)
func (a *affine) stay(t *testing.T, except [2]int, when string) {
	t.Helper()
	for i, c := range a.clients {
		for family, name := range families {
			home, now := a.homes[i][family], a.visit(t, c, family)
			if bound := home != except[family]; bound != (now == home) {
				t.Errorf("%s: %s over %s goes to server %d, before it was %d", when, c.name, name, now, home)
			}
			a.homes[i][family] = now
		}
	}
}

var nobody = [2]int{-1, -1}

// unbounded is a line that keeps bounded-load from sending a client past its server.
const unbounded = "boundedLoad: {factor: 100}"

func TestAffinityHoldsWithEachScheduler(t *testing.T) {
	eachMode(t, testAffinityHoldsWithEachScheduler)
}

func testAffinityHoldsWithEachScheduler(t *testing.T, mode string) {
	a := newAffine(t, mode)
	for _, scheduler := range schedulers {
		t.Run(scheduler, func(t *testing.T) {
			a.configure(scheduler, alike(4), clientIP(time.Hour), unbounded)
			a.mustTclb("conntrack", "flush")
			a.bind(t)
			a.stay(t, nobody, "again")
			if scheduler == "round-robin" && a.homes[0][v4] == a.homes[1][v4] {
				t.Errorf("two clients, two turns, but both are bound to server %d", a.homes[0][v4])
			}
			a.expectStayThroughDrain(t)
			a.expectStayThroughRemoval(t, scheduler)

			a.configure(scheduler, alike(4), "affinity: {mode: none}")
			for family, name := range families {
				if got := a.client.spread(t, "tcp", front(poolVIPs[0], family), 40); len(got) < 2 {
					t.Errorf("%s: without affinity all go to one server: %v", name, got)
				}
			}
		})
	}
}

// expectStayThroughDrain drains the first client's servers and gives them back.
func (a *affine) expectStayThroughDrain(t *testing.T) {
	t.Helper()
	drained := a.homes[0]
	each := func(verb string) {
		a.applied(func() {
			for family := range families {
				a.mustTclb("backend", verb, "web", a.servers[drained[family]].addr[family].String())
			}
		})
	}
	each("drain")
	a.stay(t, drained, "drained")
	each("undrain")
	a.stay(t, nobody, "undrained")
}

// expectStayThroughRemoval takes the first client's IPv4 server away and gives it back.
func (a *affine) expectStayThroughRemoval(t *testing.T, scheduler string) {
	t.Helper()
	removed := a.homes[0][v4]
	weights := alike(4)
	weights[removed] = -1
	a.configure(scheduler, weights, clientIP(time.Hour), unbounded)
	a.stay(t, [2]int{removed, removed}, "removed")
	a.configure(scheduler, alike(4), clientIP(time.Hour), unbounded)
	a.stay(t, nobody, "given back")
}

// The timeout runs from a client's last new flow. After it a new choice is made, which is the same one
// where it is a function of the client alone.
func TestAffinityEndsWithItsTimeout(t *testing.T) { eachMode(t, testAffinityEndsWithItsTimeout) }

func testAffinityEndsWithItsTimeout(t *testing.T, mode string) {
	const timeout = time.Second
	p := newPool(t, 4, mode)
	for _, c := range []struct {
		scheduler string
		again     bool
	}{{"round-robin", false}, {"maglev", true}} {
		t.Run(c.scheduler, func(t *testing.T) {
			p.configure(c.scheduler, alike(4), clientIP(timeout))
			for family, name := range families {
				home := p.visit(t, p.client, family)
				for range 4 { // longer than the timeout, but never without a new flow for so long
					time.Sleep(timeout * 2 / 5)
					if now := p.visit(t, p.client, family); now != home {
						t.Fatalf("%s: it goes to server %d, before it was %d", name, now, home)
					}
				}
				time.Sleep(timeout * 5 / 4)
				if now := p.visit(t, p.client, family); (now == home) != c.again {
					t.Errorf("%s: after the timeout it goes to server %d, before it was %d", name, now, home)
				}
			}
		})
	}
}
