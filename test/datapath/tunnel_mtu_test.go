package datapath

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// sized builds a packet of so many bytes from its IP header on, in IPv4 with DF or without.
func (w *world) sized(l leg, s packet.Spec, size int, df bool) []byte {
	w.t.Helper()
	head := 20 + 20*(s.Src.Addr().BitLen()/128) + 20
	if s.Protocol == lb.UDP {
		head -= 12
	}
	s.Payload, s.SrcMAC = bytes.Repeat([]byte{0x5a}, size-head), l.on.mac
	w.toDevice(&s, l.program)
	frame, err := s.Build()
	w.check(err)
	if !df && s.Src.Addr().Is4() { // Build sets it
		frame[14+6] &^= 0x40
		sum := uint32(^binary.BigEndian.Uint16(frame[14+10:])) + 0xffff - 0x4000
		binary.BigEndian.PutUint16(frame[14+10:], ^uint16(sum&0xffff+sum>>16))
	}
	w.decode(frame)
	return frame
}

// tooBig asserts that a frame comes back as the news that less fits, or with 0 that its hops are used up.
func (w *world) tooBig(l leg, frame []byte, mtu uint32) {
	w.t.Helper()
	sent := w.decode(frame)
	verdict, out := w.run(l.program, l.on.ifindex, frame)
	got := w.decode(out)
	if verdict != redirect || got.ICMP == nil || got.Src.Addr() != sent.Dst.Addr() || got.Dst.Addr() != sent.Src.Addr() ||
		got.DstMAC.String() != sent.SrcMAC.String() || got.SrcMAC.String() != sent.DstMAC.String() || got.TTL != 64 {
		w.t.Fatalf("verdict %d for %v, sent %v", verdict, got, sent)
	}
	want := *packet.FragNeeded(frame[14:78], mtu)
	if mtu == 0 {
		want.Type, want.Code = packet.TimeExceeded4, 0
		if sent.Src.Addr().Is6() {
			want.Type = packet.TimeExceeded6
		}
	}
	if got.ICMP.Type != want.Type || got.ICMP.Code != want.Code || got.ICMP.Rest != want.Rest || !bytes.Equal(got.ICMP.Quote, want.Quote) {
		w.t.Errorf("got %v, want %v", got.ICMP, &want)
	}
}

func (w *world) passesTo(node uint16, l leg, context skbContext, frame []byte) {
	w.t.Helper()
	context.Ifindex = l.on.ifindex
	verdict, out := w.runAs(l.program, context, frame)
	if got := w.decode(out); verdict != redirect || got.DstMAC.String() != nodeMAC(node).String() || len(out) != len(frame) {
		w.t.Fatalf("verdict %d for %v", verdict, got)
	}
}

// toldWhatFits sends packets of a flow around what fits to node 1.
func (w *world) toldWhatFits(l leg, s packet.Spec) {
	w.t.Helper()
	w.passesTo(1, l, skbContext{}, w.sized(l, s, nodeMTU, true))
	before := w.drops("tunnel-mtu")
	w.tooBig(l, w.sized(l, s, nodeMTU+1, true), nodeMTU)
	if n := w.drops("tunnel-mtu") - before; n != 1 {
		w.t.Errorf("%d drops", n)
	}
	if s.Src.Addr().Is6() {
		w.tooBig(l, w.sized(l, s, nodeMTU+1, false), nodeMTU)
	} else {
		w.passesTo(1, l, skbContext{}, w.sized(l, s, nodeMTU+1, false)) // IPv4 is cut outside
		w.node(1, 1, datapath.SNATNever)
		w.tooBig(l, w.sized(l, s, nodeMTU+1, false), nodeMTU) // IPv6 never is
		w.node(1, 0, datapath.SNATNever)
	}
	s.TTL = 2
	w.passesTo(1, l, skbContext{}, w.sized(l, s, 100, true))
	s.TTL = 1
	before = w.drops("hop-limit")
	w.tooBig(l, w.sized(l, s, 100, true), 0)
	if n := w.drops("hop-limit") - before; n != 1 {
		w.t.Errorf("%d drops", n)
	}
}

func TestSendersLearnWhatFitsThroughTheTunnel(t *testing.T) {
	eachAbroad(t, func(_ *testing.T, w *world, family int, proto lb.Protocol) {
		w.away(1, elsewhere(1))
		for i, l := range []leg{{datapath.FromContainer, w.client}, {datapath.FromHost, w.host}, w.fromOutside()} {
			from := []netip.Addr{w.client.addr[family], outside().addr[family], beyond[family]}[i]
			s := ask(netip.AddrPortFrom(from, 40000), netip.AddrPortFrom(vips[family], servicePort), proto)
			w.carry(l, s)
			w.toldWhatFits(l, more(s))
		}
	})
}

// What a backend answers by tunnel is too big as well.
func TestBackendsLearnWhatFitsThroughTheTunnel(t *testing.T) {
	eachAbroad(t, func(_ *testing.T, w *world, family int, proto lb.Protocol) {
		c := w.containers[0]
		_, in := w.send(comesFrom(1), w.abroad.tunnel, ask(netip.AddrPortFrom(elsewhere(1).addr[family], 40000), netip.AddrPortFrom(c.addr[family], targetPort), proto))
		answer := answerTo(in)
		answer.Flags, answer.Seq = packet.ACK, backendISN+1
		w.toldWhatFits(leg{datapath.FromContainer, c}, answer)
	})
}

// A packet that is not yet segmented is as large as its segments will be.
func TestSegmentsAreWhatHasToFit(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		w.away(1, elsewhere(1))
		l := leg{datapath.FromContainer, w.client}
		s := ask(netip.AddrPortFrom(w.client.addr[family], 40000), netip.AddrPortFrom(vips[family], servicePort), lb.TCP)
		w.carry(l, s)
		head := uint32(40 + 20*family)
		frame := w.sized(l, more(s), 3000, true)
		w.passesTo(1, l, skbContext{GSOSize: nodeMTU - head, GSOSegs: 3}, frame)
		before := w.drops("tunnel-mtu")
		verdict, out := w.runAs(l.program, skbContext{Ifindex: l.on.ifindex, GSOSize: nodeMTU - head + 1, GSOSegs: 3}, frame)
		if got := w.decode(out); verdict != redirect || got.ICMP == nil || w.drops("tunnel-mtu") != before+1 {
			t.Errorf("verdict %d for %v", verdict, got)
		}
	}
}

// A later fragment has no ports to tell anybody of, and an error none to be told.
func TestWhatCannotBeAnsweredIsDropped(t *testing.T) {
	for family := range families {
		w := newWorld(t, 1)
		w.away(1, elsewhere(1))
		l := leg{datapath.FromContainer, w.client}
		s := ask(netip.AddrPortFrom(w.client.addr[family], 40000), netip.AddrPortFrom(vips[family], servicePort), lb.UDP)
		s.Fragment, s.Payload = &packet.Fragment{ID: 7, More: true}, make([]byte, 800)
		w.carry(l, s)
		s.Fragment = &packet.Fragment{ID: 7, Offset: 808}
		s.Src, s.Dst, s.Payload = netip.AddrPortFrom(s.Src.Addr(), 0), netip.AddrPortFrom(s.Dst.Addr(), 0), make([]byte, nodeMTU)
		verdict := w.carry(l, s).verdict
		want, drops := uint32(redirect), uint64(0)
		if family == 1 {
			want, drops = drop, 1
		}
		if verdict != want || w.drops("tunnel-mtu") != drops {
			t.Errorf("%s: verdict %d, %d drops", families[family], verdict, w.drops("tunnel-mtu"))
		}
	}
}

// Whoever sends what does not fit again and again is told so often, and no more.
func TestNewsOfWhatFitsIsLimitedInRate(t *testing.T) {
	w := newWorld(t, 1)
	w.away(1, elsewhere(1))
	l := leg{datapath.FromContainer, w.client}
	s := ask(netip.AddrPortFrom(w.client.addr[0], 40000), netip.AddrPortFrom(vips[0], servicePort), lb.TCP)
	w.carry(l, s)
	w.limitAnswers()
	frame, told := w.sized(l, more(s), nodeMTU+1, true), 0
	for range 20 {
		if verdict, _ := w.run(l.program, l.on.ifindex, frame); verdict == redirect {
			told++
		}
	}
	if told != 3 || w.drops("rate-limited") != 17 || w.drops("tunnel-mtu") != 20 {
		t.Errorf("told %d times of 20, %d counted as limited", told, w.drops("rate-limited"))
	}
}
