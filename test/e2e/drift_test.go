package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Flows of the drift test: how many there are, and of which kinds.
const (
	driftRounds = 5
	driftDraws  = 19000 // a round: opened, answered, reset
	driftOpen   = 500   // half-open for ever: their servers do not answer in time, or the client leaves
	driftHeld   = 40    // stay until the end
)

// noDrift checks the counters against a walk over the connection table.
func (n *node) noDrift(t *testing.T, when string) {
	t.Helper()
	drift, err := n.maps().Recount()
	if err != nil {
		t.Fatal(err)
	}
	if drift.Active != 0 || drift.Load != 0 || drift.Groups != 0 {
		t.Errorf("%s: %+v", when, drift)
	}
}

// abandon begins connections of which nobody hears the end: the socket is closed before an answer is read.
func (p *place) abandon(t testing.TB, to netip.AddrPort, count int) {
	t.Helper()
	err := p.try(func() error {
		server := unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
		for i := range count {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return fmt.Errorf("socket %d: %w", i, err)
			}
			_ = unix.Connect(fd, &server) // in progress
			_ = unix.Close(fd)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestCountersDoNotDrift counts 100,000 flows of all kinds, while weights and drains change, the proxy is
// killed, and a backend becomes another one.
func TestCountersDoNotDrift(t *testing.T) {
	t.Parallel()
	p := newPool(t, 3)
	p.configure("random", alike(3))
	var held []*conn
	for i := range driftRounds {
		if i == 2 { // the flows that a server holds die with it, and it comes back as another one
			p.configure("least-conn", []int{100, 100, -1})
			p.configure("least-conn", alike(3))
		}
		var group sync.WaitGroup
		group.Go(func() {
			for k := range driftHeld / driftRounds / 2 {
				tcp, _ := p.hold(t, "tcp", k%2)
				udp, _ := p.hold(t, "udp", k%2)
				held = append(held, tcp, udp)
			}
			p.client.abandon(t, tellFront, driftOpen)
		})
		group.Go(func() { p.disturb(t, i) })
		p.client.draw(t, tellFront, 10000, driftDraws)
		group.Wait()
	}
	p.noDrift(t, "after the load")
	for _, c := range held {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	p.noDrift(t, "after its end")
	p.mustTclb("conntrack", "flush")
	p.noDrift(t, "after the flush")
	for _, r := range list[[]backendRow](p.node, "backend", "list", "web") {
		if r.ActiveConnections != 0 {
			t.Errorf("%s has %d connections after the flush", r.Address, r.ActiveConnections)
		}
	}
}

// disturb is what happens to the pool during a round of load.
func (p *pool) disturb(t *testing.T, round int) {
	switch round {
	case 1, 3:
		p.kill()
		p.start()
	case 4:
		p.configure("round-robin", []int{100, 0, 300})
	default:
		p.weigh(rand.IntN(3), 50)
	}
}
