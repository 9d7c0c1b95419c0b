package datapath

import (
	"net/netip"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// guest is a flow that another node sent here: it chose the backend.
type guest struct {
	w        *world
	zone     uint16
	client   netip.AddrPort
	server   netip.AddrPort
	proto    lb.Protocol
	at       container
	seen     packet.Spec // the last packet as the backend saw it
	seq, ack uint32
}

func (w *world) guest(zone uint16, family int, proto lb.Protocol, at container) *guest {
	return &guest{
		w: w, zone: zone, proto: proto, at: at, seq: 1000, ack: backendISN,
		client: netip.AddrPortFrom(elsewhere(1).addr[family], 40000), server: netip.AddrPortFrom(at.addr[family], targetPort),
	}
}

func (g *guest) send(flags packet.Flags, seq, ack uint32) (uint32, packet.Spec) {
	g.w.t.Helper()
	return g.w.send(comesFrom(g.zone), g.w.abroad.tunnel, packet.Spec{
		Src: g.client, Dst: g.server, Protocol: g.proto, Flags: flags, Seq: seq, Ack: ack, Payload: []byte("request"),
	})
}

// in sends a packet that must reach the backend.
func (g *guest) in(flags packet.Flags, seq, ack uint32) {
	g.w.t.Helper()
	verdict, got := g.send(flags, seq, ack)
	if verdict != redirect || got.Dst != g.server || got.Src.Addr() != g.client.Addr() || got.DstMAC.String() != g.at.mac.String() || got.TTL != 64 {
		g.w.t.Fatalf("verdict %d for %v", verdict, got)
	}
	g.seen = got
}

// back sends an answer of the backend's, which must go to the node that the flow comes from.
func (g *guest) back(flags packet.Flags, seq, ack uint32) {
	g.w.t.Helper()
	s := reply(g.seen)
	s.Flags, s.Seq, s.Ack, s.TTL = flags, seq, ack, 64
	verdict, got := g.w.fromContainer(g.at, s)
	if verdict != redirect || got.Src != g.server || got.Dst != g.client || got.DstMAC.String() != nodeMAC(g.zone).String() || got.TTL != 63 {
		g.w.t.Fatalf("verdict %d for %v, want it at node %d", verdict, got, g.zone)
	}
}

func (g *guest) establish() {
	g.w.t.Helper()
	if g.proto == lb.UDP {
		g.in(0, 0, 0)
		g.back(0, 0, 0)
		return
	}
	g.in(packet.SYN, g.seq, 0)
	g.back(packet.SYN|packet.ACK, g.ack, g.seq+1)
	g.in(packet.ACK, g.seq+1, g.ack+1)
}

// pair finds the flow's pair by its zone.
func (g *guest) pair() datapath.Pair {
	g.w.t.Helper()
	for _, p := range g.w.pairs() {
		if p.Client == g.client && p.Protocol == g.proto && p.Zone == g.zone {
			return p
		}
	}
	return datapath.Pair{}
}

func TestANodeServesWhatAnotherOneChose(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		g := w.guest(1, family, proto, w.containers[0])
		g.establish()
		if g.seen.Src != g.client {
			t.Errorf("the backend sees %v", g.seen.Src)
		}
		p := g.pair()
		if !p.Return || p.State != datapath.FlowEstablished || p.VIP != g.server || p.Backend != g.server || p.Service != 0 || p.BackendID != 0 || len(w.pairs()) != 1 {
			t.Errorf("pair %+v", p)
		}
		if proto == lb.TCP {
			g.in(packet.FIN|packet.ACK, g.seq+1, g.ack+1)
			g.back(packet.FIN|packet.ACK, g.ack+1, g.seq+9)
			if s := g.pair().State; s != datapath.FlowClosing {
				t.Errorf("after both FINs: %v", s)
			}
			g.in(packet.SYN, 90000, 0)
			if s := g.pair().State; s != datapath.FlowOpening || len(w.pairs()) != 1 {
				t.Errorf("begun anew: %v, %d pairs", s, len(w.pairs()))
			}
		}
		w.age(g.pair().Index, 9*time.Hour*24)
		if n := w.sweep(); n != 1 {
			t.Errorf("%d pairs were swept", n)
		}
		w.assertWhole()
	})
}

// Two clients may have the same address and port on two nodes.
func TestNodesAreKeptApart(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		at := w.containers[0]
		one, two := w.guest(1, family, proto, at), w.guest(2, family, proto, at)
		two.seq, two.ack = 1<<31, 1<<30
		one.establish()
		two.establish()
		if one.seen.Src == two.seen.Src || one.seen.Src.Addr() != two.seen.Src.Addr() {
			t.Errorf("the backend sees %v and %v", one.seen.Src, two.seen.Src)
		}
		for range 3 {
			one.in(packet.ACK, one.seq+8, one.ack+1)
			one.back(packet.ACK, one.ack+1, one.seq+15)
			two.in(packet.ACK, two.seq+8, two.ack+1)
			two.back(packet.ACK, two.ack+1, two.seq+15)
		}
		if a, b := one.pair(), two.pair(); a.Index == b.Index || a.Packets != b.Packets || a.State != b.State {
			t.Errorf("pairs %+v and %+v", a, b)
		}
		w.assertWhole()
	})
}

// A client that moved, or whose node lost its way, goes on by another one: its numbers tell.
func TestAFlowGoesOnByAnotherNode(t *testing.T) {
	for family, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			w.goAbroad()
			one, two := w.guest(1, family, lb.TCP, w.containers[0]), w.guest(2, family, lb.TCP, w.containers[0])
			one.establish()
			two.in(packet.ACK, one.seq+8, one.ack+1)
			if two.seen.Src != one.client || len(w.pairs()) != 1 || two.pair().State != datapath.FlowEstablished {
				t.Errorf("the backend sees %v: %+v", two.seen.Src, w.pairs())
			}
			two.back(packet.ACK, one.ack+1, one.seq+15)
			one.in(packet.ACK, one.seq+15, one.ack+1) // and home again
			one.back(packet.ACK, one.ack+1, one.seq+22)
			two.in(packet.ACK, one.seq+1<<30, one.ack+1) // somebody else's numbers
			if two.seen.Src == one.client || len(w.pairs()) != 2 {
				t.Errorf("the backend sees %v, %d pairs", two.seen.Src, len(w.pairs()))
			}
			one.back(packet.ACK, one.ack+1, one.seq+22)
			two.client = netip.AddrPortFrom(two.client.Addr(), 40001)
			three := w.guest(1, family, lb.TCP, w.containers[0])
			three.client = two.client
			two.establish()
			three.in(packet.SYN, two.seq+8, 0) // a new connection is never the old one
			if three.seen.Src == two.seen.Src {
				t.Error("a SYN took a flow over")
			}
			two.back(packet.ACK, two.ack+1, two.seq+8)
			w.assertWhole()
		})
	}
}

// The same VIP may be served here now that was served by another node's choice before, and the other way round.
func TestAFlowGoesOnHereAfterTheTunnel(t *testing.T) {
	for family, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			w.goAbroad()
			g := w.guest(1, family, lb.TCP, w.containers[0])
			g.client = netip.AddrPortFrom(beyond[family], 40000)
			g.establish()
			s := more(ask(g.client, netip.AddrPortFrom(vips[family], servicePort), lb.TCP))
			x := w.carry(w.fromOutside(), s)
			if got := w.decode(x.seen); x.verdict != redirect || got.Src != g.client || got.Dst != g.server || len(w.pairs()) != 1 {
				t.Fatalf("verdict %d for %v, %d pairs", x.verdict, got, len(w.pairs()))
			}
			answer := reply(g.seen)
			answer.Flags, answer.Seq, answer.Ack = packet.ACK, g.ack+1, g.seq+11
			if verdict, got := w.fromContainer(g.at, answer); verdict != redirect || got.Src != s.Dst || got.DstMAC.String() != w.abroad.uplink.mac.String() {
				t.Fatalf("verdict %d for %v", verdict, got)
			}
			g.in(packet.ACK, g.seq+11, g.ack+1)
			if n := len(w.pairs()); g.seen.Src != g.client || n != 1 {
				t.Errorf("the backend sees %v, %d pairs", g.seen.Src, n)
			}
			g.back(packet.ACK, g.ack+1, g.seq+18)
		})
	}
}

// A flow of ours and one of another node's with the same ends are two.
func TestAGuestAndADirectFlow(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		at := w.containers[0]
		g := w.guest(1, family, proto, at)
		g.client = netip.AddrPortFrom(w.client.addr[family], 40000)
		direct := ask(g.client, g.server, proto)
		if verdict, got := w.fromContainer(w.client, direct); verdict != next || got.Src != g.client {
			t.Fatalf("verdict %d for %v", verdict, got)
		}
		g.seq = 1 << 31
		g.establish()
		if g.seen.Src == g.client {
			t.Error("the backend cannot tell them apart")
		}
		if verdict, _ := w.fromContainer(at, answerTo(direct)); verdict != next {
			t.Errorf("the direct flow's answer: verdict %d", verdict)
		}
		g.back(packet.ACK, g.ack+1, g.seq+8)
		w.assertWhole()
	})
}

// What the container was that a flow went to is gone. Whoever has its address now is somebody else.
func TestAGuestWhoseContainerIsGone(t *testing.T) {
	for _, again := range []bool{false, true} {
		eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
			at := w.containers[0]
			g := w.guest(1, family, proto, at)
			g.establish()
			key := datapath.EndpointKey{Address: at.addr[family], Ifindex: at.ifindex}
			w.check(w.d.DeleteEndpoint(key))
			heir := w.containers[1]
			if again {
				w.check(w.d.PutEndpoint(datapath.EndpointKey{Address: at.addr[family], Ifindex: heir.ifindex}, datapath.Endpoint{MAC: [6]byte(heir.mac)}))
			}
			defer func() {
				w.check(w.d.DeleteEndpoint(datapath.EndpointKey{Address: at.addr[family], Ifindex: heir.ifindex}))
				w.check(w.d.PutEndpoint(key, datapath.Endpoint{MAC: [6]byte(at.mac)}))
				w.check(w.d.PutEndpoint(datapath.EndpointKey{Address: heir.addr[family], Ifindex: heir.ifindex}, datapath.Endpoint{MAC: [6]byte(heir.mac)}))
			}()
			later := packet.Spec{
				Src: netip.AddrPortFrom(g.client.Addr(), 0), Dst: netip.AddrPortFrom(g.server.Addr(), 0),
				ICMP: &packet.ICMP{Type: [2]uint8{packet.Unreachable4, packet.Unreachable6}[family], Code: 1, Quote: w.aboutAnswer(g)},
			}
			w.dropped(w.fromNode(1), later, "backend-gone")
			w.refused(comesFrom(1), w.abroad.tunnel, packet.Spec{
				Src: g.client, Dst: g.server, Protocol: proto, Flags: packet.ACK, Seq: g.seq + 8, Ack: g.ack + 1, Payload: []byte("twenty bytes or more"),
			}, "backend-gone")
			if n := len(w.pairs()); n != 0 {
				t.Errorf("%d pairs are left", n)
			}
			g.client = netip.AddrPortFrom(g.client.Addr(), 40001)
			verdict, got := g.send(packet.SYN, 5, 0)
			want := w.host.mac
			if again {
				want = heir.mac
			}
			if verdict != redirect || got.DstMAC.String() != want.String() {
				t.Errorf("a new flow: verdict %d for %v", verdict, got)
			}
		})
	}
}

// aboutAnswer is the quote of an answer of the backend's, as the client saw it.
func (w *world) aboutAnswer(g *guest) []byte {
	w.t.Helper()
	s := reply(g.seen)
	s.TTL = 63
	frame, err := s.Build()
	w.check(err)
	return packet.Quote(frame, 8)
}

// Who is no container of ours answers by the host's stack, which knows the hairpin address alone.
func TestAGuestOfTheHost(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		at := outside()
		at.mac = w.host.mac
		client := netip.AddrPortFrom(elsewhere(1).addr[family], 40000)
		s := ask(client, netip.AddrPortFrom(at.addr[family], targetPort), proto)
		verdict, in := w.send(comesFrom(1), w.abroad.tunnel, s)
		if verdict != redirect || in.Src.Addr() != hairpins[family] || in.Dst != s.Dst || in.DstMAC.String() != w.host.mac.String() {
			t.Fatalf("verdict %d for %v", verdict, in)
		}
		verdict, back := w.send(datapath.FromHost, w.host, answerTo(in))
		if verdict != redirect || back.Src != s.Dst || back.Dst != client || back.DstMAC.String() != nodeMAC(1).String() || back.TTL != 63 {
			t.Fatalf("verdict %d for %v", verdict, back)
		}
		verdict, in2 := w.send(comesFrom(2), w.abroad.tunnel, s)
		if verdict != redirect || in2.Src.Addr() != hairpins[family] || in2.Src == in.Src {
			t.Errorf("another node's client with its address: verdict %d for %v", verdict, in2)
		}
	})
}

// What nobody knows is refused by the tunnel that it came from: in mid-flow, to a VIP, but for resets.
func TestGuestsThatAreRefused(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		w.goAbroad()
		s := packet.Spec{
			Src: netip.AddrPortFrom(elsewhere(1).addr[family], 40000), Dst: netip.AddrPortFrom(w.containers[0].addr[family], targetPort),
			Protocol: lb.TCP, Flags: packet.SYN | packet.ACK, Seq: 9, Ack: 77,
		}
		w.refused(comesFrom(1), w.abroad.tunnel, s, "no-pair")
		s.Dst, s.Flags = netip.AddrPortFrom(vips[family], servicePort), packet.SYN
		w.refused(comesFrom(1), w.abroad.tunnel, s, "no-pair")
		s.Flags = packet.RST
		w.dropped(w.fromNode(1), s, "no-pair")
		s.Dst = netip.AddrPortFrom(w.containers[0].addr[family], targetPort)
		w.dropped(w.fromNode(1), s, "no-pair")
		w.check(w.d.PutFrontends(map[lb.Frontend]datapath.Frontend{{VIP: vips[family]}: {Kind: datapath.KindVIP, Own: true}}))
		s.Dst, s.Flags = netip.AddrPortFrom(vips[family], 22), packet.SYN
		if verdict, got := w.send(comesFrom(1), w.abroad.tunnel, s); verdict != redirect || got.DstMAC.String() != w.host.mac.String() {
			t.Errorf("to this node's own address: verdict %d for %v", verdict, got)
		}
	}
}

// The kernel numbers datagrams by their ends: those of two nodes' clients with one address have the same number.
func TestTwoNodesDatagramsWithOneName(t *testing.T) {
	for family, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			w.goAbroad()
			at := w.containers[0]
			s := ask(netip.AddrPortFrom(elsewhere(1).addr[family], 40000), netip.AddrPortFrom(at.addr[family], targetPort), lb.UDP)
			s.Payload, s.Fragment = make([]byte, 80), &packet.Fragment{ID: 77, More: true}
			last := s
			last.Src, last.Dst = netip.AddrPortFrom(s.Src.Addr(), 0), netip.AddrPortFrom(s.Dst.Addr(), 0)
			last.Fragment = &packet.Fragment{ID: 77, Offset: 88}
			w.carry(w.fromNode(1), s)
			if x := w.carry(w.fromNode(2), last); x.verdict != drop {
				t.Errorf("node 2's fragment follows node 1's datagram: verdict %d", x.verdict)
			}
			if x := w.carry(w.fromNode(1), last); x.verdict != redirect {
				t.Errorf("node 1's: verdict %d", x.verdict)
			}
			w.carry(w.fromNode(2), s)
			if a, b := w.pairs()[0].Packets, w.pairs()[1].Packets; a[0]+b[0] < 3 {
				t.Errorf("%v and %v packets", a, b)
			}
		})
	}
}
