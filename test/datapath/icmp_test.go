package datapath

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// leg is where the packets of one direction are translated: a program on a device.
type leg struct {
	program string
	on      container
}

// passage is a packet before and after a program.
type passage struct {
	leg
	verdict    uint32
	sent, seen []byte
}

// talk is a flow of which a packet of each direction is kept, to be complained about.
type talk struct {
	w                 *world
	request, response passage
}

// carry sends a packet by a leg. A packet that does not leave whole is a failure.
func (w *world) carry(l leg, s packet.Spec) passage {
	w.t.Helper()
	s.SrcMAC = l.on.mac
	w.toDevice(&s, l.program)
	sent, err := s.Build()
	w.check(err)
	verdict, seen := w.run(l.program, l.on.ifindex, sent)
	if verdict != drop {
		w.decode(seen)
	}
	return passage{leg: l, verdict: verdict, sent: sent, seen: seen}
}

func (w *world) decode(frame []byte) packet.Spec {
	w.t.Helper()
	s, err := packet.Parse(frame)
	if err != nil {
		w.t.Fatalf("%v: %v", err, s)
	}
	return s
}

// talk opens a flow from a client to a server by the given legs. Its kept packets are changed by dress first.
func (w *world) talk(client, server netip.AddrPort, proto lb.Protocol, out leg, back func(seen packet.Spec) leg, dress func(*packet.Spec)) talk {
	w.t.Helper()
	s := packet.Spec{Src: client, Dst: server, Protocol: proto, Flags: packet.SYN, Seq: 1000}
	seen := w.decode(w.carry(out, s).seen)
	way := back(seen)
	answer := reply(seen)
	answer.Flags, answer.Seq, answer.Ack = packet.SYN|packet.ACK, backendISN, 1001
	w.carry(way, answer)
	s.Flags, s.Seq, s.Ack, s.Payload = packet.ACK|packet.PSH, 1001, backendISN+1, bytes.Repeat([]byte("request "), 20)
	answer.Flags, answer.Seq, answer.Payload = packet.ACK|packet.PSH, backendISN+1, bytes.Repeat([]byte("response"), 20)
	dress(&s)
	dress(&answer)
	t := talk{w: w, request: w.carry(out, s), response: w.carry(way, answer)}
	if got := w.decode(t.response.seen); got.Src != server || got.Dst != client {
		w.t.Fatalf("answer to %v is %v", s, got)
	}
	return t
}

func plain(*packet.Spec) {}

// dressed gives a packet what stands between its IP header and its ports at times.
func dressed(s *packet.Spec) {
	if s.Src.Addr().Is4() {
		s.Options = []byte{0x94, 4, 0, 0, 1, 1, 1, 0} // router alert
		return
	}
	s.Extensions = []packet.Extension{
		{Protocol: packet.HopByHop, Data: []byte{5, 2, 0, 0, 1, 0}},
		{Protocol: packet.Routing, Data: make([]byte, 6)},
		{Protocol: packet.DestinationOptions, Data: []byte{1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
	}
}

// road is a way that flows take through the node.
type road struct {
	name string
	open func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk
}

// roads are all of them.
var roads = slices.Concat(roadsHere, roadsAbroad)

// roadsHere are those that stay on the node, with the flows that are translated in another manner than most.
var roadsHere = []road{
	{"container to container", func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
		return w.talkTo(family, proto, port, dress)
	}},
	{"container to itself", func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
		w.service(serviceID, vips, []container{w.client})
		return w.talkTo(family, proto, port, dress)
	}},
	{"with another source port", func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
		w.service(serviceID, vips, w.containers[:1])
		w.service(2, vips2, w.containers[:1])
		w.flow(vips2[family], family, proto, port).establish()
		return w.talkTo(family, proto, port, dress)
	}},
	{"direct with another source port", func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
		w.service(serviceID, vips, w.containers[:1])
		w.flow(vips[family], family, proto, port).establish()
		return w.talk(netip.AddrPortFrom(w.client.addr[family], port), netip.AddrPortFrom(w.containers[0].addr[family], targetPort),
			proto, leg{datapath.FromContainer, w.client}, w.backendLeg, dress)
	}},
	{"container to an address without programs", func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
		w.service(serviceID, vips, []container{outside()})
		return w.talk(netip.AddrPortFrom(w.client.addr[family], port), netip.AddrPortFrom(vips[family], servicePort), proto,
			leg{datapath.FromContainer, w.client}, func(packet.Spec) leg { return leg{datapath.ToContainer, w.client} }, dress)
	}},
	{"host to container", func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
		return w.talk(netip.AddrPortFrom(outside().addr[family], port), netip.AddrPortFrom(vips[family], servicePort), proto,
			leg{datapath.FromHost, w.host}, w.backendLeg, dress)
	}},
	{"host to an address without programs", func(w *world, family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
		w.service(serviceID, vips, []container{outside()})
		way := leg{datapath.FromHost, w.host}
		return w.talk(netip.AddrPortFrom(outside().addr[family], port), netip.AddrPortFrom(vips[family], servicePort), proto,
			way, func(packet.Spec) leg { return way }, dress)
	}},
}

// programRoads are roads that pass each of the programs in each direction.
var programRoads = []road{roads[0], roads[4], roads[5], roadsAbroad[0], roadsAbroad[3], roadsAbroad[5], roadsAbroad[7], roadsAbroad[8]}

// talkTo is the talk of the world's client with an attached backend.
func (w *world) talkTo(family int, proto lb.Protocol, port uint16, dress func(*packet.Spec)) talk {
	w.t.Helper()
	return w.talk(netip.AddrPortFrom(w.client.addr[family], port), netip.AddrPortFrom(vips[family], servicePort), proto,
		leg{datapath.FromContainer, w.client}, w.backendLeg, dress)
}

func (w *world) backendLeg(seen packet.Spec) leg {
	return leg{datapath.FromContainer, w.containerOf(seen)}
}

// failures are the messages about a packet that could not be served, by family.
var failures = [2][]packet.ICMP{
	{
		{Type: packet.Unreachable4, Code: 1},
		{Type: packet.Unreachable4, Code: packet.CodePort4},
		*packet.FragNeeded([]byte{0x45}, 1400),
		{Type: packet.TimeExceeded4, Code: 0},
		{Type: packet.BadHeader4, Code: 0, Rest: [4]byte{20}},
	},
	{
		{Type: packet.Unreachable6, Code: 0},
		{Type: packet.Unreachable6, Code: packet.CodePort6},
		*packet.FragNeeded([]byte{0x60}, 1400),
		{Type: packet.TimeExceeded6, Code: 0},
		{Type: packet.BadHeader6, Code: 1, Rest: [4]byte{0, 0, 0, 6}},
	},
}

// failure builds an error about a packet as its receiver saw it. Its quote holds so many bytes behind the
// IP header, all if negative.
func failure(about passage, from netip.Addr, keep int, m packet.ICMP) packet.Spec {
	m.Quote = packet.Quote(about.seen, keep)
	quoted, err := packet.Parse(about.seen)
	if err != nil {
		panic(err) // carry has parsed it before
	}
	return packet.Spec{Src: netip.AddrPortFrom(from, 0), Dst: netip.AddrPortFrom(quoted.Src.Addr(), 0), ICMP: &m, TTL: 61, TOS: 0xc0}
}

// complain sends an error about one direction's packet by the way of the other direction, and
// asserts that who sent the packet can tell which it was, byte by byte.
func (t talk) complain(about, way passage, s packet.Spec, keep int) {
	t.w.t.Helper()
	got := t.w.carry(way.leg, s)
	if got.verdict != way.verdict {
		t.w.t.Fatalf("verdict %d for %v, want %d", got.verdict, s, way.verdict)
	}
	out, like := t.w.decode(got.seen), t.w.decode(way.seen)
	from := s.Src.Addr()
	// From tclb0 the stack takes only what comes from the VIP (rp_filter), whoever complains.
	if from == t.w.decode(way.sent).Src.Addr() || like.DstMAC.String() == t.w.host.mac.String() {
		from = like.Src.Addr()
	}
	if out.Src.Addr() != from || out.Dst.Addr() != like.Dst.Addr() || out.DstMAC.String() != like.DstMAC.String() || out.TTL != s.TTL-t.w.hops(way) || out.TOS != s.TOS {
		t.w.t.Errorf("error %v, want it from %s on the way of %v", out, from, like)
	}
	if out.ICMP == nil || out.ICMP.Type != s.ICMP.Type || out.ICMP.Code != s.ICMP.Code || out.ICMP.Rest != s.ICMP.Rest {
		t.w.t.Fatalf("got %v for %v", out, s)
	}
	quote, want := out.ICMP.Quote, packet.Quote(t.w.aged(about), keep)
	if keep == 7 || keep == 17 {
		quote, want = quote[:len(quote)-1], want[:len(want)-1] // nobody can tell half a checksum
	}
	if !bytes.Equal(quote, want) {
		t.w.t.Errorf("%d bytes kept: the quote is not what was sent\n got %x\nwant %x", keep, quote, want)
	}
}

// hops is how many a packet has gone: one if the program sent it to another node.
func (w *world) hops(p passage) uint8 { return w.decode(p.sent).TTL - w.decode(p.seen).TTL }

// aged is the packet as it was sent, but for the hops.
func (w *world) aged(p passage) []byte {
	w.t.Helper()
	s := w.decode(p.sent)
	s.TTL -= w.hops(p)
	frame, err := s.Build()
	w.check(err)
	return frame
}

// quoteLengths are how much of a packet errors keep: the ports, what RFC 792 asks for, the checksum, all.
var quoteLengths = map[lb.Protocol][]int{lb.TCP: {4, 8, 17, 18, 20, -1}, lb.UDP: {4, 7, 8, 20, -1}}

// eachRoad runs a scenario for every road, and within one world for flows of both families and protocols,
// plain and dressed.
func eachRoad(t *testing.T, f func(w *world, family int, proto lb.Protocol, dress func(*packet.Spec), k talk)) {
	t.Helper()
	for _, r := range roads {
		t.Run(r.name, func(t *testing.T) {
			w := newWorld(t, 3)
			w.goAbroad()
			for family, name := range families {
				w.inside(t, name, func(w *world) {
					for i, dress := range []func(*packet.Spec){plain, dressed} {
						for _, proto := range []lb.Protocol{lb.TCP, lb.UDP} {
							f(w, family, proto, dress, r.open(w, family, proto, uint16(40000+i), dress))
						}
					}
					w.noDrops()
				})
				w.flush()
			}
		})
	}
}

// A router between is a sender of its own: its address tells an operator where a path is broken.
var router = [2]netip.AddrPort{netip.MustParseAddrPort("203.0.113.254:0"), netip.MustParseAddrPort("[2001:db8:77::fe]:0")}

// Without the first half of this, a path with a small MTU is a black hole for what is sent to a VIP:
// cilium/cilium#47755 and #34380 are open for just that, as #46993 is for errors that come by the host.
func TestErrorsFindWhoSentThePacket(t *testing.T) {
	eachRoad(t, func(w *world, family int, proto lb.Protocol, dress func(*packet.Spec), k talk) {
		states := w.states()
		for _, m := range failures[family] {
			for _, keep := range quoteLengths[proto] {
				for _, way := range [][2]passage{{k.request, k.response}, {k.response, k.request}} {
					s := failure(way[0], w.decode(way[1].sent).Src.Addr(), keep, m)
					dress(&s)
					k.complain(way[0], way[1], s, keep)
					if way[1].program != datapath.FromContainer { // no router is in a container
						s.Src = router[family]
						k.complain(way[0], way[1], s, keep)
					}
				}
			}
		}
		if got := w.states(); !maps.Equal(got, states) {
			w.t.Errorf("errors brought the flows from %v to %v", states, got)
		}
	})
}

// states counts the flows by their state.
func (w *world) states() map[datapath.FlowState]int {
	w.t.Helper()
	out := make(map[datapath.FlowState]int)
	for _, p := range w.pairs() {
		out[p.State]++
	}
	return out
}

func TestErrorsAboutDatagramsWithoutChecksum(t *testing.T) {
	for _, r := range roads {
		t.Run(r.name, func(t *testing.T) {
			w := newWorld(t, 3)
			k := r.open(w, 0, lb.UDP, 40000, func(s *packet.Spec) { s.NoChecksum = true })
			for _, keep := range quoteLengths[lb.UDP] {
				for _, way := range [][2]passage{{k.request, k.response}, {k.response, k.request}} {
					k.complain(way[0], way[1], failure(way[0], w.decode(way[1].sent).Src.Addr(), keep, failures[0][2]), keep)
				}
			}
		})
	}
}

// A datagram whose last fragment was lost is complained about by a quote of its first.
func TestErrorsAboutFragments(t *testing.T) {
	for _, r := range programRoads {
		for family, name := range families {
			t.Run(r.name+"/"+name, func(t *testing.T) {
				w := newWorld(t, 3)
				for _, proto := range []lb.Protocol{lb.TCP, lb.UDP} {
					k := r.open(w, family, proto, 40000, func(s *packet.Spec) { s.Fragment = &packet.Fragment{ID: 77, More: true} })
					for _, way := range [][2]passage{{k.request, k.response}, {k.response, k.request}} {
						m := failures[family][3]
						m.Code = 1
						k.complain(way[0], way[1], failure(way[0], w.decode(way[1].sent).Src.Addr(), -1, m), -1)
					}
				}
			})
		}
	}
}

// In host stack mode answers pass the backend's veth untranslated, and errors are answers.
func TestErrorsInHostStackMode(t *testing.T) {
	each(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.settings(datapath.Settings{HostStack: true, AntiSpoof: true})
		k := w.talk(netip.AddrPortFrom(w.client.addr[family], 40000), netip.AddrPortFrom(vips[family], servicePort), proto,
			leg{datapath.FromContainer, w.client}, func(packet.Spec) leg { return leg{datapath.ToContainer, w.client} }, plain)
		backend := w.containerOf(w.decode(k.request.seen))
		s := failure(k.request, backend.addr[family], 8, failures[family][2])
		onWay := w.carry(leg{datapath.FromContainer, backend}, s)
		got := w.decode(onWay.seen)
		if onWay.verdict != next || !bytes.Equal(onWay.seen[6:], onWay.sent[6:]) || got.DstMAC.String() != "02:00:00:00:09:09" {
			t.Fatalf("at the backend's veth: verdict %d for %v, want it untranslated to the bridge", onWay.verdict, got)
		}
		k.complain(k.request, k.response, s, 8)
		k.complain(k.response, k.request, failure(k.response, w.client.addr[family], 8, failures[family][1]), 8)
	})
}
