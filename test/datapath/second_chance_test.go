package datapath

import (
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// TestRefusedConnectionGetsAnotherChance: a backend that died a moment ago, or does not listen yet, answers
// a SYN with a reset; no other balancer keeps that from the client.
func TestRefusedConnectionGetsAnotherChance(t *testing.T) {
	for family := range families {
		w := newWorld(t, 3)
		f := w.flow(vips[family], family, lb.TCP, 40000)
		met := map[uint32]bool{}
		for range 2 {
			f.out(packet.SYN, f.seq, 0)
			met[f.backend.ifindex] = true
			if verdict := f.refusal(); verdict != drop {
				t.Fatalf("the refusal was passed on: verdict %d", verdict)
			}
		}
		f.out(packet.SYN, f.seq, 0)
		met[f.backend.ifindex] = true
		if len(met) != 3 {
			t.Errorf("three SYNs met %d backends", len(met))
		}
		if verdict := f.refusal(); verdict != redirect {
			t.Errorf("the last refusal was kept: verdict %d", verdict)
		}
		if n := w.drops("second-chance"); n != 2 {
			t.Errorf("%d refusals kept, want 2", n)
		}
		// All have refused just now: that is no reason to serve nobody, nor to keep a refusal.
		g := w.flow(vips[family], family, lb.TCP, 40001)
		g.out(packet.SYN, g.seq, 0)
		if verdict := g.refusal(); verdict != redirect {
			t.Errorf("a refusal was kept though all refuse: verdict %d", verdict)
		}
	}
}

func TestABackendThatRefusesIsPassedOver(t *testing.T) {
	for family := range families {
		w := newWorld(t, 3)
		f := w.flow(vips[family], family, lb.TCP, 40000)
		f.out(packet.SYN, f.seq, 0)
		refusing := f.backend
		f.refusal()
		for port := uint16(41000); port < 41100; port++ {
			g := w.flow(vips[family], family, lb.TCP, port)
			if g.out(packet.SYN, 1, 0); g.backend.ifindex == refusing.ifindex {
				t.Fatal("a connection went to a backend that refused just before")
			}
		}
	}
}

// A client's third SYN comes three seconds after its first: it must not meet who refused the first. One
// answer is enough to be believed again.
func TestARefusalIsRememberedUntilAnAnswer(t *testing.T) {
	for family := range families {
		w := newWorld(t, 2)
		early := w.flow(vips[family], family, lb.TCP, 39999) // its SYN waits in the backend's queue
		early.out(packet.SYN, early.seq, 0)
		f := early
		for port := uint16(40000); f == early || f.backend.ifindex != early.backend.ifindex; port++ {
			f = w.flow(vips[family], family, lb.TCP, port)
			f.out(packet.SYN, f.seq, 0)
		}
		f.refusal()
		meets := func(from uint16) (n int) {
			for port := from; port < from+50; port++ {
				g := w.flow(vips[family], family, lb.TCP, port)
				if g.out(packet.SYN, 1, 0); g.backend.ifindex == f.backend.ifindex {
					n++
				}
			}
			return n
		}
		time.Sleep(1200 * time.Millisecond)
		if n := meets(41000); n > 0 {
			t.Fatalf("%d of 50 connections met who refused one a second ago", n)
		}
		early.back(packet.SYN|packet.ACK, backendISN, early.seq+1)
		if meets(42000) == 0 {
			t.Error("it answered a connection, and gets none")
		}
	}
}

// Where containers start one after the other each SYN of a flow could meet one that does not listen yet.
func TestARefusedFlowGoesToWhoHasAnswered(t *testing.T) {
	for family := range families {
		w := newWorld(t, 6)
		good := w.flow(vips[family], family, lb.TCP, 39999)
		good.establish()
		met := 0
		for port := uint16(40000); port < 40100 && met < 3; port++ {
			f := w.flow(vips[family], family, lb.TCP, port)
			f.out(packet.SYN, f.seq, 0)
			if f.backend.ifindex == good.backend.ifindex {
				continue
			}
			met++
			f.refusal()
			if f.out(packet.SYN, f.seq, 0); f.backend.ifindex != good.backend.ifindex {
				t.Error("a refused flow went to a backend that never answered any")
			}
		}
		if met != 3 {
			t.Errorf("%d refusals, want 3", met)
		}
	}
}

// refusal sends the backend's reset in answer to the flow's SYN and returns the verdict.
func (f *flow) refusal() uint32 {
	f.w.t.Helper()
	answer := reply(f.target)
	answer.Flags, answer.Ack = packet.RST|packet.ACK, f.target.Seq+1
	verdict, _ := f.w.fromContainer(f.backend, answer)
	return verdict
}
