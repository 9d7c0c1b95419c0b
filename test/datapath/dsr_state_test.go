package datapath

import (
	"net/netip"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// halfSeen is a flow of a client outside whose answers leave from its backend's node. Numbers count from the
// initial ones of their side.
type halfSeen struct {
	w      *world
	asks   packet.Spec
	family int
}

const clientISN = 1000

func (w *world) halfSeen(family int, proto lb.Protocol, port uint16) *halfSeen {
	return &halfSeen{w: w, asks: visit(family, proto, port), family: family}
}

// client sends a packet of the client's, which must go to its backend.
func (h *halfSeen) client(flags packet.Flags, seq, ack uint32, data int) {
	h.w.t.Helper()
	s := h.asks
	s.Flags, s.Seq, s.Ack, s.Payload = flags, clientISN+seq, backendISN+ack, make([]byte, data)
	h.w.fromClient(s, 0)
}

// answer is what the backend's node sends to the client, and with SYN, FIN or RST as a copy to us.
func (h *halfSeen) answer(flags packet.Flags, seq, ack uint32, data int) packet.Spec {
	s := reply(h.asks)
	s.Flags, s.Seq, s.Ack, s.Payload, s.DstMAC = flags, backendISN+seq, clientISN+ack, make([]byte, data), markCopy
	return s
}

// copied sends a copy by a node's tunnel. It ends here, and is no refusal.
func (h *halfSeen) copied(node uint16, s packet.Spec) {
	h.w.t.Helper()
	before, err := h.w.d.Drops()
	h.w.check(err)
	verdict, _ := h.w.send(comesFrom(node), h.w.abroad.tunnel, s)
	after, err := h.w.d.Drops()
	h.w.check(err)
	for reason, n := range after {
		if n != before[reason] {
			h.w.t.Errorf("a copy counts as %v", reason)
		}
	}
	if verdict != drop {
		h.w.t.Fatalf("a copy went on: verdict %d for %v", verdict, s)
	}
}

func (h *halfSeen) is(what string, want datapath.FlowState) datapath.Pair {
	h.w.t.Helper()
	for _, p := range h.w.pairs() {
		if p.Client != h.asks.Src || p.Protocol != h.asks.Protocol {
			continue
		}
		active := h.w.d.BackendStat(p.BackendID).Active
		if p.State != want || p.Active != (want == established) || (active == 1) != p.Active {
			h.w.t.Errorf("%s: %v, %d active, want %v", what, p.State, active, want)
		}
		return p
	}
	h.w.t.Fatalf("%s: no pair", what)
	return datapath.Pair{}
}

func (h *halfSeen) stat(p datapath.Pair) datapath.BackendStat { return h.w.d.BackendStat(p.BackendID) }

// eachHalf runs a scenario of TCP by family.
func eachHalf(t *testing.T, f func(w *world, h *halfSeen)) {
	t.Helper()
	for family, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			w.away(1, elsewhere(1))
			w.letDSR(true)
			f(w, w.halfSeen(family, lb.TCP, 40000))
			w.flush()
			if p := w.pairs(); len(p) != 0 {
				t.Errorf("left: %+v", p)
			}
			w.assertWhole()
		})
	}
}

// What the other node copies opens and closes a flow as if it had come by here.
func TestAFlowOfWhichCopiesAreSeen(t *testing.T) {
	eachHalf(t, func(w *world, h *halfSeen) {
		h.client(syn, 0, 0, 0)
		h.is("asked", opening)
		h.copied(2, h.answer(synAck, 0, 1, 0)) // not the backend's node
		stranger := h.answer(synAck, 0, 1, 0)
		stranger.Dst = netip.AddrPortFrom(stranger.Dst.Addr(), 41000)
		h.copied(1, stranger) // of no flow
		if p := h.is("told by others", opening); h.stat(p).Answered != 0 {
			w.t.Error("somebody else's copy counts")
		}
		h.copied(1, h.answer(synAck, 0, 1, 0))
		if p := h.is("agreed", opening); h.stat(p).Answered != 1 || p.Packets != [2]uint64{1, 0} {
			w.t.Errorf("answered %d times, %v packets", h.stat(p).Answered, p.Packets)
		}
		h.client(ack, 1, 1<<31, 0)
		h.is("a blind acknowledgment", opening)
		h.client(ack, 1, 15001, 100) // the first ones were lost, or it speaks after the server
		h.is("acknowledged", established)
		h.copied(1, h.answer(synAck, 0, 1, 0)) // a late one
		h.is("answered again", established)
		// A million bytes that nobody saw here, and the FIN behind them.
		h.copied(1, h.answer(finAck, 1<<20, 101, 500))
		h.is("the backend has ended", established)
		h.client(ack, 101, 1<<20, 0)
		h.is("its end is acknowledged", established)
		h.client(finAck, 101, 1<<20, 0)
		p := h.is("both have ended", closing)
		if h.stat(p).Total != 1 || h.stat(p).SYNs != 1 || h.stat(p).Answered != 1 || h.stat(p).Rejected != 0 {
			w.t.Errorf("counted %+v", h.stat(p))
		}
	})
}

// Copies may be lost, all of them: the client's half alone says enough.
func TestAFlowOfWhichHalfIsSeen(t *testing.T) {
	eachHalf(t, func(w *world, h *halfSeen) {
		h.client(syn, 0, 0, 0)
		h.client(ack, 1<<30, 1, 0)
		h.is("not the number that comes next", opening)
		h.client(ack, 1, 1, 0)
		if p := h.is("acknowledged", established); h.stat(p).Answered != 1 || h.stat(p).SYNLatency != 0 {
			w.t.Errorf("counted %+v", h.stat(p))
		}
		h.copied(1, h.answer(synAck, 0, 1, 0))
		h.is("a copy that was late", established)
		for sent := uint32(1); sent < 1<<31; sent += 1 << 24 { // in large steps: an upload
			h.client(ack, sent, 1, 100)
		}
		last := uint32(1<<31-1<<24) + 1 + 100
		h.client(rst, last-1<<25, 0, 0)
		h.is("a reset at an old number", established)
		p := h.is("goes on", established)
		if w.age(p.Index, 3*time.Minute); w.sweep() != 0 {
			w.t.Error("ended while it is idle")
		}
		h.client(finAck, last, 1, 0)
		if p = h.is("the client has ended", established); !p.Leaving {
			w.t.Errorf("pair %+v", p)
		}
		if w.age(p.Index, 29*time.Second); w.sweep() != 0 {
			w.t.Error("ended too early")
		}
		if w.age(p.Index, 31*time.Second); w.sweep() != 1 {
			w.t.Error("it waits for a FIN that never comes by")
		}
	})
}

func TestResetsOfAFlowOfWhichHalfIsSeen(t *testing.T) {
	eachHalf(t, func(_ *world, h *halfSeen) {
		begin := func() {
			h.asks.Src = netip.AddrPortFrom(h.asks.Src.Addr(), h.asks.Src.Port()+1)
			h.client(syn, 0, 0, 0)
			h.copied(1, h.answer(synAck, 0, 1, 0))
			h.client(ack, 1, 1, 100)
			h.is("begun", established)
		}
		begin()
		h.client(rst, 101, 0, 0)
		h.is("the client's reset", closing)
		h.w.flush()
		begin()
		h.copied(1, h.answer(rst, 1<<20, 0, 0))
		h.is("the backend's reset", closing)
	})
}

// Answers that come by here after all, because the other node knows of nothing, count as ever.
func TestAFlowThatIsAnsweredByHereAfterAll(t *testing.T) {
	eachHalf(t, func(w *world, h *halfSeen) {
		h.client(syn, 0, 0, 0)
		back := func(flags packet.Flags, seq, ack uint32) {
			s := h.answer(flags, seq, ack, 0)
			s.Src, s.DstMAC = netip.AddrPortFrom(elsewhere(1).addr[h.family], targetPort), nil
			verdict, got := w.send(comesFrom(1), w.abroad.tunnel, s)
			if verdict != redirect || got.Src != h.asks.Dst || got.Dst != h.asks.Src {
				w.t.Errorf("verdict %d for %v", verdict, got)
			}
		}
		back(synAck, 0, 1)
		h.client(ack, 1, 1, 0)
		h.is("agreed", established)
		h.client(finAck, 1, 1, 0)
		back(finAck, 1, 2)
		h.is("both have ended", closing)
	})
}

// A datagram that follows another one stands for the answer to it.
func TestADatagramFlowOfWhichHalfIsSeen(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		w.away(1, elsewhere(1))
		w.letDSR(true)
		for n, lives := range map[int]bool{1: false, 2: true} {
			h := w.halfSeen(family, lb.UDP, uint16(40000+n))
			for range n {
				h.client(0, 0, 0, 10)
			}
			p := h.is("asked", established)
			if w.age(p.Index, 31*time.Second); (w.sweep() == 0) != lives {
				t.Errorf("%d datagrams: goes on is not %v", n, lives)
			}
			w.age(p.Index, 150*time.Second)
			w.sweep()
		}
	}
}

// An error about an answer that went another way is addressed to the VIP. It finds the backend by the tunnel.
func TestErrorsAboutDirectAnswersReachTheBackend(t *testing.T) {
	eachDSR(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		s := visit(family, proto, 40000)
		w.fromClient(s, 0)
		answer := reply(s)
		answer.Flags, answer.Seq, answer.Ack, answer.Payload = packet.ACK, backendISN+1, 1001, make([]byte, 1000)
		frame, err := answer.Build()
		w.check(err)
		router := beyond[family].Next()
		e := packet.Spec{Src: netip.AddrPortFrom(router, 0), Dst: netip.AddrPortFrom(s.Dst.Addr(), 0), ICMP: packet.FragNeeded(packet.Quote(frame, 8), 1300)}
		x := w.carry(w.fromOutside(), e)
		got := w.decode(x.seen)
		if x.verdict != redirect || got.Src.Addr() != router || got.Dst.Addr() != elsewhere(1).addr[family] || got.DstMAC.String() != markDSR.String() {
			t.Fatalf("verdict %d for %v", x.verdict, got)
		}
		if q := got.ICMP.Inner; q == nil || q.Src != netip.AddrPortFrom(elsewhere(1).addr[family], targetPort) || q.Dst != s.Src {
			t.Errorf("it quotes %v", q)
		}
	})
}
